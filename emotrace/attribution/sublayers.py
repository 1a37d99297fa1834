"""Sublayers: how strongly the output of every attention and MLP block drives the emotion that the stack ends in.

The residual after a sublayer is shifted along that sublayer's own direction of an emotion, at the last prompt token, and
the projection of the last layer on the emotion's reference direction is read::

    s_e(δ) = ⟨read-out at the last token, v_ref_e⟩          influence = d s_e / d δ  at δ = 0, mean over prompts
    finite(α) = (mean s_e(α·σ) − mean s_e(0)) / (α·σ)        σ = mean RMS of the residual after the sublayer

The derivative is exact and comes from one forward and one backward pass per emotion for all sublayers; `finite` is what
the original measured, with one forward for every sublayer, dose and emotion. They agree where s_e is linear in δ.

Source: arXiv 2510.11328 (sublayer importance).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from emotrace import arguments, disk, provenance
from emotrace.arguments import BatchSize
from emotrace.attribution.backward import Backward, Shifted, cells, residuals
from emotrace.attribution.central import Central
from emotrace.attribution.files import kept
from emotrace.attribution.finite_doses import DosedShifts, ReadAlong, Uses, finite_sums
from emotrace.attribution.reference import local_directions, matched, reference_direction, stable_block
from emotrace.attribution.weights import chosen_layers
from emotrace.datasets import Prompts, PromptsLike
from emotrace.disk import plain as json_of
from emotrace.files import to_folder
from emotrace.forwards import beginnings
from emotrace.forwards.entering import keeping
from emotrace.forwards.metrics import differentiable
from emotrace.forwards.rows import asked
from emotrace.forwards.streams import origin
from emotrace.forwards.sums import Sums
from emotrace.identity import versions
from emotrace.labels import EmotraceError, unknown
from emotrace.planned import DryPasses, Steps, planned
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, Sites

CHUNK = 256
"""Prompts between two commits."""
PLACE = "sublayer_influence"
READOUTS = ("resid_post", "final_norm")
LIMITS = {True: "exact derivative at dose 0", False: "central differences of small doses (the server keeps no graph)"}


@planned
@typed
def sublayer_influence(
    model: LanguageModel,
    plain: PromptsLike,
    directions: xr.DataArray,
    *,
    reference: xr.DataArray | None = None,
    doses: Sequence[float] = (),
    readout_site: str = "resid_post",
    label: str = "emotion",
    accepted: Iterable[str] | None = None,
    layers: Iterable[int] | int | None = None,
    sigma: xr.DataArray | None = None,
    align: bool = False,
    batch_size: BatchSize = 32,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryPasses, xr.Dataset]:
    """Influence of every sublayer on the read-out of each label: the exact small-dose limit, and finite doses.

    Plain prompts do not name an emotion, so they are the same for all labels: one forward serves all of them. What is
    shifted is the residual right after the sublayer: 1/c is added to the output of a sublayer in a residual of scale c; in
    post-LN models the output of its norm is shifted. In parallel layers both sublayers shift ``resid_post``,
    along its direction, and have the same influence by construction. The attrs and ``read_at`` say so.
    ``sublayer_influence.plan(…)`` says what would be done (`emotrace.planned.DryPasses`).

    Args:
        model: from `emotrace.load`.
        plain: prompts without the emotion; where they carry ``label`` (`Prompts.for_each`), each counts for its own only.
        directions: ``[label, layer, sublayer, dim]``, of `emotrace.directions.centered_mean`.
        reference: ``[label, dim]``, of `reference_direction`; None takes that of `stable_block`.
        doses: finite doses α in units of σ, e.g. ``(0.1, 0.3, 0.5, 0.7)``; each costs a forward per sublayer.
        readout_site: ``resid_post`` of the last layer, the space of the directions, or ``final_norm`` after it (the original's,
            whose reference is fitted before the norm).
        label: the dim of ``directions`` that tells labels apart.
        accepted: keys of accepted prompted replies (``{plain key}__{label}``): only their plain prompts count for a label.
        layers: 0-based; None for every layer that has both sublayers and directions.
        sigma: σ as ``[layer, sublayer]`` over ``resid_mid, resid_post``, e.g. of `emotrace.directions.mean_rms` on the
            prompts with the emotion (the original's); None measures it on these prompts.
        align: turn local directions round that point away from the reference, as the original did (see
            `local_directions` for why not).
        batch_size: prompts per forward, or ``auto`` for what fits.
        out: folder for running sums and the result; a killed run continues there and ends with the same bits.
        progress: show a bar on stderr.

    Returns:
        Dataset: ``influence, std [label, layer, sublayer]`` (std over prompts, ddof 0), ``finite [dose, label, layer,
        sublayer]`` where doses are given, ``sigma [layer, sublayer]``, ``base, n [label]`` (mean s_e without a shift,
        number of prompts); coordinates ``read_at, shifted_at [layer, sublayer]`` and ``flipped``. Sublayers ``attn_out,
        mlp_out``. Positive: more of this output along its direction raises the projection on the reference.

    Raises:
        EmotraceError: before anything runs, for prompts, directions, layers or doses that do not fit the model or each
            other; for sums of another run in ``out``.
    """
    arguments.batch("batch_size", batch_size)
    if out is not None:
        to_folder(out)
    prompts, sites = Prompts.of(plain), model.sites
    batch_size = asked(model, batch_size, prompts, begun=None if out is None else Path(out, "influence_sums.json"))
    if label not in getattr(directions, "dims", ()):
        raise unknown("label dim", label, getattr(directions, "dims", ()), "sublayer_influence(directions=…)")
    if directions.sizes.get("dim") != sites.d_model:
        raise EmotraceError(
            f"the directions are {directions.sizes.get('dim')} wide, {sites.model_class} is {sites.d_model}: "
            "not of this model?"
        )
    if readout_site not in READOUTS:
        raise unknown("readout", readout_site, READOUTS, "sublayer_influence")
    at = ("resid_post", sites.n_layers - 1) if readout_site == "resid_post" else ("final_norm", None)
    sites.address(*at)  # refuses what the model lacks
    doses = _doses(doses)
    chosen = chosen_layers(model, ["attn_out", "mlp_out"], layers, directions, PLACE)
    wanted = cells(sites, chosen)
    block = "given"
    if reference is None:
        places = stable_block(directions)
        reference, block = reference_direction(directions, places), json.dumps(places)
    elif "block" in reference.attrs:
        block = str(reference.attrs["block"])
    provenance.check(reference, sites, f"{PLACE}(reference=…)")
    provenance.check(sigma, sites, f"{PLACE}(sigma=…)")
    covectors = matched(reference, directions, label, "sublayer_influence(reference=…)")
    without = [layer for layer in chosen if not sites.has("resid_mid", layer)]
    local = local_directions(directions, chosen, without, reference if align else None)
    along = local.stack(cell=("layer", "sublayer")).transpose("cell", label, "dim").values
    given = None if sigma is None else _sigma(sigma, wanted)
    values = local[label].values.tolist()
    uses = _uses(prompts, sites.encoder.ids(prompts), label, values, accepted)
    sequences, counts = uses.sequences, uses.counts
    names = {tuple(ids): p.key for p, ids in zip(prompts, sites.encoder.ids(prompts), strict=True)}
    yield lambda: DryPasses(len(sequences), sum(map(len, sequences)), len(values), len(wanted), len(doses))
    source = {**origin(model, prompts), "directions_digest": disk.digest(directions)}
    settings = {
        **source, "method": PLACE, "versions": versions(), "readout": readout_site, "labels": values, "layers": chosen,
        "counts": disk.digest([sequences, counts]), "reference": disk.digest(covectors),
        "align": align, "batch_size": batch_size,
    }  # fmt: skip
    exact = differentiable(model)
    settings |= {} if exact else {"derivative": "central differences"}
    sums = Sums(out, settings, "influence_sums")
    if sums.done < len(sequences):
        if exact:
            slopes: Backward | Central = Backward(model, wanted, at, covectors, along, sequences, names)
        else:
            slopes = Central(model, wanted, at, covectors, along, names)
        with keeping(model, out):
            _accumulate(slopes, uses, sums, batch_size, progress)
    n = counts.sum(1)
    shape = (len(values), len(chosen), 2)
    mean = sums["slope"] / n[:, None]
    deviation = np.sqrt(np.maximum(sums["square"] / n[:, None] - mean**2, 0.0))
    measured = sums["rms"] / counts.sum()
    after = residuals(wanted)
    sigmas = given if given is not None else np.array([measured[after.index((c.layer, c.residual))] for c in wanted])
    grid = (label, "layer", "sublayer")
    data: dict[str, Any] = {
        "influence": (grid, mean.reshape(shape)),
        "std": (grid, deviation.reshape(shape)),
        "sigma": (grid[1:], sigmas.reshape(shape[1:])),
        "base": ((label,), sums["score"] / n),
        "n": ((label,), n),
    }
    coords: dict[str, Any] = {name: local[name] for name in (label, "layer", "sublayer", "read_at", "flipped")}
    coords["shifted_at"] = (grid[1:], np.array([c.site for c in wanted]).reshape(shape[1:]))
    if doses:
        running = Sums(out, {**settings, "doses": list(doses), "sigma": sigmas, "reruns": "last token"}, "finite_sums")
        shifts, read = DosedShifts(wanted, along, sigmas), ReadAlong(*at, covectors)
        with keeping(model, out):
            found = finite_sums(model, uses, shifts, read, doses, running, batch_size, progress)
        slope = (found[1:].reshape(len(doses), len(wanted), -1) - found[0]) / n
        slope = slope / (np.array(doses)[:, None, None] * sigmas[None, :, None])
        data["finite"] = (("dose", *grid), slope.transpose(0, 2, 1).reshape(len(doses), *shape))
        coords["dose"] = list(doses)
    about = {
        "method": PLACE,
        "sign": "positive = more of this output along its own direction raises the projection on the reference",
        "limit": f"influence: {LIMITS[exact]}; finite: (mean s(dose) - mean s(0)) / (dose * sigma)",
        "label": label, "readout": f"{readout_site} of the last layer" if readout_site == "resid_post" else "final_norm",
        "position": "last", "shift": _shift(sites), "form": sites.form, "residual_scale": sites.scale,
        "reference_block": block, "align": int(align), "sigma_from": "these prompts" if sigma is None else "given",
        "n_prompts": len(sequences), **source,
    }  # fmt: skip
    result = xr.Dataset(data, coords, json_of(about))
    return kept(result, out, "influence")


def _accumulate(
    backward: Backward | Central,
    uses: Uses,
    sums: Sums,
    batch_size: int,
    progress: bool,
) -> None:
    """Add what is not yet in the sums: Σ derivative, Σ derivative², Σ projection per label, Σ RMS per residual."""
    sequences = uses.sequences
    with progress_bar(total=len(sequences), desc="influence", unit="prompt", enabled=progress) as bar:
        bar.update(sums.done)
        whole = range(0, len(sequences), CHUNK)
        for piece in sums.left(range(at, min(at + CHUNK, len(sequences))) for at in whole):
            start, stop = piece.start, piece.stop
            lengths = [len(ids) for ids in sequences[start:stop]]
            for batch in beginnings.batches(backward.model, lengths, batch_size):
                rows = [start + i for i in batch]
                slopes, scores, sizes = backward([sequences[i] for i in rows])
                weights = uses.counts[:, rows].astype(np.float64)
                sums.add("slope", np.einsum("ecb,eb->ec", slopes, weights))
                sums.add("square", np.einsum("ecb,eb->ec", slopes**2, weights))
                sums.add("score", (scores * weights).sum(1))
                sums.add("rms", sizes @ weights.sum(0))
                bar.update(len(rows))
            sums.commit(stop)


def _uses(
    prompts: Prompts, ids: list[list[int]], label: str, values: Sequence[Any], accepted: Iterable[str] | None
) -> Uses:
    """Different token sequences, and how often each counts for each label.

    Raises:
        EmotraceError: for a label that has no direction, or one without a prompt.
    """
    if isinstance(accepted, (str, bytes)):
        raise EmotraceError(f"accepted={accepted!r} is one string; give an iterable of keys.")
    keys = None if accepted is None else {str(key) for key in accepted}
    labelled = label in prompts.label_names
    found: dict[tuple[int, ...], np.ndarray] = {}
    for prompt, sequence in zip(prompts, ids, strict=True):
        own = prompt.labels.get(label)
        if labelled and own not in values:
            raise unknown(f"{label} of prompt {prompt.key!r}", own, values, "sublayer_influence")
        count = found.setdefault(tuple(sequence), np.zeros(len(values), dtype=np.int64))
        for i, value in enumerate(values):
            key = prompt.key if labelled else f"{prompt.key}__{value}".replace("/", "_")
            count[i] += (not labelled or own == value) and (keys is None or key in keys)
    used = [sequence for sequence in sorted(found, key=len, reverse=True) if found[sequence].any()]
    counts = np.array([found[sequence] for sequence in used]).reshape(len(used), len(values)).T
    for value, n in zip(values, counts.sum(1), strict=True):
        if not n:
            example = prompts[0].key if labelled else f"{prompts[0].key}__{value}"
            raise EmotraceError(f"no (accepted) prompt counts for {label} {value!r}; its keys are such as {example!r}.")
    return Uses([list(sequence) for sequence in used], counts, label, values)


def _doses(doses: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(dose) for dose in doses)
    if len(set(found)) != len(found) or any(not np.isfinite(dose) or dose == 0 for dose in found):
        raise EmotraceError(f"sublayer_influence(doses={doses}): doses are different numbers, not zero.")
    return found


def _sigma(sigma: xr.DataArray, wanted: Sequence[Shifted]) -> np.ndarray:
    """σ of every cell.

    Raises:
        EmotraceError: for missing dims or places, or a σ that is not positive.
    """
    if set(getattr(sigma, "dims", ())) != {"layer", "sublayer"}:
        raise EmotraceError("sigma has the dims (layer, sublayer), with resid_mid and resid_post as sublayers.")
    found = []
    for cell in wanted:
        for dim, value in (("layer", cell.layer), ("sublayer", cell.residual)):
            if value not in sigma[dim].values.tolist():
                raise unknown(f"{dim} of sigma", value, sigma[dim].values.tolist(), "sublayer_influence(sigma=…)")
        found.append(float(sigma.sel(layer=cell.layer, sublayer=cell.residual)))
    if not all(np.isfinite(s) and s > 0 for s in found):
        raise EmotraceError("sublayer_influence(sigma=…): every σ is a positive number.")
    return np.array(found)


def _shift(sites: Sites) -> str:
    """What is shifted, in words."""
    shift = "the residual after the sublayer"
    shift += {"post-ln": " (the output of its norm)", "parallel": " (resid_post for both)"}.get(sites.form, "")
    scaled = sites.form != "post-ln" and sites.scale != 1.0
    return shift + (f", by 1/c at its output (c = {sites.scale:.6g})" if scaled else "")
