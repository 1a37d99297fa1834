"""Heads: what each attention head contributes to the projection on an emotion's direction, exactly, from one forward.

Zero-ablating head h of layer l changes ``resid_mid`` of the same layer and token by nothing but what h writes there, so no
second forward is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from emotrace.attribution.files import digest, plain, save
from emotrace.attribution.streams import accepted_only, codes, fitting, origin, stream
from emotrace.attribution.sums import Sums
from emotrace.attribution.weights import Norm, Projection, chosen_layers, norm_of, projection, reading_norm, vectors
from emotrace.capturing import capture
from emotrace.labels import EmotraceError, unknown

PLACE = "head_contributions"
READOUTS = ("residual", "normed")
BLOCK_BYTES = 64 << 20
"""What heads write is held for so many prompts of a layer at a time, where a norm makes that necessary."""


def head_contributions(
    model: Any,
    prompts: Any,
    directions: xr.DataArray,
    *,
    label: str = "emotion",
    accepted: Iterable[str] | None = None,
    readout: str = "residual",
    layers: Iterable[int] | int | None = None,
    batch_size: int = 32,
    out: str | Path | None = None,
    progress: bool = True,
    dry_run: bool = False,
) -> Any:
    """How far the projection on each emotion's direction falls when one head is set to zero, read in the same layer.

    importance_h = s(r) − s(r without head h) at the last prompt token, s(r) = ⟨v_e, r⟩, exactly: with w_h = W_O,h z_h,
    c the residual scale, N the norm that is given ``resid_mid`` and LN1, PN the norms of their families::

        residual                          c⟨v, w_h⟩ = z_h · (W_O,hᵀ v)·c
        residual, norm after W_O          c⟨v, PN(o) − PN(o − w_h)⟩
        residual, post-LN                 ⟨v, LN1(pre + attn) − LN1(pre + attn − w_h)⟩
        normed                            ⟨v, N(mid) − N(mid − c·w_h)⟩

    In parallel models, which have no ``resid_mid``, heads are read at ``attn_out`` against the ``resid_post`` direction;
    ``attrs["readout_site"]`` says so. Where the MLP takes ``resid_mid`` without a norm of its own (post-LN, OLMo-2), both
    read-outs are the same.

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
        dry_run: return what would be done (`emotrace.capturing.Dry`).

    Returns:
        Dataset, float64. ``[label, layer, head]``: ``mean`` and ``std`` (ddof 0) over the prompts of e; ``contrast`` = ``mean`` −
        the mean over the prompts of the other labels (each with equal weight) against the same direction.
        ``[label, layer]``: ``baseline`` = mean s(r). ``[label]``: ``n`` prompts. Positive: the head raises the projection.

    Raises:
        EmotraceError: before anything runs, where the model has no heads, for labels, layers or directions that do not
            fit, ``normed`` in a parallel model, or an ``out`` that holds sums of another run.

    Source: arXiv 2510.11328, which ranks by ``mean`` of ``normed``.
    """
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
    sites = ["z", *dict.fromkeys(p.reads for p in parts if p.reads is not None)]
    per_chunk = fitting(4 * len(chosen) * (len(parts[0].projection.weight) + width))
    n_heads = model.sites.n_heads
    if dry_run:
        dry = capture(model, prompts, sites, layers=chosen, positions="last", batch_size=batch_size, dry_run=True)
        size = 8 * len(values) * len(chosen) * (n_heads * (len(values) + 1) + 1)
        return replace(dry, bytes=size, row_groups=-(-len(prompts) // per_chunk))
    source = {**origin(model, prompts), "directions_digest": digest(directions)}
    settings = {"label": label, "labels": values, "layers": chosen, "readout": readout, "per_chunk": per_chunk}
    sums = Sums(out, {"method": PLACE, **source, **settings, "batch_size": batch_size})
    writes = None if any(p.through_norm for p in parts) else torch.stack([_writes(p, n_heads) for p in parts])
    for rows, acts in stream(
        model, prompts, sites, layers=chosen, prompts_per_chunk=per_chunk, batch_size=batch_size, start=sums.done,
        progress=progress, desc="heads",
    ):  # fmt: skip
        z = torch.from_numpy(np.ascontiguousarray(acts.sel("z").values))
        residual = {s: torch.from_numpy(acts.sel("residual", sublayer=s).values) for s in sites if s != "z"}
        _add(sums, torch.from_numpy(code[rows.start : rows.stop]), z, residual, parts, writes)
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
            "post_norm": int(any(p.projection.norm is not None for p in parts)), "n_prompts": len(prompts), **source,
        }),
    )  # fmt: skip
    if out is not None:
        save(result, out, "heads")
    return result


def _sublayer(has_mid: bool) -> str:
    return "resid_mid" if has_mid else "resid_post"


@dataclass(frozen=True)
class _Layer:
    """How one layer is read.

    Attributes:
        projection: W_O.
        v: directions ``[label, d]``.
        reads: residual site read beside z: ``resid_mid``, ``resid_pre`` (post-LN), or None (parallel).
        norm: N of the normed read-out or LN1 of a post-LN layer, else None.
    """

    projection: Projection
    v: Tensor
    reads: Literal["resid_mid", "resid_pre"] | None
    norm: Norm | None

    @property
    def through_norm(self) -> bool:
        """Whether what a head writes goes through a norm before it is read."""
        return self.norm is not None or self.projection.norm is not None


def _layer(model: Any, layer: int, readout: str, v: Tensor) -> _Layer:
    found = projection(model, "z", layer)
    if not model.sites.has("resid_mid", layer):
        return _Layer(found, v, None, None)
    address = model.sites.address("resid_mid", layer)
    if address.kind == "mid":
        return _Layer(found, v, "resid_mid", reading_norm(model, layer) if readout == "normed" else None)
    first = norm_of(model._module.get_submodule(address.path), model.sites.d_model, address.path)
    return _Layer(found, v, "resid_pre", first)


def _writes(part: _Layer, n_heads: int) -> Tensor:
    """W_O,hᵀ v · c, float64 ``[head, head_dim, label]``."""
    u = part.projection.scale * part.projection.along(part.v)
    return u.reshape(len(part.v), n_heads, -1).permute(1, 2, 0).contiguous()


def _add(
    sums: Sums, code: Tensor, z: Tensor, residual: dict[str, Tensor], parts: list[_Layer], writes: Tensor | None
) -> None:
    """Totals of one chunk: z ``[layer, prompt, head, head_dim]``, residual sites ``[layer, prompt, dim]``."""
    n_labels = len(parts[0].v)
    own = torch.nn.functional.one_hot(code, n_labels).double()
    if writes is not None:
        importance = torch.einsum("lbhk,lhke->lhbe", z.double(), writes)
        base = _linear_baseline(code, importance, residual, parts)
    else:
        both = [_through_norms(p, i, z[i], residual) for i, p in enumerate(parts)]
        importance = torch.stack([x for x, _ in both])
        base = torch.stack([s[torch.arange(len(code)), code] for _, s in both])
    sums.add("first", torch.einsum("bp,lhbe->pelh", own, importance))
    mine = importance.gather(-1, code[None, None, :, None].expand(*importance.shape[:3], 1))[..., 0]
    sums.add("second", torch.einsum("bp,lhb->plh", own, mine.square()))
    sums.add("baseline", torch.einsum("bp,lb->pl", own, base))


def _linear_baseline(code: Tensor, importance: Tensor, residual: dict[str, Tensor], parts: list[_Layer]) -> Tensor:
    """s(r) of each prompt on its own label's direction ``[layer, prompt]``."""
    v = torch.stack([p.v for p in parts])[:, code]
    if "resid_mid" in residual:
        return (residual["resid_mid"].double() * v).sum(-1)
    summed = importance.sum(1)[:, torch.arange(len(code)), code]
    for i, p in enumerate(parts):
        if p.projection.bias is not None:
            summed[i] += p.projection.scale * (v[i] @ p.projection.bias.double().cpu())
    return summed


def _through_norms(part: _Layer, i: int, z: Tensor, residual: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Importance ``[head, prompt, label]`` and s(r) ``[prompt, label]`` of one layer, in blocks of prompts."""
    p, device = part.projection, part.projection.weight.device
    v, norm = part.v.to(device), part.norm
    weight = p.matrix.reshape(z.shape[1], z.shape[2], -1)
    step = max(1, BLOCK_BYTES // (8 * z.shape[1] * weight.shape[-1]))
    importance, base = [], []
    for at in range(0, len(z), step):
        block = z[at : at + step].to(device, torch.float32)
        wrote = torch.einsum("bhk,hkd->bhd", block, weight).double()
        branch = p.output(block.flatten(1)).double()
        if p.norm is not None:
            wrote = p.norm(branch)[:, None] - p.norm(branch[:, None] - wrote)
            branch = p.norm(branch)
        if part.reads == "resid_mid":
            r = residual["resid_mid"][i, at : at + step].to(device, torch.float64)
        elif part.reads == "resid_pre":
            r = residual["resid_pre"][i, at : at + step].to(device, torch.float64) + branch
        else:
            r = p.scale * branch
        change = p.scale * wrote
        if norm is not None:
            change = norm(r)[:, None] - norm(r[:, None] - change)
            r = norm(r)
        importance.append(torch.einsum("bhd,ed->hbe", change, v).cpu())
        base.append((r @ v.T).cpu())
    return torch.cat(importance, dim=1), torch.cat(base)
