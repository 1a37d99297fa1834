"""Setting: the sizes of one run of the spine's benchmarks, and a line of their table."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks import work
from experiments.benchmarks.timing import Ratio


@dataclass(frozen=True)
class Setting:
    """Sizes of one run of the benchmarks.

    Attributes:
        quick: tiny models and few prompts.
        repetitions: measured turns of each ratio.
        folder: temporary folder.
    """

    quick: bool
    repetitions: int
    folder: Path

    @property
    def large(self) -> dict[str, Any]:
        """Configuration of the random Llama (79 M parameters)."""
        return work.QUICK if self.quick else work.LARGE

    def fresh(self, name: str) -> Path:
        """A path inside the folder at which nothing lies."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path


@dataclass(frozen=True)
class Answer:
    """One line of the table."""

    question: str
    ratio: Ratio
    target: float | None
    note: str = ""

    def __str__(self) -> str:
        r = self.ratio
        target = "–" if self.target is None else f"≤ {self.target}"
        met = "–" if self.target is None else "yes" if r.median <= self.target else "**no**"
        return f"| {self.question} | {r.median:.3f} ({r.low:.3f} – {r.high:.3f}) | {target} | {met} |"
