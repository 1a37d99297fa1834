"""Totals: numbers of stored rows added up by label, float32 over some rows, float64 over all. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from emotrace.attribution.chunked import RowRun

SOME = 48
"""Rows that are added up in float32. Equal numbers are off by at most 8e-7 then, and by more the more of them there are."""


class Total:
    """Sums over prompts, each as the mean over its rows: float32 over `SOME` rows, float64 over these.

    Args:
        labels: number of labels.
        width: numbers of a row.
    """

    def __init__(self, labels: int, width: int) -> None:
        self.sums = np.zeros((labels, width))
        self._run = np.zeros((labels, width), np.float32)

    def add(self, run: RowRun, values: np.ndarray) -> None:
        """Values ``[ordered row, number]``, times the weight of the rows."""
        for label, rows, first in _pieces(run):
            self.put(label, values[rows], first)
        self.kept(run)

    def put(self, label: int, values: np.ndarray, first: bool) -> None:
        """A piece of a run; all are in the sums once the run is `kept`."""
        if first:
            np.add.reduce(values, axis=0, out=self._run[label])
        else:
            self.sums[label] += np.add.reduce(values, axis=0)

    def kept(self, run: RowRun) -> None:
        """Every label of a run has been put here."""
        if len(run.parts) == len(self.sums):
            self.sums += self._run
        else:
            for label, *_ in run.parts:
                self.sums[label] += self._run[label]


class SignedTotal:
    """Sums of numbers, and of their positive and negative ones by themselves, as `Total`."""

    def __init__(self, labels: int, width: int) -> None:
        self._all, self._size = Total(labels, width), Total(labels, width)

    def add(self, run: RowRun, values: np.ndarray) -> None:
        """As `Total.add`; the values are overwritten."""
        for label, rows, first in _pieces(run):  # one piece after the other, which stays near a core
            some = values[rows]
            self._all.put(label, some, first)
            self._size.put(label, np.abs(some, out=some), first)
        self._all.kept(run)
        self._size.kept(run)

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the positive numbers and of the negative ones ``[label, number]``, never of the wrong sign by rounding."""
        total, size = self._all.sums, self._size.sums
        high = np.maximum((size + total) / 2, np.maximum(total, 0))
        return high, total - high


def weighed(run: RowRun, values: np.ndarray) -> np.ndarray:
    """Values ``[ordered row, number]`` times each row's share of its prompt, in place."""
    if run.weight is not None:
        values *= run.weight[:, None].astype(np.float32)
    return values


def _pieces(run: RowRun) -> Iterator[tuple[int, slice, bool]]:
    """Rows of a label in pieces of at most `SOME`: the label, which of the ordered rows, whether it is the first."""
    for label, rows, _ in run.parts:
        for at in range(rows.start, rows.stop, SOME):
            yield label, slice(at, min(at + SOME, rows.stop)), at == rows.start
