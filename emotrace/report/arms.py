"""Arms: figures of what claims are held against: openings, components and payload, ablations; their titles are the claims."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from emotrace.arms import ALWAYS, ARMS
from emotrace.labels import EmotraceError
from emotrace.report import style
from emotrace.report.replies import accuracy_bars
from emotrace.report.style import Picture
from emotrace.signatures import typed

ACROSS: Final = 88
"""Characters of a line of a title."""


class Panel(NamedTuple):
    """A figure of some arms.

    Attributes:
        name: of the file.
        heading: on the page.
        beside: arms that it shows beside its own, which are those of `emotrace.arms` that name it.
        claims: names of the claims that are its title.
        second: part of the report that the hatched bars show.
        hatched: what they are, for the legend.
        caption: how to read it.
    """

    name: str
    heading: str
    beside: tuple[str, ...]
    claims: tuple[str, ...]
    second: str
    hatched: str
    caption: str

    @property
    def own(self) -> tuple[str, ...]:
        """Its own arms; it is drawn where one of them is there."""
        return tuple(arm.name for arm in ARMS.values() if arm.panel == self.name)


PANELS: Final = (
    Panel(
        "openings", "Do the first tokens do it?",
        ALWAYS, ("opening", "opening_steer"), "accuracy_from_third", "… from the third token on",
        """prefill: the un-edited model, asked for no emotion, begins its reply with the one, two or four tokens that most of its
        own accepted replies to the training file begin with where that emotion was asked for. Hatched: the judge reads the reply
        from its third token on (of prefill_4, two given tokens are among them).""",
    ),
    Panel(
        "components", "Components or payload?",
        ("circuit", "random_circuit"), ("components", "payload"), "accuracy_fluent", "… and fluent",
        """The emotion's difference vectors (payload) are added at the circuit's components, at as many random ones
        (random_circuit at the circuit's strength, random_tuned at its own), at one set for all emotions (shared_set), and at all
        of them; these three at settings of their own, searched as the circuit's were. wrong_payload: another emotion's payload at
        this emotion's components, and whether the emotion of the components is read.""",
    ),
    Panel(
        "ablation", "Is the circuit needed?",
        ("prompt",), ("needed_zero", "needed_mean", "needed_resample"), "accuracy_given_fluent",
        "… of the fluent replies",
        """The emotion is asked for in words, while the components of its circuit, or as many others of the same layers drawn at
        random, are set to zero (ablate), to their mean, or to what they are where another emotion is asked for (resample), all
        at the same positions. If the circuit is needed, its ablation takes the emotion away and that of random components does
        not. Of several random draws the bar shows the lowest, each dot one draw. Hatched: among the replies that are
        fluent.""",
    ),
)  # fmt: skip
OTHERS: Final = tuple(arm for panel in PANELS for arm in panel.own)
"""Arms that have a figure of their own."""
if lost := {arm.panel for arm in ARMS.values()} ^ {None, *(one.name for one in PANELS)}:
    raise EmotraceError(f"panels without arms, or arms of no panel: {lost}.")


@typed
def panel(report: Mapping[str, Any], which: Panel) -> Picture:
    """The bars of one panel: as `accuracy_bars`, titled by what its claims came to."""
    some = style.only(report, (*which.beside, *which.own))
    claim = title(report, which.claims) or which.heading
    return accuracy_bars(some, claim, which.caption, second=which.second, hatched=which.hatched)


def drawn(report: Mapping[str, Any]) -> list[tuple[Panel, Callable[[], Picture]]]:
    """The panels that there are replies for."""
    found = report.get("accuracy") or {}
    return [(p, lambda p=p: panel(report, p)) for p in PANELS if any(arm in found for arm in p.own)]


def title(report: Mapping[str, Any], names: Sequence[str]) -> str:
    """What claims came to, one a line; empty where none of them was tested."""
    told = {one["name"]: one for one in report.get("claims") or []}
    said = [str(told[name]["short"]) for name in names if name in told and told[name]["holds"] is not None]
    return "\n".join(textwrap.fill(text, ACROSS, subsequent_indent="   ") for text in said)
