"""What directions say of emotions that are shown, and of instructions that are none: on rows whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from emotrace.labels import EMOTIONS
from tests.experiments.studies import module

RNG = np.random.default_rng(0)
AXES = np.eye(8)[:6]
DIRECTIONS = xr.DataArray(AXES, dims=("emotion", "dim"), coords={"emotion": list(EMOTIONS)})


@pytest.fixture(scope="module")
def study():
    return module("shown_or_named")


def rows(shifts: dict[str, np.ndarray], noise: float = 0.1, n: int = 10) -> xr.DataArray:
    """One row per skeleton and label, about the origin plus what the label adds."""
    labels = [(s, name) for s in range(n) for name in shifts]
    x = np.stack([shifts[name] + noise * RNG.normal(size=8) for _, name in labels])
    skeleton, names = zip(*labels, strict=True)
    return xr.DataArray(
        x, dims=("token", "dim"),
        coords={"key": ("token", [f"{s}{e}" for s, e in labels]), "skeleton_id": ("token", [f"s{s}" for s in skeleton]),
                "emotion": ("token", list(names))},
    )  # fmt: skip


def test_instructions_that_are_no_emotion_are_held_against_those_that_are(study) -> None:
    asked = rows(dict(zip(EMOTIONS, 2 * AXES, strict=True)))
    plain = rows({"": np.zeros(8)}).drop_vars("emotion")
    away, along = np.eye(8)[7], 2 * AXES[3]
    found = study.moved(DIRECTIONS, asked, plain, rows({"French": away, "rhyme": along}), 0, 0)
    assert found["each"]["French"] < 0.1
    assert found["each"]["rhyme"] == pytest.approx(1, abs=0.1)
    assert found["ci95"][0] <= found["share"] <= found["ci95"][1]
    assert found["share"] == pytest.approx(np.mean(list(found["each"].values())))


def test_emotions_of_texts_are_told_beside_shuffled_labels(study) -> None:
    good = study.told(DIRECTIONS, rows(dict(zip(EMOTIONS, AXES, strict=True))), 0, "texts", 0)
    assert good["accuracy"][0] == 1
    assert good["p"] == good["p_floor"] == pytest.approx(1 / 1001)
    assert good["chance"] == pytest.approx(1 / 6, abs=0.02)
    none = study.told(DIRECTIONS, rows(dict.fromkeys(EMOTIONS, np.zeros(8))), 0, "texts", 0)
    assert none["p"] > 0.01
    said = study.sentence({"layer": 3, "shown": good, "no_emotion": {"share": 0.1, "ci95": [0.0, 0.2]}})
    shown, moves = said.removeprefix("layer 3: ").split("; ")
    assert shown == f"shown 100.0% of 60 (chance {good['chance']:.1%}, p ≤ 0.001)"
    assert moves == "instructions that are no emotion move 0.10 [0.00, 0.20] as far"


@pytest.mark.parametrize(
    ("text", "named"),
    [("I am so angry!", True), ("They broke my window.", False), ("What a surprise", True), ("scarce goods", False),
     ("grossly unfair", False), ("I felt it", True)],
)  # fmt: skip
def test_what_names_an_emotion(study, text: str, named: bool) -> None:
    assert bool(study.NAMES.search(text)) is named
