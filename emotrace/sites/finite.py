"""Finite: weights and activations that are NaN or infinite are refused where they are first seen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from emotrace.labels import SITES, EmotraceError
from emotrace.sites.address import Address
from emotrace.sites.equations import held
from emotrace.sites.probe import Recording


def is_finite(value: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite; one pass, without a copy."""
    if not value.numel():
        return True
    if value.element_size() == 1:  # float8 has no order of its own
        value = value.float()
    low, high = torch.aminmax(value.detach())
    return bool(torch.isfinite(low) and torch.isfinite(high))


def refuse_weights(module: nn.Module) -> None:
    """Refuse a model with weights that are not finite.

    Raises:
        EmotraceError: naming the first such parameter.
    """
    bad = [
        name
        for name, p in module.named_parameters()
        if p.is_floating_point() and not p.is_meta and not is_finite(p)
    ]  # fmt: skip
    if bad:
        more = f" ({len(bad)} parameters in all)" if len(bad) > 1 else ""
        raise EmotraceError(
            f"{type(module).__name__}: the weights at {bad[0]!r} are not finite (NaN or infinite){more}. "
            "The checkpoint is damaged, or was saved after training had diverged."
        )


def refuse_values(
    module: nn.Module, recording: Recording, addresses: Mapping[str, Mapping[int | None, Address]] | None = None
) -> None:
    """Refuse a model whose activations on the probe are not finite.

    Args:
        module: that was probed.
        recording: of the probe.
        addresses: of its sites, in whose words the first place is named; None where they are not known.

    Raises:
        EmotraceError: naming the first site and layer, or the first module.
    """
    found = [
        (a.order, f"{site} of layer {layer}" if layer is not None else site)
        for site, by_layer in (addresses or {}).items()
        for layer, a in by_layer.items()
        if site in SITES
        and site != "attn_pattern"
        and (value := held(recording, a)) is not None
        and not is_finite(value)
    ]
    where = min(found)[1] if found else None
    if addresses is None:
        outputs = ((c.order_out, c.path) for c in recording.calls if c.out is not None and not is_finite(c.out))
        where = min(outputs, default=(0, None))[1]
    if where is not None:
        dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
        hint = "" if dtype == "float32" else " Load it with dtype='float32'."
        raise EmotraceError(
            f"{type(module).__name__}: the activations at {where} are not finite (NaN or infinite) on the five tokens of "
            f"the probe, though all weights are, in {dtype}.{hint}"
        )
