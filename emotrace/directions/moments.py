"""Moments: count, mean and squared deviations of rows, streamed and merged (Welford 1962; Chan et al. 1979)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Running moments of vectors.

    Attributes:
        n: vectors so far.
        mean: their mean.
        squares: Σ (x − mean)², elementwise.
    """

    n: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, *shape: int) -> Moments:
        """No vectors yet."""
        return cls(0, np.zeros(shape), np.zeros(shape))

    def update(self, block: np.ndarray, axis: int = 0) -> None:
        """Take in a block of vectors along an axis: one Chan merge, whatever its size."""
        if block.shape[axis]:
            mean = block.mean(axis)
            self.merge(
                Moments(
                    block.shape[axis], mean, ((block - np.expand_dims(mean, axis)) ** 2).sum(axis, dtype=np.float64)
                )
            )

    def merge(self, other: Moments) -> None:
        """Take in the moments of other vectors.

        δ = m_b − m_a;  m = m_a + δ n_b / n;  S = S_a + S_b + δ² n_a n_b / n.
        """
        n = self.n + other.n
        if other.n == 0:
            return
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.n / n)
        self.squares = self.squares + other.squares + delta * delta * (self.n * other.n / n)
        self.n = n

    @property
    def variance(self) -> np.ndarray:
        """Unbiased variance; NaN for fewer than two vectors."""
        return self.squares / (self.n - 1) if self.n > 1 else np.full_like(self.squares, np.nan)
