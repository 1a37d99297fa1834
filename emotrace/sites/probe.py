"""Probe: one small forward that writes down what every module was given and what it returned, in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from emotrace.labels import EmotraceError

BATCH, TOKENS = 2, 5
ModuleSide = tuple[str, str]
"""``(module path, side)``: the first input of a module, or its output (element 0 of a tuple)."""
Change = Callable[[Tensor], Tensor]


@dataclass
class Call:
    """One call of one module: copies of its first input and of its outputs, and when each was there."""

    path: str
    module: nn.Module
    order_in: int
    inp: Tensor | None
    order_out: int = -1
    outs: tuple[Tensor | None, ...] = ()
    is_tuple: bool = False
    live: list[tuple[str, Tensor, int]] = field(default_factory=list, repr=False)
    cached: bool = False
    """Whether it is given a key-value cache beside its first input."""
    overwritten: set[str] = field(default_factory=set)
    """Sides whose tensor the model changed in place after this call."""

    @property
    def out(self) -> Tensor | None:
        """The output, or element 0 of a tuple."""
        return self.outs[0] if self.outs else None

    @property
    def index(self) -> int | None:
        """Tuple index under which `out` is found."""
        return 0 if self.is_tuple else None

    @property
    def depth(self) -> int:
        """Number of path components."""
        return self.path.count(".") + 1


@dataclass
class Recording:
    """Every call of one probe forward, by order of entry."""

    calls: list[Call] = field(default_factory=list)
    _by_path: dict[str, list[Call]] = field(default_factory=dict, repr=False)

    def under(self, prefix: str) -> list[Call]:
        """Calls of the modules below ``prefix`` (the module itself left out)."""
        return [c for c in self.calls if c.path.startswith(prefix + ".")]

    def at(self, path: str) -> list[Call]:
        """Calls of the module at ``path``."""
        return self._by_path.get(path, [])

    def add(self, call: Call) -> None:
        """Append a call."""
        self.calls.append(call)
        self._by_path.setdefault(call.path, []).append(call)

    def close(self) -> None:
        """Note which of the recorded tensors were changed in place after they were recorded, and let go of them."""
        for call in self.calls:
            call.overwritten = {side for side, tensor, version in call.live if tensor._version != version}
            call.live.clear()


def draw(module: nn.Module, vocab_size: int, avoid: set[int], seed: int = 0) -> Tensor:
    """2 × 5 random token ids, on the device of a model.

    Args:
        module: a transformers model with weights.
        vocab_size: ids are below it.
        avoid: ids not to draw (padding and other special tokens change masks and positions in some families).
        seed: of the ids.
    """
    generator = torch.Generator().manual_seed(seed)
    allowed = [i for i in range(min(vocab_size, 4096)) if i not in avoid]
    chosen = torch.randint(len(allowed), (BATCH, TOKENS), generator=generator)
    return torch.tensor(allowed)[chosen].to(next(module.parameters()).device)


def record(module: nn.Module, ids: Tensor, changes: Mapping[ModuleSide, Change] | None = None) -> Recording:
    """Run a small forward with temporary hooks and return copies of what passed through each module.

    Args:
        module: a transformers model with weights.
        ids: ``[batch, token]``.
        changes: of values on their way; what is recorded is the changed value.

    Raises:
        EmotraceError: if the forward fails.
    """
    clock = itertools.count()
    recording = Recording()
    stack: list[Call] = []

    def before(path: str):
        def hook(mod: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            call = Call(path, mod, next(clock), _copy(first))
            call.cached = any(isinstance(v, Cache) for v in (*args, *kwargs.values()))
            if isinstance(first, Tensor):
                call.live.append(("input", first, first._version))
            recording.add(call)
            stack.append(call)

        return hook

    def after(mod: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = stack.pop()
        call.order_out = next(clock)
        call.is_tuple = isinstance(output, (tuple, list))
        outputs = tuple(output) if call.is_tuple else (output,)
        call.outs = tuple(_copy(o) for o in outputs)
        if outputs and isinstance(outputs[0], Tensor):
            call.live.append(("output", outputs[0], outputs[0]._version))

    handles = [_changing(module, place, change) for place, change in (changes or {}).items()]
    for path, mod in module.named_modules():
        if path and not isinstance(mod, (nn.ModuleList, nn.ModuleDict)):
            handles.append(mod.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(mod.register_forward_hook(after))
    run(module, ids, handles)
    recording.close()
    return recording


def watched(
    module: nn.Module, ids: Tensor, changes: Mapping[ModuleSide, Change], watch: Mapping[ModuleSide, Callable]
) -> None:
    """Run a forward in which some values are changed and others looked at, and nothing is kept.

    Raises:
        EmotraceError: if the forward fails.
    """
    handles = [_changing(module, place, change) for place, change in changes.items()]
    handles += [_changing(module, place, look) for place, look in watch.items()]
    run(module, ids, handles)


def run(module: nn.Module, ids: Tensor, handles: list[Any]) -> None:
    """One forward in eval mode without gradients; hooks are removed after it, and the mode is put back.

    Raises:
        EmotraceError: if the forward fails.
    """
    training = module.training
    try:
        module.eval()
        with torch.no_grad():
            module(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:
        raise EmotraceError(
            f"{type(module).__name__} cannot be probed: a forward of {ids.shape[0]} × {ids.shape[1]} token ids failed "
            f"with {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        module.train(training)


def _changing(module: nn.Module, place: ModuleSide, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """A hook that puts ``change(value)`` in the place of a value; where it returns None, the value stays."""
    path, side = place
    target = module.get_submodule(path)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        name = None if args else next(iter(kwargs), None)
        value = args[0] if args else kwargs.get(name)  # type: ignore[arg-type]
        new = change(value) if isinstance(value, Tensor) else None
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

    def after(_: nn.Module, args: tuple[Any, ...], output: object) -> object:
        several = isinstance(output, (tuple, list))
        value = output[0] if several and output else output
        new = change(value) if isinstance(value, Tensor) else None
        return new if new is None or not several else type(output)((new, *output[1:]))

    if side == "input":
        return target.register_forward_pre_hook(before, with_kwargs=True)
    return target.register_forward_hook(after)


def _copy(value: object) -> Tensor | None:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().cpu()
    return None
