"""Comparing: inputs to try a model on, and whether two values of it are the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel
from emotrace.testing import tiny


def one_prompt(model: LanguageModel, ids: list[int]) -> dict[str, Tensor]:
    """One prompt as a forward takes it."""
    here = torch.tensor([ids], device=next(model._module.parameters()).device)
    return {"input_ids": here, "attention_mask": torch.ones_like(here)}


def random_ids(model: LanguageModel, n: int, seed: int = 0) -> list[int]:
    """Random tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    low = min(len(tiny.SPECIALS), model.sites.vocab_size - 1)
    return torch.randint(low, model.sites.vocab_size, (n,), generator=generator).tolist()


def middle_layer(model: LanguageModel) -> int:
    """The middle one of the layers that have sites."""
    layers = model.sites.layers("resid_post")
    return layers[len(layers) // 2]


def noise(value: Tensor) -> Tensor:
    """As large as the value, always the same."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
    return drawn * value.float().std().to(value.dtype)


def same(got: Tensor, want: Tensor, what: str) -> None:
    """Equal bit for bit, to a plain hook."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, a plain hook says {tuple(want.shape)}"
    deviation = float((got.detach().double() - want.detach().double()).abs().max())
    assert torch.equal(got, want), f"{what} differs from a plain hook by {deviation:.2e}"


def close(got: Tensor, want: Tensor, what: str) -> None:
    """Equal to the rounding of the dtype, relative to the largest value."""
    eps = torch.finfo(want.dtype).eps
    largest = float(want.double().abs().max())
    deviation = float((got.double() - want.double()).abs().max())
    assert deviation <= 256 * eps * largest, f"{what}: deviates by {deviation:.2e} from values up to {largest:.2e}"


def refusal(act: Callable[[], object]) -> str:
    """What a refusal says; there must be one."""
    try:
        act()
    except EmotraceError as error:
        return str(error)
    raise AssertionError("nothing was refused")
