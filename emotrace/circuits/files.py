"""Files: a circuit as ``circuit.safetensors`` and ``circuit.json``, written and read by `emotrace.attribution.files`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pandas as pd
import xarray as xr

from emotrace import disk
from emotrace.attribution import files
from emotrace.labels import KINDS, EmotraceError
from emotrace.texts import from_json

CONTENT: Final = "emotrace circuit, version 1"
NAME: Final = "circuit"
NUMBERS: Final = ("layer", "index", "rank", "score")
"""Columns of components beside the label and the kind."""


def save(label: str, components: pd.DataFrame, payload: xr.Dataset, meta: dict[str, Any], folder: str | Path) -> Path:
    """Write the parts of a circuit; labels and kinds of components are stored as their place in the payload's and `KINDS`.

    Returns:
        The path of the manifest.
    """
    table: Any = components
    columns = {
        "label": pd.Index(payload[label].values).get_indexer(table[label]).astype("int64"),
        "kind": table["kind"].map(KINDS.index).to_numpy("int64"),
        **{name: table[name].to_numpy() for name in NUMBERS},
    }
    whole = payload.drop_attrs().assign({f"component_{k}": ("component", v) for k, v in columns.items()})
    whole = whole.assign_attrs(content=CONTENT, label=label, meta=json.dumps(disk.plain(meta)))
    return files.save_scores(whole, folder, NAME)


def load(folder: str | Path) -> tuple[str, pd.DataFrame, xr.Dataset, dict[str, Any]]:
    """Label, components, payload and meta that `save` wrote.

    Raises:
        EmotraceError: for a missing or damaged file, or one that holds something else.
    """
    whole = files.load_scores(folder, NAME)
    if whole.attrs.get("content") != CONTENT:
        raise EmotraceError(f"{folder} holds {whole.attrs.get('content') or 'other data'!r}, not {CONTENT!r}.")
    try:
        label = whole.attrs["label"]
        table = pd.DataFrame({name: whole[f"component_{name}"].values for name in NUMBERS})
        table[label] = whole[label].values[whole["component_label"].values].tolist()
        table["kind"] = [KINDS[i] for i in whole["component_kind"].values]
        payload = whole.drop_vars([str(n) for n in whole.variables if str(n).startswith("component_")])
        return label, table, payload.drop_attrs(), from_json(whole.attrs["meta"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EmotraceError(f"{folder}: the files of this circuit are damaged ({error!r}).") from error
