"""Family truth: one model under plain torch hooks, one un-padded prompt at a time; nothing here asks emotrace for a value."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from emotrace.sites import LanguageModel
from emotrace.testing.hooks import watched

LENGTHS = (12, 5, 9, 9)
SHARED = 6
"""Tokens that the last two prompts begin with alike."""
NEW = 5
"""Tokens of a generated reply."""


def prompts_of(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Random token ids, the last two beginning alike; none of them is a special token of any family."""
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(9, 149, (n,), generator=draw).tolist() for n in lengths]
    return [*ids[:-1], ids[-2][:SHARED] + ids[-1][SHARED:]]


class Truth:
    """A transformers model under plain hooks, one un-padded prompt at a time."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.module, self.sites = model, model._module, model.sites
        self.ids = prompts_of()
        takes = inspect.signature(self.module.forward).parameters
        self.options: dict[str, Any] = (
            {"use_cache": False} if "use_cache" in takes and model.sites.encoder.causal else {}
        )

    def forward(self, ids: Sequence[int], **more: Any) -> Any:
        """The model's output for one prompt."""
        row = torch.tensor([list(ids)])
        with torch.no_grad():
            return self.module(input_ids=row, attention_mask=torch.ones_like(row), **self.options, **more)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """``[token, vocabulary]``."""
        return self.forward(ids).logits[0].float().clone()

    def values(self, ids: Sequence[int], cells: Sequence[tuple[str, int | None]]) -> dict[Any, Tensor]:
        """``[token, width]`` at each (site, layer)."""
        with contextlib.ExitStack() as stack:
            where = {c: self.sites.address(*c) for c in cells}
            seen = {c: stack.enter_context(watched(self.model, a.seen)) for c, a in where.items()}
            self.forward(ids)
        for cell, all_ in seen.items():
            if len(all_) != 1:
                raise AssertionError(f"{cell} is visited {len(all_)} times")
        return {c: s[0].reshape(-1, s[0].shape[-1]) for c, s in seen.items()}

    @contextlib.contextmanager
    def added(self, layer: int, vector: Tensor, first: int, last: int | None) -> Iterator[None]:
        """Add a vector to ``resid_post`` at the indices from ``first`` to before ``last``, with a cache or without.

        With a cache a forward holds the tokens that are new; one that holds more tokens than the step before begins anew.
        """
        address = self.sites.address("resid_post", layer)
        state = {"seen": 0, "width": 0}

        def change(value: Tensor) -> Tensor:
            shape = value.shape
            rows = value.reshape(-1, shape[-1])
            n = rows.shape[0]
            start = state["seen"] if state["seen"] and n < state["width"] else 0
            state["seen"] = start + n
            state["width"] = max(state["width"], n) if start else n
            at = torch.arange(start, start + n)
            chosen = (at >= first) & (at < (last if last is not None else 1 << 30))
            return (rows + chosen[:, None] * vector).reshape(shape).to(value.dtype)

        with hooked(self.module, address, change):
            yield

    def reply(self, ids: Sequence[int]) -> tuple[list[int], float]:
        """Greedy tokens, every one by a whole forward, and the smallest lead of a likeliest token, in spreads of the logits."""
        out, lead, ends = list(ids), float("inf"), self.ends()
        for _ in range(NEW):
            logits = self.logits(out)[-1]
            best = logits.topk(2).values
            lead = min(lead, float((best[0] - best[1]) / logits.std()))
            out.append(int(logits.argmax()))
            if out[-1] in ends:
                break
        return _until(out[len(ids) :], ends), lead

    def theirs(self, ids: Sequence[int], cached: bool) -> list[int]:
        """Greedy tokens of transformers' own ``generate``, whose positions are not those of a forward in some families."""
        row, ends = torch.tensor([list(ids)]), self.ends()
        config = type(self.module.generation_config)(
            max_new_tokens=NEW, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=0, use_cache=cached
        )
        own, self.module.generation_config = (
            self.module.generation_config,
            type(config)(),
        )  # whose settings would fill in
        try:
            with torch.no_grad():
                made = self.module.generate(row, attention_mask=torch.ones_like(row), generation_config=config)
        finally:
            self.module.generation_config = own
        return _until(made[0, len(ids) :].tolist(), ends)

    def ends(self) -> set[int]:
        """End tokens."""
        found = getattr(self.module.generation_config, "eos_token_id", None)
        return set(found if isinstance(found, (list, tuple)) else [] if found is None else [found])


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    at = next((i for i, t in enumerate(tokens) if t in ends), len(tokens))
    return tokens[:at]


@contextlib.contextmanager
def hooked(module: Any, address: Any, change: Any) -> Iterator[None]:
    """Let a function replace the tensor at an address in every forward."""
    target = module.get_submodule(address.path)

    def before(_: Any, args: tuple, kwargs: dict) -> tuple:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: change(kwargs[name])}

    def after(_: Any, args: tuple, output: Any) -> Any:
        if not isinstance(output, (tuple, list)):
            return change(output)
        i = address.index or 0
        return type(output)([*output[:i], change(output[i]), *output[i + 1 :]])

    if address.side == "input":
        handle = target.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = target.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
