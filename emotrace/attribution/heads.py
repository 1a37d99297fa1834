"""Heads: what each attention head contributes to the projection on an emotion's direction, exactly, from one forward.

Zero-ablating head h of layer l changes ``resid_mid`` of the same layer and token by nothing but what h writes there, so no
second forward is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from emotrace import arguments, disk
from emotrace.attribution.files import save
from emotrace.attribution.weights import chosen_layers, reading_norm_path, spec, vectors, weighed
from emotrace.datasets import PromptsLike
from emotrace.disk import plain
from emotrace.files import to_folder
from emotrace.forwards.streams import accepted_only, codes, dry, fitting, origin, reductions
from emotrace.forwards.sums import Sums
from emotrace.labels import SUBLAYERS, EmotraceError, unknown
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, envoy
from emotrace.traced import contributions

PLACE = "head_contributions"
READOUTS = ("residual", "normed")


@planned
@typed
def head_contributions(
    model: LanguageModel,
    prompts: PromptsLike,
    directions: xr.DataArray,
    *,
    label: str = "emotion",
    accepted: Iterable[str] | None = None,
    readout: str = "residual",
    layers: Iterable[int] | int | None = None,
    batch_size: int = 32,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryRows, xr.Dataset]:
    """How far the projection on each emotion's direction falls when one head is set to zero, read in the same layer.

    importance_h = s(r) − s(r without head h) at the last prompt token, s(r) = ⟨v_e, r⟩, exactly: with w_h = W_O,h z_h,
    c the residual scale, N the norm that is given ``resid_mid`` and LN1, PN the norms of their families::

        residual                          c⟨v, w_h⟩ = z_h · (W_O,hᵀ v)·c
        residual, norm after W_O          c⟨v, PN(o) − PN(o − w_h)⟩
        residual, post-LN                 ⟨v, LN1(pre + attn) − LN1(pre + attn − w_h)⟩
        normed                            ⟨v, N(mid) − N(mid − c·w_h)⟩

    In parallel models, which have no ``resid_mid``, heads are read at ``attn_out`` against the ``resid_post`` direction;
    ``attrs["readout_site"]`` says so. Where the MLP takes ``resid_mid`` without a norm of its own (post-LN, OLMo-2), both
    read-outs are the same. ``head_contributions.plan(…)`` says what would be done (`emotrace.planned.DryRows`).

    Args:
        model: from `emotrace.load`.
        prompts: with the emotion asked; each carries ``label``.
        directions: ``[label, layer, sublayer, dim]`` of `directions.centered_mean`; used as unit vectors.
        label: the label that is contrasted.
        accepted: keys of the prompts to use; None for all.
        readout: ``residual``, or ``normed``: the input of the MLP, as EmotionCircuits read it.
        layers: 0-based layers; None for all that have heads and directions.
        batch_size: prompts per forward.
        out: folder for running sums and the result; a killed run continues there and ends with the same bits.
        progress: show a bar.

    Returns:
        Dataset, float64. ``[label, layer, head]``: ``mean`` and ``std`` (ddof 0) over the prompts of e; ``contrast`` = ``mean`` −
        the mean over the prompts of the other labels (each with equal weight) against the same direction.
        ``[label, layer]``: ``baseline`` = mean s(r). ``[label]``: ``n`` prompts. Positive: the head raises the projection.

    Raises:
        EmotraceError: before anything runs, where the model has no heads, for labels, layers or directions that do not
            fit, ``normed`` in a parallel model, or an ``out`` that holds sums of another run.

    Source: arXiv 2510.11328, which ranks by ``mean`` of ``normed``.
    """
    arguments.whole("batch_size", batch_size, 1)
    if out is not None:
        to_folder(out)
    if readout not in READOUTS:
        raise unknown("readout", readout, READOUTS, PLACE)
    chosen = chosen_layers(model, ["z"], layers, directions, PLACE)
    has_mid = [model.sites.has("resid_mid", layer) for layer in chosen]
    if readout == "normed" and not all(has_mid):
        raise EmotraceError(
            f"{PLACE}(readout='normed'): layer {chosen[has_mid.index(False)]} of {model.sites.model_class} has no "
            "resid_mid, so no norm reads it (parallel residual). Use readout='residual'."
        )
    prompts = accepted_only(prompts, accepted)
    width = model.sites.d_model
    by_site = {s: vectors(directions, label, chosen, s, width, PLACE) for s in {_sublayer(has) for has in has_mid}}
    values = next(iter(by_site.values()))[0]
    if len(values) < 2:
        raise EmotraceError(f"{PLACE}: a contrast needs two or more values of {label!r}; the directions have {values}.")
    code = codes(prompts, label, values, PLACE)
    parts = [
        _layer(model, layer, readout, by_site[_sublayer(has)][1][:, i])
        for i, (layer, has) in enumerate(zip(chosen, has_mid, strict=True))
    ]
    read = {part.residual for part in parts if part.residual is not None}
    sites = ["z", *(s for s in SUBLAYERS if s in read)]
    n_heads = model.sites.size("z", chosen)["head"]
    per_chunk = fitting(4 * len(chosen) * (model.sites.address("z", chosen[0]).width + width))
    size = 8 * len(values) * len(chosen) * (n_heads * (len(values) + 1) + 1)
    yield lambda: dry(model, prompts, size, per_chunk)
    source = {**origin(model, prompts), "directions_digest": disk.digest(directions)}
    settings = {"label": label, "labels": values, "layers": chosen, "readout": readout, "per_chunk": per_chunk}
    sums = Sums(out, {"method": PLACE, **source, **settings, "batch_size": batch_size})
    post_norm = any(weighed(model, contributions.post_normed, [part.spec for part in parts]))
    memo: dict[str, Any] = {}

    def args(rows: range) -> tuple[Any, ...]:
        return sites[1:], parts, n_heads, torch.from_numpy(code[rows.start : rows.stop]), memo

    for rows, totals in reductions(
        model, prompts, sites, contributions.heads, args, layers=chosen, prompts_per_chunk=per_chunk,
        batch_size=batch_size, start=sums.done, progress=progress, desc="heads",
    ):  # fmt: skip
        for name, total in totals.items():
            sums.add(name, total.numpy())
        sums.commit(rows.stop)
    n = np.bincount(code).astype(np.float64)
    first = sums["first"] / n[:, None, None, None]
    mean = np.stack([first[e, e] for e in range(len(n))])
    others = (first.sum(0) - mean) / (len(n) - 1)
    variance = sums["second"] / n[:, None, None] - mean**2
    dims = (label, "layer", "head")
    result = xr.Dataset(
        {
            "mean": (dims, mean),
            "std": (dims, np.sqrt(np.maximum(variance, 0))),
            "contrast": (dims, mean - others),
            "baseline": (dims[:2], sums["baseline"] / n[:, None]),
            "n": (label, n.astype(np.int64)),
        },
        {label: np.array(values), "layer": chosen, "head": np.arange(n_heads)},
        plain({
            "method": "head contribution: projection minus projection without the head, same layer, last prompt token",
            "sign": "positive = the head raises the projection; removing it lowers it",
            "label": label, "readout": readout,
            "readout_site": ", ".join(dict.fromkeys("resid_mid" if has else "attn_out" for has in has_mid)),
            "direction_sublayer": ", ".join(dict.fromkeys(_sublayer(has) for has in has_mid)),
            "form": model.sites.form, "residual_scale": model.sites.scale,
            "post_norm": int(post_norm), "n_prompts": len(prompts), **source,
        }),
    )  # fmt: skip
    if out is not None:
        save(result, out, "heads")
    return result


def _sublayer(has_mid: bool) -> str:
    return "resid_mid" if has_mid else "resid_post"


def _layer(model: LanguageModel, layer: int, readout: str, v: Tensor) -> contributions.HeadLayer:
    """How one layer is read, as `emotrace.traced.contributions.heads` takes it.

    The residual site read beside z is ``resid_mid``, ``resid_pre`` (post-LN), or none (parallel); the norm is that of the
    normed read-out, or LN1 of a post-LN layer.
    """
    found = spec(model, "z", layer)
    if not model.sites.has("resid_mid", layer):
        return contributions.HeadLayer(found, v, None, None)
    address = model.sites.address("resid_mid", layer)
    if address.kind != "mid":
        return contributions.HeadLayer(found, v, "resid_pre", envoy(model, address.path))
    path = reading_norm_path(model, layer) if readout == "normed" else None
    return contributions.HeadLayer(found, v, "resid_mid", None if path is None else envoy(model, path))
