"""Arms: what is compared, one entry each: how its replies are made, what they stand for, and how they are shown.

An arm is the ``method`` of a row. What decodes, draws, searches, counts, colours and draws figures of arms reads this table; a
study that makes arms refuses to start where one of its way has no function there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from emotrace.labels import EmotraceError

Way = Literal["answered", "begun", "steered", "modulated", "tuned", "ablated"]
Panel = Literal["openings", "components", "ablation"]


class Arm(NamedTuple):
    """One arm of a comparison.

    Attributes:
        name: the ``method`` of its rows.
        colour: in figures, of the palettes of Okabe and Ito and of Tol, which colour-blind readers tell apart within a figure.
        made: without edits (``answered``), its reply ``begun`` for the model, ``steered`` along directions, ``modulated`` by a
            circuit at the strength chosen for the true one, likewise after a search of its own (``tuned``), or asked in words
            with components ``ablated``.
        always: every run has it.
        drawn: a random control, or one with random donors: drawn several times.
        control: what a method must beat; the highest of these is its best control.
        lowest: harder to tell from the real thing the *lower* it scores.
        panel: the figure of its own that shows it; None for that of all arms.
        tokens: with how many first tokens it is ``begun``.
        values: what its components are set to where they are ``ablated``.
    """

    name: str
    colour: str
    made: Way
    always: bool = False
    drawn: bool = False
    control: bool = False
    lowest: bool = False
    panel: Panel | None = None
    tokens: int = 0
    values: Literal["zero", "mean", "resample"] | None = None


ARMS: Final = {arm.name: arm for arm in (
    Arm("none", "#999999", "answered", always=True),
    Arm("prompt", "#0072B2", "answered", always=True),
    Arm("steer", "#D55E00", "steered", always=True),
    Arm("circuit", "#009E73", "modulated", always=True),
    Arm("prefill_1", "#C7A76C", "begun", control=True, panel="openings", tokens=1),
    Arm("prefill_2", "#A8823C", "begun", control=True, panel="openings", tokens=2),
    Arm("prefill_4", "#7D5A1A", "begun", control=True, panel="openings", tokens=4),
    Arm("random_steer", "#E69F00", "steered", drawn=True, control=True),
    Arm("random_circuit", "#56B4E9", "modulated", drawn=True, control=True),
    Arm("wrong_emotion", "#CC79A7", "steered", drawn=True, control=True),
    Arm("wrong_payload", "#882255", "modulated", drawn=True, panel="components"),
    Arm("random_tuned", "#44AA99", "tuned", drawn=True, control=True, panel="components"),
    Arm("shared_set", "#999933", "tuned", control=True, panel="components"),
    Arm("all_components", "#332288", "tuned", panel="components"),
    Arm("ablate", "#222222", "ablated", panel="ablation", values="zero"),
    Arm("random_ablate", "#BBBBBB", "ablated", drawn=True, lowest=True, panel="ablation", values="zero"),
    Arm("ablate_mean", "#444444", "ablated", panel="ablation", values="mean"),
    Arm("random_ablate_mean", "#C8C8C8", "ablated", drawn=True, lowest=True, panel="ablation", values="mean"),
    Arm("ablate_resample", "#666666", "ablated", drawn=True, panel="ablation", values="resample"),
    Arm("random_ablate_resample", "#D5D5D5", "ablated", drawn=True, lowest=True, panel="ablation", values="resample"),
)}  # fmt: skip
"""Name → arm, in the order of reports; algorithms are named elsewhere (`METHODS` of their room)."""
ALWAYS: Final = tuple(arm.name for arm in ARMS.values() if arm.always)
"""Arms of every run."""

for _arm in ARMS.values():
    if (_arm.made == "begun") != (_arm.tokens > 0) or (_arm.made == "ablated") != (_arm.values is not None):
        raise EmotraceError(
            f"arm {_arm.name!r}: tokens are of begun arms, values of ablated ones, and these need them."
        )


def made_by(*ways: Way) -> tuple[str, ...]:
    """The arms that are made in one of these ways, in their order."""
    return tuple(arm.name for arm in ARMS.values() if arm.made in ways)


def refuse_missing(way: Way, made: Iterable[str]) -> None:
    """Refuse a table of a study that lacks an arm of one way, or has one that is made otherwise.

    Args:
        way: of the arms.
        made: names of the arms that the study has functions for.

    Raises:
        EmotraceError: naming them.
    """
    if wrong := sorted({*made} ^ {*made_by(way)}):
        raise EmotraceError(
            f"arms that are {way}: {', '.join(wrong)} in `emotrace.arms.ARMS` or in the study, not in both."
        )
