"""Held: whole prompts among the rows of activations: where each is, and which tokens it has. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from emotrace.datasets import Prompt, Prompts
from emotrace.labels import AGAINST, EmotraceError
from emotrace.store import Activations
from emotrace.store.rows import COLUMNS


class Held:
    """The prompts of activations that were captured with all their tokens.

    Args:
        acts: with the rows of every token of each prompt (``positions="prompt"``).
        place: for messages.
    """

    def __init__(self, acts: Activations, place: str) -> None:
        self.acts, self.place = acts, place
        prompt = acts.column("prompt")
        self.first = np.flatnonzero(np.append(True, prompt[1:] != prompt[:-1])) if len(prompt) else np.zeros(0, int)
        self.count = np.diff(np.append(self.first, len(prompt)))
        self.at = {key: i for i, key in enumerate(acts.column("key")[self.first].tolist())}

    def rows(self, key: str) -> range:
        """Rows of the tokens of a prompt, in order.

        Raises:
            EmotraceError: for a prompt that is not there, or not whole.
        """
        if key not in self.at:
            raise EmotraceError(f"{self.place}: {self.acts.path} holds no prompt {key!r}.")
        start = int(self.first[self.at[key]])
        n = int(self.acts.column("prompt_length")[start])
        there = self.acts.column("position")[start : start + int(self.count[self.at[key]])]
        if len(there) < n or not np.array_equal(there[:n], np.arange(n)):
            raise EmotraceError(
                f"{self.place}: of prompt {key!r} {len(there)} of {n} tokens are held, and all count: capture with "
                "positions='prompt'."
            )
        return range(start, start + n)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids of a prompt."""
        rows = self.rows(key)
        return tuple(self.acts.column("token_id")[rows.start : rows.stop].tolist())

    def prompts(self) -> Prompts:
        """All prompts, as token ids with their labels; without those of what they are compared with."""
        names = [name for name in self.acts.columns if name not in COLUMNS and not name.startswith(AGAINST)]
        found = []
        for key, i in self.at.items():
            labels: dict[str, Any] = {name: self.acts.column(name)[self.first[i]] for name in names}
            found.append(Prompt(key, token_ids=self.ids(key), labels={k: v for k, v in labels.items() if _said(v)}))
        return Prompts(found)

    def texts(self, ids: list[int]) -> list[str]:
        """Texts of token ids that occur."""
        known = self.acts.column("token_id")
        return [str(self.acts.column("token_text")[int(np.flatnonzero(known == i)[0])]) for i in ids]


def _said(value: Any) -> bool:
    """Whether a label was given: what a prompt lacks is "" or NaN in a table."""
    return value != "" and value == value
