"""Entries: where the residual that a layer is given is already there, as the output of a module before it.

What a layer is given comes with everything else that its caller hands over, a key-value cache among it. Where values cross to
another process by copies, a read of that input would leave the layer with a copy of the cache, so that what it adds is lost. The
output before it carries the residual alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from emotrace.sites.address import Address
from emotrace.sites.attached import Sites
from emotrace.sites.equations import deviation, rows
from emotrace.sites.probe import Call, Change, ModuleSide, Recording, record

AFTER = 0.5
"""Of an output that is at once an entry: it is read and written after everything that sees the output as such."""


def moved_out(sites: Sites, real: nn.Module, probed: nn.Module, ids: Tensor, recording: Recording) -> Sites:
    """``resid_pre`` of every layer at the output before it, where that is the same value, with the same consequences.

    Where what a layer is given is the sum of two outputs (a token's and its position's), or a multiple of one, it is set by the
    last of them, and read where the layer's first module takes it.

    Args:
        sites: of the model, with ``resid_pre`` at the inputs of its layers.
        real: the model.
        probed: its twin, or the model itself.
        ids: of the probe.
        recording: of what was probed.
    """
    there = {path for path, _ in real.named_modules()}
    new: dict[int, Address] = {}
    inputs: dict[ModuleSide, Change] = {}
    outputs: dict[ModuleSide, Change] = {}
    for layer, old in sites.addresses.get("resid_pre", {}).items():
        given = recording.at(old.path)[0].inp
        if layer is None or old.side != "input" or given is None:
            continue
        within = _within(recording, old, given)
        mid = sites.addresses.get("resid_mid", {}).get(layer)
        if within is not None and mid is not None and mid.base is not None:
            sites.addresses["resid_mid"][layer] = replace(mid, base=replace(within, kind="base"))
        found = _before([c for c in recording.calls if c.path in there], recording.at(old.path)[0], old, given, within)
        if found is not None:
            new[layer] = found
            inputs[old.path, "input"] = _noise(layer, given)
            outputs[found.path, "output"] = _noise(layer, given, found.scale)
    if new and _alike(probed, ids, recording, inputs, outputs):
        for layer, address in new.items():
            sites.addresses["resid_pre"][layer] = address
            mid = sites.addresses.get("resid_mid", {}).get(layer)
            if address.kind in ("plain", "base") and mid is not None and mid.base is not None:
                sites.addresses["resid_mid"][layer] = replace(mid, base=replace(address, kind="base"))
    return sites


def _before(calls: list[Call], layer: Call, old: Address, given: Tensor, within: Address | None) -> Address | None:
    """The last output before a layer that is what the layer is given, the second of two that sum to it, or a part of it."""
    once = {path for path, n in Counter(c.path for c in calls).items() if n == 1}
    before = [c for c in calls if 0 <= c.order_out < layer.order_in and c.path in once]
    sized = [c for c in before if c.out is not None and c.out.numel() == given.numel()]
    alike = sorted((c for c in sized if _flat(c.out).shape == _flat(given).shape), key=lambda c: -c.order_out)
    for call in alike:
        if _equal(call.out, given):
            return _at(old, call)
    pairs = ((a, b) for b in alike for a in alike if a.order_out < b.order_out and within is not None)
    for first, second in pairs:
        if _equal(_flat(first.out) + _flat(second.out), given):  # in the model's own numbers
            base = replace(_at(old, first), kind="base")
            return replace(_at(old, second), kind="mid", scale=1.0, base=base, mirror=within)
    for call in alike if within is not None else ():
        ratio = _flat(given).double() / _flat(call.out).double()
        scale = float(np.float32(ratio[torch.isfinite(ratio)].median())) if bool(torch.isfinite(ratio).any()) else 0.0
        if scale > 0 and bool((ratio - scale).abs().max() <= 1e-5 * scale):
            return replace(_at(old, call), kind="scaled", scale=scale, mirror=within)
    return None


def _within(recording: Recording, old: Address, given: Tensor) -> Address | None:
    """The first module of a layer that takes what the layer is given, and no cache."""
    for call in recording.under(old.path):
        if not call.cached and _equal(call.inp, given):
            flat, aliased = call.inp is not None and call.inp.ndim == 2, "input" in call.overwritten
            return replace(old, path=call.path, flat=flat, order=call.order_in, overwritten=aliased)
    return None


def _equal(value: Tensor | None, given: Tensor) -> bool:
    """Whether they are the same rows."""
    return value is not None and value.numel() == given.numel() and torch.equal(_flat(value), _flat(given))


def _flat(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.reshape(-1, value.shape[-1])


def _at(old: Address, call: Call) -> Address:
    flat = call.out is not None and call.out.ndim == 2
    return replace(
        old, path=call.path, side="output", index=call.index, flat=flat, order=call.order_out + AFTER,
        overwritten="output" in call.overwritten,
    )  # fmt: skip


def _noise(seed: int, given: Tensor, scale: float = 1.0) -> Change:
    return partial(_changed, seed, 0.1 * float(given.float().std()) / scale)


def _changed(seed: int, size: float, value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(value.numel(), generator=generator).reshape(value.shape)
    return value + (size * noise).to(value.device, value.dtype)


def _alike(
    probed: nn.Module,
    ids: Tensor,
    recording: Recording,
    inputs: dict[ModuleSide, Change],
    outputs: dict[ModuleSide, Change],
) -> bool:
    """Whether changes at the inputs of layers and at the outputs before them leave the same."""
    last = max(recording.calls, key=lambda c: c.order_out).path
    ends = [record(probed, ids, changes).at(last)[0].out for changes in (inputs, outputs)]
    if ends[0] is None or ends[1] is None or ends[0].shape != ends[1].shape:
        return False
    error, tolerance = deviation(rows(ends[0]), ends[1])
    return error <= tolerance
