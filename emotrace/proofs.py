"""Proofs: what the sites of a model are, and what its prompts may share, shown once for the same weights, code and versions.

Kept in the user's cache (`emotrace.disk.cache`). What a model is loaded with is a part of what is asked: one changed number in
the weights, another device or another release of a library is another question. Models of classes that are not transformers'
own, or whose modules carry hooks, are shown anew every time.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from emotrace import configs
from emotrace import sites as sites_
from emotrace.disk import cache as kept
from emotrace.forwards import beginnings
from emotrace.forwards.beginnings import Beginnings
from emotrace.identity import versions, weights_hash
from emotrace.sites import LanguageModel, Sites, written
from emotrace.sites import twin as twins
from emotrace.sites.finding import record_ids

OURS = ("sites", "forwards", "traced")
"""The rooms that show it."""
THEIRS = ("torch.nn.", "transformers.")
"""Modules whose classes are what their version says."""


def about(module: Any) -> dict[str, Any] | None:
    """Everything that the proofs of a model depend on; None where they are not kept."""
    if kept.folder() is None or any(p.is_meta for p in module.parameters()):
        return None
    for part in module.modules():
        own = not f"{type(part).__module__}.".startswith(THEIRS)
        if own or part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            return None
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "config": module.config.to_json_string(use_diff=False),
        "weights": weights_hash(module),
        "dtype": str(module.dtype),
        "attn_implementation": str(configs.field(module.config, "_attn_implementation", "")),
        "devices": sorted({str(p.device) for p in module.parameters()}),
        "versions": versions(),
        "code": _code(),
    }


def sites(module: Any, of: dict[str, Any] | None) -> Sites:
    """`emotrace.sites.find`, kept."""
    known = None if of is None else kept.known("sites", of)
    if known is not None:
        return written.read(known["table"])
    found = sites_.find(module)
    if of is not None:
        kept.keep("sites", of, {"table": written.written(found), "twin": found.twin is not None})
    return found


def of_prompts(model: LanguageModel, of: dict[str, Any] | None) -> Beginnings:
    """`emotrace.forwards.beginnings.prove`, kept."""
    if of is None:
        return beginnings.prove(model)
    encoder = model.sites.encoder
    asked = of | {"causal": encoder.causal, "pad_id": encoder.pad_id}
    known = kept.known("beginnings", asked)
    if known is not None:
        model.sites.twin = None
        return Beginnings.read(known, asked)
    if model.sites.twin is None and kept.known("sites", of)["twin"]:  # the table was read, and needed none
        model.sites.twin = twins.shrunken(model._module, record_ids)[0]
    found = beginnings.prove(model)
    found.about = asked
    found.keep()
    return found


@cache
def _code() -> str:
    """Digest of the source that shows it."""
    sha = hashlib.sha256()
    for room in OURS:
        for path in sorted((Path(__file__).parent / room).rglob("*.py")):
            sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()[:16]
