"""The arms of ``emotion_circuits.py`` that what it claims is held against: how each is made, and its replies to the test file.

* ``prefill_1``, ``_2``, ``_4``: the un-edited model, not asked for an emotion, its reply begun with the commonest first tokens of
  its own accepted prompted replies to the training file. What they reach takes no circuit.
* ``random_steer``, ``random_circuit``, ``wrong_emotion``: random directions and components of equal norm, another emotion's
  direction, at the setting that was chosen for the real thing.
* ``wrong_payload``: another emotion's payload on this emotion's components. Which of the two is read?
* ``random_tuned``, ``shared_set``, ``all_components``: this emotion's payload on random components, on one set for all emotions
  (of each layer as many as the circuit has, those with the highest mean score) and on all, each at a setting of its own search;
  random ones are drawn again at that setting.
* ``ablate``, ``ablate_mean``, ``ablate_resample``, and ``random_`` before each: asked in words, the circuit's (or as many random)
  components set to zero, to their mean, or to what they are in a training prompt of another emotion; all at `ABLATED_AT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import xarray as xr
from circuit_protocol import Setting
from circuit_study import Study

import emotrace as et
from emotrace import replies
from emotrace.arms import ALWAYS, ARMS, Arm, Way, refuse_missing
from emotrace.datasets import Prompts
from emotrace.labels import KINDS, unknown
from emotrace.replies import Row

NAMES = tuple(name for name in ARMS if name not in ALWAYS)
PREFILLS = {arm.name: arm.tokens for arm in ARMS.values() if arm.made == "begun"}
"""Arm → first tokens."""
ABLATED_AT = "last"
"""Where all ablations act: the values of means and donors are those of a last prompt token. Held at every later token too, they
leave the shipped model no fluent reply (0 of 72 to 4 test skeletons)."""

DIRECTIONS: Final[dict[str, Callable[[xr.DataArray, int], xr.DataArray]]] = {
    "steer": lambda dirs, seed: dirs,
    "random_steer": replies.random_directions,
    "wrong_emotion": replies.deranged,
}
"""Arm → its directions from the true ones and a seed."""
Payloads = Mapping[Any, Any] | None
CIRCUITS: Final[dict[str, Callable[[et.Circuit, int], tuple[et.Circuit, Payloads]]]] = {
    "circuit": lambda circuit, seed: (circuit, None),
    "random_circuit": lambda circuit, seed: (circuit.random(seed, matched=True), None),
    "wrong_payload": lambda circuit, seed: _other_payload(circuit, seed),
}
"""Arm → its circuit from the true one and a seed, and whose payload each emotion has where it is not its own."""
TUNED: Final[dict[str, Callable[[et.Circuit, Mapping[str, xr.DataArray], int], et.Circuit]]] = {
    "random_tuned": lambda circuit, ranked, seed: circuit.random(seed + 1, matched=True),
    "shared_set": lambda circuit, ranked, seed: circuit.shared(ranked, matched=True),
    "all_components": lambda circuit, ranked, seed: circuit.whole(),
}
"""Arm with a search of its own → its circuit from the true one, the scores of its components by kind, and a seed."""

refuse_missing("steered", DIRECTIONS)
refuse_missing("modulated", CIRCUITS)
refuse_missing("tuned", TUNED)


def _other_payload(circuit: et.Circuit, seed: int) -> tuple[et.Circuit, Payloads]:
    of = replies.derangement(circuit.labels, seed)
    return circuit.with_payload_of(of), of


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
    return {name: make(circuit, ranked, seed) for name, make in TUNED.items() if name in names}


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
        for arm, _, _ in self._of("begun"):
            rows += self.study.begun(arm.name, self.goal, openings[arm.name], method=arm.name)
        return rows

    def steered(self, dirs: xr.DataArray, setting: Setting) -> list[Row]:
        """Along the directions, along random ones, and along those of other emotions."""
        rows: list[Row] = []
        for arm, seed, draw in self._of("steered"):
            rows += self._goal(arm, self.study.steering(DIRECTIONS[arm.name](dirs, seed), setting), draw)
        return rows

    def modulated(self, circuit: et.Circuit, setting: Setting) -> list[Row]:
        """With the circuit, with random components, and with the payload of another emotion at its components."""
        rows: list[Row] = []
        for arm, seed, draw in self._of("modulated"):
            one, payloads = CIRCUITS[arm.name](circuit, seed)
            rows += self._goal(arm, self.study.modulated(one, setting), draw, payloads)
        return rows

    def controls(self, circuit: et.Circuit, chosen: Mapping[str, tuple[et.Circuit, Setting]]) -> list[Row]:
        """With each tuned control, at its own setting; of random components further draws at the setting of the first."""
        rows: list[Row] = []
        for arm, seed, draw in self._of("tuned"):
            control, setting = chosen[arm.name]
            one = circuit.random(seed, matched=True) if draw else control
            rows += self._goal(arm, self.study.modulated(one, setting), draw)
        return rows

    def ablated(self, circuit: et.Circuit, reference: et.Activations) -> list[Row]:
        """Asked in words, with the components of the circuit, or as many random ones, taken away."""
        rows: list[Row] = []
        for arm, seed, draw in self._of("ablated"):
            options: dict[str, Any] = {"how": arm.values, "positions": ABLATED_AT}
            if arm.values == "resample":
                options |= {"reference": reference, "donor": donors(self.asked, reference, self.seed + draw)}
            one = circuit.random(seed, matched=True) if arm.lowest else circuit
            rows += self.study.ablated(_file(arm, draw), self.asked, arm.name, one, draw, **options)
        return rows

    def _of(self, way: Way) -> Iterator[tuple[Arm, int, int]]:
        """The arms of one way with seed and draw: what is made once, then of each draw all that are drawn."""
        some = [arm for arm in ARMS.values() if arm.made == way and (arm.always or arm.name in self.names)]
        for draw in range(self.draws):
            yield from ((arm, self.seed + 1 + draw, draw) for arm in some if not draw and not arm.drawn)
            yield from ((arm, self.seed + 1 + draw, draw) for arm in some if arm.drawn)

    def _goal(self, arm: Arm, edits: Any, draw: int, payloads: Payloads = None) -> list[Row]:
        """The replies of one arm and draw; with the payload's emotions, these are a label of the rows."""
        goal = self.goal
        if payloads is not None:
            goal = Prompts(
                replace(p, labels={**p.labels, "payload_emotion": payloads[p.labels["emotion"]]}) for p in goal
            )
        return self.study.replies(_file(arm, draw), goal, edits, method=arm.name, draw=draw)


def _file(arm: Arm, draw: int) -> str:
    """What the files of an arm's replies are called."""
    return f"{arm.name}_{draw}" if arm.drawn else arm.name


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
