"""Words: what a server says while it is waited for, on stderr where no bar shows it."""

from __future__ import annotations

import sys
import time

from tqdm.auto import tqdm

from emotrace.secrets import redacted

QUIET = 5.0
"""Seconds of waiting before which nothing is said."""


def say(text: str) -> None:
    """One line on stderr, beside a bar where there is one."""
    tqdm.write(redacted(text), file=sys.stderr)


class Waiting:
    """Says what is waited for: after a while, and again when it changes.

    Args:
        host: who is waited for.
    """

    def __init__(self, host: str) -> None:
        self.host, self.since, self.said = host, time.monotonic(), ""

    def __call__(self, words: str) -> None:
        """Take in what the server says."""
        if words != self.said and time.monotonic() - self.since > QUIET:
            self.said = words
            say(f"{self.host}: {words}")
