"""The causal curves of ``emotion_circuits.py``: components of every kind ablated, and added, on held-out training skeletons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import circuit_budget
import xarray as xr

import emotrace as et
from emotrace import attribution
from emotrace.datasets import Prompts
from emotrace.sites import LanguageModel


@dataclass(frozen=True)
class Curves:
    """What curves are made of.

    Attributes:
        model: that is measured.
        prompts: of held-out training skeletons, asking for an emotion.
        plain: the same without.
        directions: whose projections are read.
        circuit: whose payload is added.
        scores: kind (``neurons``, ``heads``) → by which components are ranked.
        stored: activations whose means stand where components are ablated.
        options: of the curves.
    """

    model: LanguageModel
    prompts: Prompts
    plain: Prompts
    directions: xr.DataArray
    circuit: et.Circuit
    scores: Mapping[str, xr.Dataset]
    stored: et.Activations
    options: Mapping[str, Any]

    def made(self, skeletons: int, draws: int, out: Path | None = None) -> dict[str, xr.Dataset]:
        """Name → curve, on so many skeletons and with so many random sets."""
        return {
            name: curve(**(arguments if out is None else {**arguments, "out": out / name.replace(" ", "_")}))
            for name, curve, arguments in self._each(skeletons, draws)
        }

    def planned(self, skeletons: int, draws: int) -> int:
        """Reruns that this takes."""
        return sum(curve.plan(**arguments).reruns for _, curve, arguments in self._each(skeletons, draws))

    def within(self, allowed: float | None, path: Path, skeletons: int, draws: int) -> circuit_budget.Cut:
        """How many skeletons and draws fit into so many seconds, by a sample whose time is kept; all of them without a limit."""
        if allowed is None:
            return circuit_budget.Cut(skeletons, draws, float("nan"))
        each = circuit_budget.timed(path, lambda: self.made(1, 1), self.planned(1, 1))
        more = sorted({draws, 1}, reverse=True)
        return circuit_budget.fitting(allowed, skeletons, more, lambda n, d: each * self.planned(n, d))

    def _each(self, skeletons: int, draws: int) -> Sequence[tuple[str, Any, dict[str, Any]]]:
        asked, plain = self.prompts.limit(skeletons), self.plain.limit(skeletons)
        common = {"model": self.model, "directions": self.directions, **self.options, "draws": draws}
        found = []
        for kind, table in self.scores.items():
            taken = {**common, "prompts": asked, "how": "mean", "reference": self.stored.where(key=list(asked.keys))}
            added = {**common, "plain": plain, "differences": self.circuit.payload}
            found += [
                (f"{kind} ablated", attribution.ablation_curve, taken | {"contributions": table}),
                (f"{kind} added", attribution.enhancement_curve, added | {"contributions": table}),
            ]
        return found
