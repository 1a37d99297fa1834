"""Hooks: what a model holds and does under plain torch hooks, as the reference that emotrace is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nnsight
import torch
from torch import Tensor

from emotrace.sites import Address, LanguageModel

Cell = tuple[str, int | None]


def forward_inputs(model: LanguageModel, batch: dict[str, Tensor]) -> dict[str, Any]:
    """What nnsight passes to the module for a batch (it adds position ids where there is padding)."""
    with torch.no_grad(), model.trace(batch) as tracer:
        inputs = nnsight.save(list(model.inputs))
        tracer.stop()
    args, kwargs = inputs
    assert not args, "nnsight passes the batch by keyword"
    return dict(kwargs)


def forward(model: LanguageModel, inputs: dict[str, Any]) -> Tensor:
    """Logits of a plain forward, without a trace."""
    with torch.no_grad():
        return model._module(**inputs).logits.clone()


def recorded(model: LanguageModel, inputs: dict[str, Any]) -> dict[Cell, Tensor]:
    """Every site of every layer by plain hooks; ``resid_mid`` of a sequential residual is the next norm's input."""
    sites = model.sites
    out: dict[Cell, Tensor] = {}
    handles = []
    for site in sites.names:
        for layer, address in sites.addresses[site].items():
            where = address.seen

            def keep(value: Tensor, cell: Cell = (site, layer)) -> None:
                assert cell not in out, f"{cell} is visited twice"
                out[cell] = value.clone()

            handles.append(_hook(model._module, where, keep))
    try:
        with torch.no_grad():
            model._module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    rows = inputs["input_ids"].shape[0]
    for (site, layer), value in out.items():
        where = sites.address(site, layer).seen
        out[site, layer] = value.reshape(rows, -1, value.shape[-1]) if where.flat else value
    return out


@contextmanager
def watched(model: LanguageModel, address: Address | None) -> Iterator[list[Tensor]]:
    """A list that fills with copies of what passes an address."""
    seen: list[Tensor] = []
    handle = None if address is None else _hook(model._module, address, lambda value: seen.append(value.clone()))
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def replaced(model: LanguageModel, address: Address, new: Tensor) -> Iterator[None]:
    """Put ``new`` at an address by plain hooks; for kind ``mid``, ``(new − base) / c``, for ``scaled``, ``new / c``."""
    handles = []
    before: list[Tensor] = []
    if address.kind == "mid":
        assert address.base is not None
        handles.append(_hook(model._module, address.base, lambda value: before.append(value.clone())))

    def swap(value: Tensor) -> Tensor:
        target = new - before.pop() if address.kind == "mid" else new
        target = target / address.scale if address.kind in ("mid", "scaled") else target
        return target.reshape(value.shape).to(value.dtype).clone()

    handles.append(_hook(model._module, address, swap))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: torch.nn.Module, address: Address, act: Any) -> Any:
    """Call ``act`` with the tensor at an address; what it returns, if anything, takes the tensor's place."""
    target = module.get_submodule(address.path)

    def before(_: object, args: tuple, kwargs: dict) -> tuple | None:
        value = args[0] if args else next(iter(kwargs.values()))
        new = act(value)
        if new is None:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): new}

    def after(_: object, args: tuple, output: Any) -> Any:
        if not isinstance(output, (tuple, list)):
            return act(output)
        i = address.index or 0
        new = act(output[i])
        return None if new is None else type(output)([*output[:i], new, *output[i + 1 :]])

    if address.side == "input":
        return target.register_forward_pre_hook(before, with_kwargs=True)
    return target.register_forward_hook(after)
