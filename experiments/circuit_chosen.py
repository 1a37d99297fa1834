"""What ``emotion_circuits.py`` fitted and chose, and the replies of all arms under it: to the test file, or to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import circuit_arms
import xarray as xr
from circuit_protocol import Setting
from circuit_study import Study

import emotrace as et
from emotrace import replies
from emotrace.datasets import Prompts
from emotrace.evaluation import repeated
from emotrace.judges import Judge
from emotrace.replies import Row
from emotrace.replies.frontiers import Point


@dataclass(frozen=True)
class Chosen:
    """All that the arms are made of.

    Attributes:
        directions: steered along.
        steering: the setting.
        circuit: added, and taken away.
        modulation: its setting.
        openings: arm → emotion → first tokens.
        controls: arm → circuit and setting of its own.
        reference: activations of training prompts, whose values stand where components are taken away.
    """

    directions: xr.DataArray
    steering: Setting
    circuit: et.Circuit
    modulation: Setting
    openings: Mapping[str, Mapping[Any, replies.Opening]]
    controls: Mapping[str, tuple[et.Circuit, Setting]]
    reference: et.Activations


def answered(
    study: Study, names: Sequence[str], asked: Prompts, plain: Prompts, chosen: Chosen, draws: int, seed: int, tester: Judge
) -> list[Row]:  # fmt: skip
    """Judged and measured replies of all arms.

    Args:
        study: whose judge chose, with the bounds of what is fluent.
        names: arms beside those that there always are.
        asked: prompts that ask for an emotion.
        plain: the same without.
        chosen: what the arms are made of.
        draws: of each control that is drawn.
        seed: of the draws.
        tester: judge that reads the replies from their third token on, and, if it is another than the one that chose, once more
            as a whole.
    """
    goal = plain.for_each(emotion=et.EMOTIONS)
    rows = study.judged("none", repeated(study.generated("none", plain), plain, goal))
    rows += study.replies("prompt", asked, method="prompt")
    arms = circuit_arms.Answers(study, tuple(names), asked, goal, draws, seed)
    rows += arms.begun(chosen.openings)
    rows += arms.steered(chosen.directions, chosen.steering)
    rows += arms.modulated(chosen.circuit, chosen.modulation)
    rows += arms.controls(chosen.circuit, chosen.controls)
    rows += arms.ablated(chosen.circuit, chosen.reference)
    rows = replace(study, judge=tester).from_third("test", study.scored("test", rows, plain))
    return rows if tester is study.judge else study.second_opinion(rows, tester)


def read_again(study: Study, points: Sequence[Point], base: list[Row], tester: Judge) -> tuple[list[Point], list[Row]]:
    """Points of frontiers and the un-edited model's rows, all read by the judge that tests."""
    if tester is study.judge:
        return list(points), base
    reading = replace(study, judge=tester, target=False)
    return [
        point._replace(rows=reading.judged(f"second_{point.method}_{point.size:g}", point.rows)) for point in points
    ], reading.judged("second_trial_none", base)
