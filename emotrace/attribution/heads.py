"""Heads: what each attention head contributes to the projection on an emotion's direction, exactly, from one forward.

Zero-ablating head h of layer l changes ``resid_mid`` of the same layer and token by nothing but what h writes there, so no
second forward is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from emotrace import disk
from emotrace.arguments import BatchSize
from emotrace.attribution import stored, summed
from emotrace.attribution.files import kept
from emotrace.datasets import Prompts, PromptsLike
from emotrace.labels import SUBLAYERS
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store.asked import of_acts

if TYPE_CHECKING:  # it imports torch, which scores of stored activations do without
    from emotrace.forwards.passes import Finish, Reduction

PLACE = "head_contributions"


@of_acts(stored.heads)
@planned
@typed
def head_contributions(
    model: LanguageModel,
    prompts: PromptsLike,
    directions: xr.DataArray,
    *,
    label: str = "emotion",
    accepted: Iterable[str] | None = None,
    head_readout: str = "residual",
    layers: Iterable[int] | int | None = None,
    batch_size: BatchSize = 32,
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
    read-outs are the same.

    ``head_contributions(acts, covectors, *, accepted, layers, out)`` scores stored activations (of `emotrace.capture`) with
    `attribution.covectors`, and runs no model; label and read-out are those of the covectors. A prompt with several rows (a span,
    a reply) counts as the mean over its rows: first over a prompt's rows, then over prompts; ``n`` counts prompts,
    ``attrs["n_rows"]`` rows. Without ``resid_mid`` among what is stored there is no ``baseline``; where a norm follows, the store
    must hold what it divides by (``capture(…, components=True)``). Products of stored numbers are float32: within 1e-6 of the
    largest score of what a model and prompts give, the same bits from a store and from memory. Of edited activations it warns.

    ``head_contributions.plan(…)`` says what would be done (`emotrace.planned.DryRows`).

    Args:
        model: from `emotrace.load`.
        prompts: with the emotion asked; each carries ``label``.
        directions: ``[label, layer, sublayer, dim]`` of `directions.centered_mean`; used as unit vectors.
        label: the label that is contrasted.
        accepted: keys of the prompts to use; None for all.
        head_readout: ``residual``, or ``normed``: the input of the MLP, as EmotionCircuits read it.
        layers: 0-based layers; None for all that have heads and directions.
        batch_size: prompts per forward, or ``auto`` for what fits.
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
    from emotrace.forwards.passes import one_pass
    from emotrace.forwards.streams import accepted_only

    prompts = accepted_only(prompts, accepted)
    reduction = heads_reduced(model, prompts, directions, label, head_readout, layers)
    found = yield from one_pass(
        model, prompts, reduction, method=PLACE, batch_size=batch_size, out=out, progress=progress
    )
    return kept(found, out, "heads")


def heads_reduced(
    model: LanguageModel,
    prompts: Prompts,
    directions: xr.DataArray,
    label: str,
    head_readout: str,
    layers: Iterable[int] | int | None,
) -> Reduction:
    """The sums of a pass that `head_contributions` is made of; every prompt counts.

    Args:
        model: from `emotrace.load`.
        prompts: that pass.
        directions: ``[label, layer, (sublayer,) dim]``.
        label: of the directions and the prompts.
        head_readout: ``residual``, or ``normed``: the input of the MLP.
        layers: that are scored; None for all that have heads and directions.
    """
    import torch

    from emotrace.attribution.weights import heads_read, weighed
    from emotrace.forwards.passes import Reduction
    from emotrace.forwards.streams import codes, origin
    from emotrace.traced import contributions

    chosen, values, parts, about = heads_read(model, directions, label, layers, head_readout, PLACE)
    code = codes(prompts, label, values, PLACE)
    read = {part.residual for part in parts if part.residual is not None}
    residual = [site for site in SUBLAYERS if site in read]
    n_heads = model.sites.size("z", chosen)["head"]
    source = {**origin(model, prompts), "directions_digest": disk.digest(directions)}
    memo: dict[str, Any] = {}

    def args(rows: range) -> tuple[Any, ...]:
        return residual, parts, n_heads, torch.from_numpy(code[rows.start : rows.stop]), memo

    def begin() -> Finish:
        post_norm = any(weighed(model, contributions.post_normed, [part.spec for part in parts]))
        said = {
            **about, "method": f"{summed.HEADS}, last prompt token", "post_norm": int(post_norm), "n_prompts": len(prompts),
            **source,
        }  # fmt: skip
        return lambda sums: summed.heads(sums, np.bincount(code), summed.Axes(label, values, chosen), said)

    return Reduction(
        name="head",
        at=dict.fromkeys(("z", *residual), chosen),
        function=contributions.heads,
        args=args,
        row_bytes={
            "z": 4 * len(chosen) * model.sites.address("z", chosen[0]).width,
            "residual": 4 * len(chosen) * model.sites.d_model,
        },
        size=8 * len(values) * len(chosen) * (n_heads * (len(values) + 1) + 1),
        settings={**source, "label": label, "labels": values, "layers": chosen, "readout": head_readout},
        begin=begin,
    )
