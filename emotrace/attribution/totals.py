"""Totals: numbers of stored rows added up by label, float32 over some rows, float64 over all. Pure."""

from __future__ import annotations

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
        for label, rows, _ in run.parts:
            self.put(label, values[rows])
        self.kept(run)

    def put(self, label: int, values: np.ndarray) -> None:
        """All that a run has of a label; in the sums once the run is `kept`."""
        np.add.reduce(values[:SOME], axis=0, out=self._run[label])
        for at in range(SOME, len(values), SOME):
            self.sums[label] += np.add.reduce(values[at : at + SOME], axis=0)

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
        for label, rows, _ in run.parts:  # one label after the other, which stays near a core
            some = values[rows]
            self._all.put(label, some)
            self._size.put(label, np.abs(some, out=some))
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
