"""Retries: how long to wait before a request is sent again."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_UNITS: Final = {"ms": 0.001, "mil": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
"""Beginning of a unit → seconds; the first that fits."""
_SPAN: Final = r"(\d+(?:\.\d+)?)\s*(ms|millisec\w*|s|sec\w*|m|min\w*|h|hour\w*)(?![a-z])"
_SPANS: Final = re.compile(rf"(?:{_SPAN}\s*)+", re.IGNORECASE)
_SENTENCE: Final = re.compile(rf"(?:again|retry|wait)\D{{0,30}}({_SPANS.pattern})", re.IGNORECASE)


class AgainError(Exception):
    """The request failed in a way that a later one may not; ``wait`` is what the endpoint asked for, in seconds."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True)
class Patience:
    """How often and how long an answer is waited for.

    Attributes:
        attempts: requests per answer at most, where they fail on the way.
        timeout: seconds for a request.
        backoff: seconds before the second attempt, doubled for each further one, times a random 0.5 to 1.
        max_wait: longest pause in seconds; also where the endpoint asks for more.
    """

    attempts: int
    timeout: float
    backoff: float
    max_wait: float

    def pause_after(self, attempt: int, asked: float | None) -> float:
        """Seconds before the next attempt: min(max_wait, backoff · 2^(attempt−1) · U(0.5, 1)), at least what was asked."""
        own = self.backoff * 2 ** min(attempt - 1, 30) * random.uniform(0.5, 1.0)
        return min(self.max_wait, max(own, asked or 0.0))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``retry-after-ms`` or ``Retry-After`` (seconds or an HTTP date) asks for; None where neither does."""
    for name in ("retry-after-ms", "retry-after"):
        value = headers.get(name)
        if value is None:
            continue
        seconds = seconds_in(value, name)
        if seconds is None:
            try:
                date = parsedate_to_datetime(value)
                seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
            except (ValueError, OverflowError, TypeError):
                continue
        return max(0.0, seconds)
    return None


def seconds_in(value: object, name: str) -> float | None:
    """Seconds that a field asks for: a number, or spans such as ``17s`` and ``1m30s``.

    Args:
        value: of the field.
        name: of the field; a number in one that ends in ``ms`` counts milliseconds.
    """
    if isinstance(value, str):
        if _SPANS.fullmatch(value.strip()):
            return _added(value)
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    return max(0.0, float(value)) * (0.001 if name.endswith("ms") else 1.0)


def seconds_said(sentence: str) -> float | None:
    """Seconds after which a sentence says to try again."""
    found = _SENTENCE.search(sentence)
    return None if found is None else _added(found[1])


def _added(spans: str) -> float:
    found = re.findall(_SPAN, spans, re.IGNORECASE)
    return sum(float(n) * next(s for u, s in _UNITS.items() if unit.lower().startswith(u)) for n, unit in found)
