"""Directions and circuits of ``emotion_circuits.py`` fitted again to other draws of the training skeletons, and what they reach.

An interval over test skeletons alone says nothing of which training skeletons happened to be fitted on. So directions and circuit
are fitted again, out of the same store and without a forward, to other draws, and the test file is answered with each at the
settings that were chosen. A draw holds so many of the N training skeletons, without replacement, that a mean over them varies
about the mean over all as one over a fitting part of n, drawn anew from the population, does about its truth:
1/m = 1/N + 1/n. The searches are not repeated: the settings stay as chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from circuit_chosen import Chosen
from circuit_protocol import fitted
from circuit_study import Study

import emotrace as et
from emotrace import attribution, circuits, replies
from emotrace.datasets import Prompts
from emotrace.judges import Judge
from emotrace.replies import Row

REFITTED = ("steer", "circuit")
"""Arms that something is fitted for."""


def draws(skeletons: Sequence[str], n_fitted: int, n: int, seed: int) -> list[list[str]]:
    """So many draws of skeletons, each of the size that the head of this file says; at least two."""
    names = sorted(skeletons)
    size = max(2, round(1 / (1 / len(names) + 1 / n_fitted)))
    return [sorted(np.random.default_rng([seed, i]).permutation(names)[:size].tolist()) for i in range(1, n + 1)]


@dataclass(frozen=True)
class Refits:
    """How something is fitted, and to what.

    Attributes:
        study: that answers.
        stored: activations of all training prompts.
        acts: their residual stream.
        prompts: all training prompts.
        prompted: their judged replies.
        head_readout: of the covectors.
        tester: judge that reads the replies once more, if it is another than the one that chose.
        options: of `circuits.discover`.
    """

    study: Study
    stored: et.Activations
    acts: et.Activations
    prompts: Prompts
    prompted: list[Row]
    head_readout: str
    tester: Judge
    options: Mapping[str, Any]

    def fit(self, skeletons: Sequence[str]) -> tuple[Any, et.Circuit]:
        """Directions and circuit of a draw."""
        some = self.prompts.where(skeleton_id=list(skeletons))
        good = fitted(self.prompted, set(some.keys)).keys
        dirs = self.study.protocol.directions(self.study.model, self.acts, good)
        covectors = attribution.covectors(self.study.model, dirs, head_readout=self.head_readout)
        found = circuits.discover(
            self.stored.where(skeleton_id=list(skeletons)), covectors, accepted=good, **self.options
        )
        return dirs, found

    def answered(self, some: Sequence[Sequence[str]], plain: Prompts, chosen: Chosen) -> dict[str, list[list[Row]]]:
        """Arm → of each draw its judged and measured replies to the test file.

        Args:
            some: draws of skeletons.
            plain: test prompts that ask for nothing.
            chosen: whose settings are kept.
        """
        goal = plain.for_each(emotion=et.EMOTIONS)
        found: dict[str, list[list[Row]]] = {arm: [] for arm in REFITTED}
        for i, skeletons in enumerate(some, 1):
            dirs, circuit = self.fit(skeletons)
            edits = {
                "steer": self.study.steering(dirs, chosen.steering),
                "circuit": self.study.modulated(circuit, chosen.modulation),
            }
            for arm, of in edits.items():
                name = f"refit_{i}_{arm}"
                rows = self.study.scored(name, self.study.replies(name, goal, of, method=arm, draw=i), plain)
                second = self.tester is not self.study.judge
                found[arm].append(self.study.second_opinion(rows, self.tester) if second else rows)
        return found


def record(
    rows: Sequence[Row], found: dict[str, list[list[Row]]], some: Sequence[Sequence[str]], of: int, verdict: str
) -> dict[str, Any] | None:
    """For report.json: the figures with their intervals, and what was drawn; None without refits."""
    if not some:
        return None
    by_arm = {arm: [row for row in rows if row["method"] == arm] for arm in ("prompt", *found)}
    told = replies.refit_table(by_arm, found, verdict=verdict)
    return {"n": len(some), "skeletons": len(some[0]), "of": of, "settings": "as chosen", **told}


def said(told: dict[str, Any] | None) -> list[str]:
    """A line for each arm."""
    if told is None:
        return []
    lines = [
        f"with directions and circuit fitted to {told['n']} other draws of {told['skeletons']} of {told['of']} training skeletons"
    ]
    for name, found in told["accuracy_fluent"].items():
        lo, hi = found["ci95"]
        sign = "+" if "−" in name else ""
        mean = f"{found['mean']:{sign}.1%}"
        lines.append(f"{name:>16}: {found['value']:{sign}.1%} fluently [{lo:{sign}.1%}, {hi:{sign}.1%}], refits {mean}")
    return lines
