"""Masking: a set of neurons taken away at every position, as edits: to zero, their mean, another text's values, or damped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import provenance
from emotrace.datasets import Prompt, Prompts
from emotrace.edits import Ablate, Edit, Scale
from emotrace.forwards.capturing import capture
from emotrace.labels import EmotraceError, Positions, unknown
from emotrace.prompt_tuning.prompts import LABEL, SoftPrompt, as_edits
from emotrace.prompt_tuning.readouts import readout
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

HOWS: Final = ("zero", "mean", "resample", "multiply")
DONOR: Final = "donor"
"""Label of a sequence by which a resampled value is chosen."""


@typed
def mask_edits(
    mask: xr.DataArray,
    how: str = "zero",
    *,
    reference: xr.Dataset | None = None,
    factors: xr.DataArray | None = None,
    positions: Positions = "all",
) -> list[Edit]:
    """A mask as edits of ``neuron``, one for each layer that it touches.

    ``zero`` h ← 0; ``mean`` h ← the mean of the neuron over the tokens of other texts; ``resample`` h ← its value at one token of
    another text, the donor, the same at every position; ``multiply`` h ← f·h, published with f from U[0, 1).

    Args:
        mask: bool ``[layer, unit]``, True where the neuron is masked, with the layers' numbers.
        how: one of `HOWS`.
        reference: of `reference_values`; for ``mean`` and ``resample``.
        factors: f ``[layer, unit]``, e.g. of `rsa.Masks.multipliers`; for ``multiply``.
        positions: policy or span.

    Raises:
        EmotraceError: for an unknown way, dims or a type that is no mask, an empty mask, or one whose values are missing.
    """
    if how not in HOWS:
        raise unknown("masking", how, HOWS, "mask_edits(how=…)")
    if set(mask.dims) != {"layer", "unit"} or mask.dtype != bool:
        raise EmotraceError(f"a mask is bool [layer, unit], not {mask.dtype} {list(map(str, mask.dims))}.")
    if not bool(mask.any()):
        raise EmotraceError("this mask is empty: no neuron is masked.")
    needs = {"mean": ("reference", reference), "resample": ("reference", reference), "multiply": ("factors", factors)}
    name, value = needs.get(how, ("", True))
    if value is None:
        raise EmotraceError(f"mask_edits(how={how!r}) needs {name}=.")
    given = {"mask": mask, **({name: value} if name else {})}
    provenance.together("mask_edits", **given)
    origin = next((found for thing in given.values() if (found := provenance.of(thing))), None)
    edits: list[Edit] = []
    for layer in mask["layer"].values.tolist():
        row = mask.sel(layer=layer)
        units = np.asarray(row["unit"].values)[row.values].tolist()
        if not units:
            continue
        where: dict[str, Any] = {"site": "neuron", "layers": layer, "units": units, "positions": positions,
                                 "origin": origin}  # fmt: skip
        if how == "multiply":
            assert factors is not None
            edits.append(Scale(**where, vector=_of(factors, layer, units)))
        elif how == "zero":
            edits.append(Ablate(**where))
        else:
            assert reference is not None
            edits.append(Ablate(**where, vector=_of(reference["mean" if how == "mean" else "values"], layer, units)))
    return edits


def _of(values: xr.DataArray, layer: int, units: list[int]) -> xr.DataArray:
    try:
        return values.sel(layer=layer, unit=units).drop_vars("layer")
    except KeyError:
        raise EmotraceError(f"mask_edits: there are no values for layer {layer}, units {units[:3]} …") from None


@typed
def reference_values(
    model: LanguageModel, prompt: SoftPrompt, texts: Sequence[str], seed: int = 0, batch_size: int = 8
) -> xr.Dataset:
    """What neurons do under a prompt, unmasked: their mean, and one value of each text.

    Args:
        model: from `emotrace.load`.
        prompt: tuned for it.
        texts: of the training part, so that nothing of the measured texts enters.
        seed: of the tokens drawn.
        batch_size: texts per forward; all their tokens are held in memory at once.

    Returns:
        ``mean`` ``[layer, unit]`` over all tokens of all texts, prompt included, float32; ``values`` ``[donor, layer, unit]``:
        all neurons at one token of each text, drawn with equal chance.

    Raises:
        EmotraceError: without texts, or for a model that the prompt was not tuned for.
    """
    if not texts:
        raise EmotraceError("reference_values(texts=…) is empty.")
    reader, _ = readout(model, prompt)
    laid = reader.layout.texts(texts)
    axes: dict[str, Any] = {}
    rng, total, n = np.random.default_rng(seed), None, 0
    values: list[np.ndarray] = []
    for start in range(0, len(laid), batch_size):
        some = laid[start : start + batch_size]
        firsts = {s.first for s in some}
        items = [Prompt(str(i), token_ids=s.ids, labels={LABEL: prompt.key}) for i, s in enumerate(some)]
        acts = capture(
            model, Prompts(items), "neuron", positions="all", edits=as_edits([prompt], firsts.pop()), batch_size=batch_size,
            progress=False,
        )  # fmt: skip
        x = acts.sel("neuron").transpose("token", "layer", "unit")
        array = np.asarray(x.values, dtype=np.float32)
        total = array.sum(0, dtype=np.float64) + (0.0 if total is None else total)
        n += len(array)
        end = np.cumsum([len(s.ids) for s in some])
        values += [array[e - rng.integers(1, len(s.ids) + 1)] for e, s in zip(end, some, strict=True)]
        axes = {"layer": x["layer"].values, "unit": np.arange(array.shape[-1])}
    assert total is not None
    return xr.Dataset(
        {
            "mean": (("layer", "unit"), (total / n).astype(np.float32)),
            "values": ((DONOR, "layer", "unit"), np.stack(values)),
        },
        coords={DONOR: np.arange(len(values)), **axes},
        attrs={"texts": len(laid), "tokens": n, "seed": seed, **provenance.of(model.sites.identity)},
    )
