"""Rows: how many rows a forward takes: as many as were asked for, or as fit, and never more than so many tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from emotrace import arguments, memory, ranks
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.forwards.entering import backend
from emotrace.sites import LanguageModel
from emotrace.texts import from_json

ROWS: Final = 32
"""Rows of a batch where nobody says, and where nobody knows the free memory."""
MOST_ROWS: Final = 128
"""More rows than these make no forward faster."""
MOST_TOKENS: Final = 16384
"""Of a batch, padding included: `ROWS` prompts of 512 tokens."""
SHARE: Final = 0.25
"""Of the free memory, for one batch."""
LIVE: Final = 8
"""Activations of the model's widest matrix that a forward holds at once."""


def resolved(model: LanguageModel, batch_size: BatchSize, longest: int, held: int = 0) -> int:
    """Rows of a batch: for ``auto`` the power of two, at most `MOST_ROWS`, that fits.

    A row is thought to take, for each of its tokens, keys and values of every layer and a few activations of the widest matrix,
    and the logits of one token.

    Args:
        model: from `emotrace.load`.
        batch_size: rows, or ``auto``.
        longest: tokens of the longest row, those that it will generate included.
        held: numbers that are kept of each token besides, as for derivatives.
    """
    if not isinstance(batch_size, str):
        return batch_size
    if not backend(model).holds(model):
        return ROWS
    weights = [p for p in model._module.parameters() if p.ndim == 2 and model.sites.vocab_size not in p.shape]
    widest = max((max(p.shape) for p in weights), default=model.sites.d_model)
    size, device = model._module.dtype.itemsize, next(model._module.parameters()).device
    row = size * (
        longest * (2 * model.sites.n_layers * model.sites.d_model + LIVE * widest + held) + 2 * model.sites.vocab_size
    )
    fit = int(SHARE * memory.available(device)) // row
    return min(MOST_ROWS, 1 << max(0, fit.bit_length() - 1))


def asked(
    model: LanguageModel,
    batch_size: BatchSize,
    prompts: PromptsLike,
    name: str = "batch_size",
    begun: Path | None = None,
) -> int:
    """Rows of a batch of prompts, as `resolved`: what was asked for, or what fits.

    The rounding of a sum depends on its batches. So for ``auto`` one that is continued has the rows that it was begun with, and
    one that ranks share `ROWS`, whatever memory is free today or elsewhere.

    Args:
        model: from `emotrace.load`.
        batch_size: rows, or ``auto``.
        prompts: replies that they carry follow them.
        name: of the argument.
        begun: file that says with how many rows something is made that is continued; None for nothing.

    Raises:
        EmotraceError: for what is neither.
    """
    arguments.batch(name, batch_size)
    if not isinstance(batch_size, str):
        return batch_size
    rows = None if begun is None else _of(begun)
    if rows is not None:
        return rows
    if ranks.chosen(None, begun, name).of > 1:
        return ROWS
    given = Prompts.of(prompts)
    lengths = (len(i) + len(p.reply_ids or ()) for i, p in zip(model.sites.encoder.ids(given), given, strict=True))
    return resolved(model, batch_size, max(lengths))


def _of(begun: Path) -> int | None:
    """Rows that a file of settings names; one that is damaged is refused by whoever continues it."""
    try:
        found = from_json(begun.read_bytes())
    except (OSError, ValueError):
        return None
    settings = found.get("identity", found) if isinstance(found, dict) else None
    rows = settings.get("batch_size") if isinstance(settings, dict) else None
    return rows if isinstance(rows, int) and rows > 0 else None


def within(rows: int, longest: int) -> int:
    """Rows of a batch whose longest has so many tokens: at least one, at most `MOST_TOKENS` together."""
    return max(1, min(int(rows), MOST_TOKENS // max(1, int(longest))))
