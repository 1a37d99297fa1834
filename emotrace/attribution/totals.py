"""Totals: numbers of stored rows added up by label, float32 over some rows, float64 over all. Pure."""

from __future__ import annotations

import numpy as np

from emotrace.attribution.chunked import RowRun


class Total:
    """Sums over prompts, each as the mean over its rows: float32 over the rows of a piece, float64 over these.

    Args:
        labels: number of labels.
        width: numbers of a row.
    """

    def __init__(self, labels: int, width: int) -> None:
        self.sums = np.zeros((labels, width))
        self._run = np.zeros((labels, width), np.float32)

    def add(self, run: RowRun, values: np.ndarray) -> None:
        """Values ``[row, number]``, times the weight of the rows."""
        for label, rows, first in run.pieces:
            if first:
                np.add.reduce(values[rows], axis=0, out=self._run[label])
            else:
                self.sums[label] += np.add.reduce(values[rows], axis=0)
        if len(run.labels) == len(self.sums):
            self.sums += self._run
        else:
            self.sums[run.labels] += self._run[run.labels]


class SignedTotal:
    """Sums of numbers, and of their positive and negative ones by themselves, as `Total`."""

    def __init__(self, labels: int, width: int) -> None:
        self._all, self._size = Total(labels, width), Total(labels, width)

    def add(self, run: RowRun, values: np.ndarray) -> None:
        """As `Total.add`; the values are overwritten."""
        self._all.add(run, values)
        self._size.add(run, np.abs(values, out=values))  # all at once: rows that lie apart take three times as long

    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the positive numbers and of the negative ones ``[label, number]``, never of the wrong sign by rounding."""
        total, size = self._all.sums, self._size.sums
        high = np.maximum((size + total) / 2, np.maximum(total, 0))
        return high, total - high


def weighed(run: RowRun, values: np.ndarray) -> np.ndarray:
    """Values ``[row, number]`` times each row's share of its prompt, in place."""
    if run.weight is not None:
        values *= run.weight[:, None].astype(np.float32)
    return values
