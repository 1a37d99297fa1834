"""The arms of ``emotion_circuits.py`` that what it claims is held against: how each is made, and its replies to the test file.

* ``prefill_1``, ``_2``, ``_4``: the un-edited model, not asked for an emotion, its reply begun with the commonest first tokens of
  its own accepted prompted replies to the training file. What they reach takes no circuit.
* ``random_steer``, ``random_circuit``, ``wrong_emotion``: random directions and components of equal norm, another emotion's
  direction, at the setting that was chosen for the real thing.
* ``wrong_payload``: another emotion's payload on this emotion's components. Which of the two is read?
* ``random_tuned``, ``shared_set``, ``all_components``: this emotion's payload on random components, on one set for all emotions
  (of each layer as many as the circuit has, those with the highest mean score) and on all, each at a setting of its own search.
* ``ablate``, ``ablate_mean``, ``ablate_resample``, and ``random_`` before each: asked in words, the circuit's (or as many random)
  components set to zero, to their mean, or to what they are in a training prompt of another emotion; all at `ABLATED_AT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from circuit_protocol import TUNED, Setting
from circuit_study import Study

import emotrace as et
from emotrace import replies
from emotrace.datasets import Prompts
from emotrace.labels import ARMS, KINDS, unknown
from emotrace.replies import Row

ALWAYS = ("none", "prompt", "steer", "circuit")
NAMES = tuple(name for name in ARMS if name not in ALWAYS)
PREFILLS = {"prefill_1": 1, "prefill_2": 2, "prefill_4": 4}
"""Arm → first tokens."""
ABLATIONS = {"ablate": "zero", "ablate_mean": "mean", "ablate_resample": "resample"}
ABLATED_AT = "last"
"""Where all ablations act: the values of means and donors are those of a last prompt token. Held at every later token too, they
leave the shipped model no fluent reply (0 of 72 to 4 test skeletons)."""


def named(text: str) -> tuple[str, ...]:
    """The arms of a flag, in their own order: ``all``, ``none``, or names with commas between.

    Raises:
        EmotraceError: for an unknown name.
    """
    asked = {"all": NAMES, "none": ()}.get(
        text.strip(), tuple(part.strip() for part in text.split(",") if part.strip())
    )
    for name in asked:
        if name not in ARMS:
            raise unknown("arm", name, ("all", "none", *NAMES), "--arms")
    return tuple(name for name in NAMES if name in asked)


def tuned(
    names: tuple[str, ...], circuit: et.Circuit, scores: Mapping[str, xr.Dataset], seed: int
) -> dict[str, et.Circuit]:
    """The controls of a circuit that have a search of their own."""
    by = str(circuit.meta["by"])
    ranked = {kind: scores[f"{kind}s"][by] for kind in KINDS if f"{kind}s" in scores}
    make = {
        "random_tuned": lambda: circuit.random(seed + 1, matched=True),
        "shared_set": lambda: circuit.shared(ranked, matched=True),
        "all_components": circuit.whole,
    }
    return {name: make[name]() for name in TUNED if name in names}


@dataclass(frozen=True)
class Answers:
    """The replies of all arms to the test file.

    Attributes:
        study: that answers.
        names: of the arms beside `ALWAYS`.
        asked: prompts that ask for an emotion.
        goal: prompts that do not, one for each emotion.
        draws: of each control that is drawn.
        seed: of the draws.
    """

    study: Study
    names: tuple[str, ...]
    asked: Prompts
    goal: Prompts
    draws: int
    seed: int

    def begun(self, openings: Mapping[str, Mapping[Any, replies.Opening]]) -> list[Row]:
        """Replies that begin as most of the model's own do."""
        rows: list[Row] = []
        for name, of in openings.items():
            rows += self.study.begun(name, self.goal, of, method=name)
        return rows

    def steered(self, dirs: xr.DataArray, setting: Setting) -> list[Row]:
        """Along the directions, along random ones, and along those of other emotions."""
        rows = self._goal("steer", self.study.steering(dirs, setting))
        for draw in range(self.draws):
            for name, control in (("random_steer", replies.random_directions), ("wrong_emotion", replies.deranged)):
                if name in self.names:
                    rows += self._goal(name, self.study.steering(control(dirs, self.seed + 1 + draw), setting), draw)
        return rows

    def modulated(self, circuit: et.Circuit, setting: Setting) -> list[Row]:
        """With the circuit, with random components, and with the payload of another emotion at its components."""
        rows = self._goal("circuit", self.study.modulated(circuit, setting))
        for draw in range(self.draws):
            seed = self.seed + 1 + draw
            if "random_circuit" in self.names:
                edits = self.study.modulated(circuit.random(seed, matched=True), setting)
                rows += self._goal("random_circuit", edits, draw)
            if "wrong_payload" in self.names:
                of = replies.derangement(circuit.labels, seed)
                edits = self.study.modulated(circuit.with_payload_of(of), setting)
                rows += self._goal("wrong_payload", edits, draw, of)
        return rows

    def controls(self, chosen: Mapping[str, tuple[et.Circuit, Setting]]) -> list[Row]:
        """With each tuned control, at its own setting."""
        rows: list[Row] = []
        for name, (circuit, setting) in chosen.items():
            rows += self._goal(name, self.study.modulated(circuit, setting))
        return rows

    def ablated(self, circuit: et.Circuit, reference: et.Activations) -> list[Row]:
        """Asked in words, with the components of the circuit, or as many random ones, taken away."""
        rows: list[Row] = []
        for name, how in ABLATIONS.items():
            options: dict[str, Any] = {"how": how, "positions": ABLATED_AT}
            if how == "resample":
                options |= {"reference": reference, "donor": donors(self.asked, reference, self.seed)}
            if name in self.names:
                rows += self.study.ablated(name, self.asked, name, circuit, **options)
            for draw in range(self.draws) if f"random_{name}" in self.names else ():
                other = circuit.random(self.seed + 1 + draw, matched=True)
                rows += self.study.ablated(
                    f"random_{name}_{draw}", self.asked, f"random_{name}", other, draw, **options
                )
        return rows

    def _goal(
        self, name: str, edits: Any, draw: int | None = None, payload: Mapping[Any, Any] | None = None
    ) -> list[Row]:
        """The replies of one arm and draw; with the payload's emotions, these are a label of the rows."""
        goal = self.goal
        if payload is not None:
            goal = Prompts(
                replace(p, labels={**p.labels, "payload_emotion": payload[p.labels["emotion"]]}) for p in goal
            )
        file = name if draw is None else f"{name}_{draw}"
        return self.study.replies(file, goal, edits, method=name, draw=draw or 0)


def donors(prompts: Prompts, reference: et.Activations, seed: int) -> dict[str, str]:
    """For each prompt, a prompt of the reference that asks for another emotion in the same valence."""
    rng = np.random.default_rng(seed)
    table: Any = reference.tokens
    pools = {
        pair: table["key"][(table["emotion"] != pair[0]) & (table["valence"] == pair[1])].drop_duplicates().tolist()
        for pair in {(p.labels["emotion"], p.labels["valence"]) for p in prompts}
    }
    found = {}
    for p in prompts:
        pool = pools[p.labels["emotion"], p.labels["valence"]]
        found[p.key] = str(pool[int(rng.integers(len(pool)))])
    return found


def told(openings: Mapping[str, Mapping[Any, replies.Opening]], encoder: Any) -> dict[str, Any]:
    """Openings for report.json, with their texts."""
    return {
        name: {
            str(emotion): {**one._asdict(), "token_ids": list(one.token_ids), "text": encoder.decode(one.token_ids)}
            for emotion, one in of.items()
        }
        for name, of in openings.items()
    }


def readings(rows: list[Row]) -> dict[str, Any] | None:
    """How the replies of ``wrong_payload`` are read: as the emotion of the components, or as that of the payload."""
    mine = [row for row in rows if row["method"] == "wrong_payload"]
    if not mine:
        return None
    as_payload = replies.reread(mine, "payload_emotion")
    return {
        "components": replies.accuracy_over_draws(mine)["overall"],
        "payload": replies.accuracy_over_draws(as_payload)["overall"],
    }
