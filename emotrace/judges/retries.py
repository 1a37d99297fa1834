"""Retries: how long to wait before a request is sent again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class AgainError(Exception):
    """The request failed in a way that a later one may not; ``wait`` is what the endpoint asked for, in seconds."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


def pause_after(attempt: int, asked: float | None, backoff: float, max_wait: float) -> float:
    """Seconds before the next attempt: min(max_wait, backoff · 2^(attempt−1) · U(0.5, 1)), at least what was asked."""
    own = backoff * 2 ** min(attempt - 1, 30) * random.uniform(0.5, 1.0)
    return min(max_wait, max(own, asked or 0.0))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``retry-after-ms`` or ``Retry-After`` (seconds or an HTTP date) asks for; None where neither does."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                date = parsedate_to_datetime(value)
            except ValueError:
                continue
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        if seconds == seconds:  # not NaN
            return max(0.0, seconds)
    return None
