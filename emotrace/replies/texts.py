"""Texts: what replies look like, with no model: length, variety, exclamation marks, disclaimers. Blanks part words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypedDict

import numpy as np

from emotrace.labels import EmotraceError
from emotrace.signatures import typed

SPECIAL: Final = re.compile(r"<\|?/?(?:s|bos|eos|pad|unk|end|end_of_turn|start_of_turn|eot_id|im_end|endoftext)\|?>")
"""Special tokens that some published texts still hold."""
DISCLAIMER: Final = re.compile(
    r"as an ai\b|language model|i'?m just an ai|i am an ai|do(?:n'?t| not) have (?:personal )?(?:feelings|emotions)"
    r"|as an artificial|as a large",
    re.IGNORECASE,
)
"""Words with which a model says that it is one."""
WIDER: Final = re.compile(
    DISCLAIMER.pattern + r"|do(?:n'?t| not) have personal experiences|as a digital assistant", re.IGNORECASE
)
"""With the phrases that the narrow pattern misses (it reads 2 % where a model says them in other words)."""


def cleaned(text: str) -> str:
    """A text without special tokens and outer blanks."""
    return SPECIAL.sub("", text).strip()


def distinct(text: str, n: int = 1) -> float:
    """Share of distinct n-grams among the lower-case words of a text; NaN for a text shorter than n words.

    1 for a text that never repeats itself; a loop comes near 0.
    """
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


class TextStatistics(TypedDict):
    """Means over texts.

    Attributes:
        n: texts.
        n_empty: blank ones.
        words: of a text, empty ones included.
        distinct_1: share of distinct words, over the texts that have any; None where none has.
        distinct_2: likewise of pairs of words.
        exclamations: exclamation marks of a text.
        disclaimers: share of texts with a disclaimer.
    """

    n: int
    n_empty: int
    words: float
    distinct_1: float | None
    distinct_2: float | None
    exclamations: float
    disclaimers: float


@typed
def response_statistics(texts: Sequence[str], clean: bool = True) -> TextStatistics:
    """Means over texts.

    Args:
        texts: responses alone, without their prompts.
        clean: drop special tokens and outer blanks first.

    Returns:
        `TextStatistics`.

    Raises:
        EmotraceError: for no texts.
    """
    if not len(texts):
        raise EmotraceError("response_statistics takes a list of at least one text.")
    texts = [cleaned(text) for text in texts] if clean else list(texts)
    variety = [_mean(np.array([distinct(text, n) for text in texts])) for n in (1, 2)]
    return {
        "n": len(texts),
        "n_empty": sum(not text.strip() for text in texts),
        "words": float(np.mean([len(text.split()) for text in texts])),
        "distinct_1": variety[0],
        "distinct_2": variety[1],
        "exclamations": float(np.mean([text.count("!") for text in texts])),
        "disclaimers": float(np.mean([bool(DISCLAIMER.search(text)) for text in texts])),
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
