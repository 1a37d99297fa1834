"""What the tests of the studies of vectors share: their modules, a model and data that are not in this repository."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emotrace import dose
from emotrace.testing import tiny

ROOT = Path(__file__).resolve().parents[2]
FEW = (-1.0, 0.0, 2.0)
"""Instead of the published doses."""
COMMON = {
    "judge": "lexicon", "limit": 3, "scale": "raw", "doses": "1,3", "draws": 1, "label_map": None, "price": None,
    "max_new_tokens": 5, "batch_size": 32, "device": "auto", "dtype": None, "remote": None, "seed": 0,
    "emotional": "Always reply in {emotion}.",
}  # fmt: skip


@contextmanager
def experiment(name: str, monkeypatch: Any) -> Iterator[Any]:
    """The module of an experiment, with fewer of the published doses."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setattr(dose, "DOSES", FEW)
    yield module(name)
    sys.modules.pop("vector_study", None)


def module(name: str) -> Any:
    """A module of the folder of experiments."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def strangers(folder: Path) -> dict[str, Any]:
    """A random model and query files, as somebody else would have them."""
    tiny.save("llama", folder / "model", num_hidden_layers=2)
    queries = {"fear": ["Who is there?", "What was that?", "Is it dark?"], "joy": ["You won?", "A cake?", "Any sun?"]}
    (folder / "theirs.json").write_text(json.dumps(queries))
    (folder / "asked.json").write_text(json.dumps(["Who knocks?", "A feast?", "You won?"]))
    return {"model": str(folder / "model"), "test": folder / "asked.json"}
