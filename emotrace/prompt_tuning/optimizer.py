"""Optimizer: AdamW on one tensor, with or without correction of its bias."""

from __future__ import annotations

import math

import torch

BETAS, EPSILON = (0.9, 0.999), 1e-8
UNCORRECTED_EPSILON = 1e-6


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    With g_t the gradient, m_t = β₁ m_{t−1} + (1 − β₁) g_t and v_t = β₂ v_{t−1} + (1 − β₂) g_t²::

        p ← p − η·λ·p − η · m̂ / (√v̂ + ε),   m̂ = m_t / (1 − β₁ᵗ),  v̂ = v_t / (1 − β₂ᵗ)

    Without correction m̂ = m_t, v̂ = v_t and ε = 1e-6, as BERT was trained and arXiv 2302.09582 tuned its prompts; its
    first steps are then about three times as large.

    Args:
        parameter: changed in place by `step`.
        learning_rate: η.
        weight_decay: λ.
        correct_bias: divide by 1 − βᵗ.
    """

    def __init__(
        self, parameter: torch.Tensor, learning_rate: float, weight_decay: float, correct_bias: bool = True
    ) -> None:
        self.parameter, self.learning_rate, self.weight_decay = parameter, learning_rate, weight_decay
        self.correct_bias = correct_bias
        self.mean, self.square, self.steps = torch.zeros_like(parameter), torch.zeros_like(parameter), 0

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """One step along a gradient."""
        self.steps += 1
        b1, b2 = BETAS
        self.mean.lerp_(gradient, 1 - b1)
        self.square.lerp_(gradient * gradient, 1 - b2)
        rate, root, epsilon = self.learning_rate, self.square.sqrt(), UNCORRECTED_EPSILON
        if self.correct_bias:
            rate, epsilon = rate / (1 - b1**self.steps), EPSILON
            root = root / math.sqrt(1 - b2**self.steps)
        self.parameter.mul_(1 - self.learning_rate * self.weight_decay)
        self.parameter.addcdiv_(self.mean, root + epsilon, value=-rate)
