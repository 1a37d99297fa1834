"""Assembly: a circuit out of scores, difference vectors and an allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
import xarray as xr

from emotrace import provenance
from emotrace.attribution.ranks import top
from emotrace.circuits.circuit import Circuit
from emotrace.disk import plain
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, unknown
from emotrace.signatures import typed

HALF: Final = 0.5
"""A circuit that takes more of a layer than this share leaves no room for random circuits of its size."""
ABOUT: Final = ("model_id", "revision", "config_hash", "weights_hash", "weights_sample", "tokenizer_hash", "template_hash",
                "template_date", "double_bos", "bos", "dtype", "attn_implementation", "n_groups", "n_rows", "source", "selection",
                "plan_digest", "edits", "accepted_digest", "n_accepted")  # fmt: skip


@typed
def assemble(
    scores: Mapping[str, xr.Dataset],
    differences: xr.Dataset,
    allocation: xr.DataArray,
    *,
    by: str = "contrast",
    label: str = "emotion",
    meta: Mapping[str, Any] | None = None,
) -> Circuit:
    """A circuit out of what was measured: in every layer the k components with the highest score, k from the allocation.

    Scores are signed, and ties go to the lower index.

    Args:
        scores: by kind (``neuron``, ``head``), of `neuron_contributions` and `head_contributions`.
        differences: of `difference_vectors`.
        allocation: ``k[label, kind, layer]``.
        by: variable of the scores.
        label: what is contrasted.
        meta: what else the circuit should say of itself, beside model, ranking, allocation (``plan``) and, under ``rows``, what
            each of its parts was measured on (`emotrace.provenance.ROWS`).

    Raises:
        EmotraceError: for an allocation that asks for components, labels or layers that the scores do not have.
    """
    for kind in scores:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS, "assemble(scores=…)")
    provenance.together("assemble", **scores, differences=differences)
    known = {k: t["layer"].values.tolist() for k, t in scores.items()}
    first = next(iter(scores.values()), differences)
    check_allocation(allocation, label, first[label].values.tolist(), known)
    rows: list[dict[str, Any]] = []
    for kind in allocation["kind"].values.tolist():
        wanted = allocation.sel(kind=kind)
        most = int(wanted.max()) if wanted.size else 0
        if not most:
            continue
        table = scores[kind]
        ranked = top(table, most, by)
        for value in wanted[label].values.tolist():
            for layer in wanted["layer"].values[wanted.sel({label: value}).values > 0].tolist():
                k = int(wanted.sel({label: value, "layer": layer}))
                index = ranked.sel({label: value, "layer": layer}).values[:k]
                score = table[by].sel({label: value, "layer": layer, COMPONENTS[kind].dim: index}).values
                rows += [
                    {label: value, "kind": kind, "layer": layer, "index": int(i), "score": float(s), "rank": r}
                    for r, (i, s) in enumerate(zip(index, score, strict=True))
                ]
    columns = [label, "kind", "layer", "index", "score", "rank"]
    about = {k: v for k, v in differences.attrs.items() if k in ABOUT}
    n: dict[str, int] = {}
    for table in scores.values():
        about["prompts_digest"] = table.attrs.get("prompts_digest")
        n = {str(v): int(table["n"].sel({label: v})) for v in table[label].values.tolist()}
    measured = {name: provenance.rows_of(thing) for name, thing in {**scores, "differences": differences}.items()}
    whole = {
        "method": "discovered",
        "by": by,
        **about,
        "rows": measured,
        "n": n,
        "plan": dict(allocation.attrs),
        **dict(meta or {}),
    }
    circuit = Circuit(pd.DataFrame(rows, columns=columns), differences.drop_attrs(), plain(whole), label)
    share = circuit.share()
    circuit.meta["share"] = share
    circuit.meta["warnings"] = [*whole.get("warnings", ()), *_crowded(circuit, share)]
    return circuit


def check_allocation(allocation: xr.DataArray, label: str, labels: Sequence[Any], at: Mapping[str, list[int]]) -> None:
    """Refuse an allocation that asks for labels, kinds or layers other than those that are ranked."""
    if not isinstance(allocation, xr.DataArray) or set(allocation.dims) != {label, "kind", "layer"}:
        raise EmotraceError(
            f"an allocation has the dims ({label}, kind, layer), not {getattr(allocation, 'dims', type(allocation).__name__)}."
        )
    for value in allocation[label].values.tolist():
        if value not in labels:
            raise unknown(f"{label} of the allocation", value, labels)
    for kind in allocation["kind"].values.tolist():
        layers = allocation["layer"].values[(allocation.sel(kind=kind) > 0).any(label).values].tolist()
        if layers and kind not in at:
            raise unknown("kind of the allocation", kind, at)
        for layer in layers:
            if layer not in at[kind]:
                raise unknown("layer of the allocation", layer, at[kind], f"for {kind}s")


def _crowded(circuit: Circuit, share: Mapping[str, float]) -> list[str]:
    """Warnings of kinds of which some layer gives more than half."""
    found = []
    for kind, largest in share.items():
        if largest > HALF:
            size = circuit.payload.sizes[COMPONENTS[kind].dim]
            found.append(
                f"the circuit takes up to {round(largest * size)} of the {size} {kind}s of a layer ({largest:.0%}): random "
                "circuits of that size overlap with it, so they are no control."
            )
    return found
