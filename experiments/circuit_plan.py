"""What a run of ``emotion_circuits.py`` will cost, said before it begins, and its searches cut to that: all of them equally."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import circuit_arms
from circuit_protocol import Setting
from circuit_refits import REFITTED
from circuit_study import FIRST, KEEP, Study

import emotrace as et
from emotrace.arms import ARMS
from emotrace.datasets import Prompts
from emotrace.defaults import MAX_NEW_TOKENS
from emotrace.disk import write_json
from emotrace.files import read_json
from emotrace.replies.search import BEYOND

SEARCH = 8
"""A search makes at most so many times the replies that one arm has on the test file."""
SAMPLE = 16
"""Prompts of either kind whose replies are timed, or one batch where that is more."""
DOSES = 5
"""A line of settings keeps at least so many: between two doses of a few a model goes from unmoved to babbling."""
STEPS = 60
"""Sizes tried between a whole search and the smallest."""
SHARES = {"curves": 0.15, "influence": 0.05}
"""Of a budget, what is kept for causal curves and for influence."""
REST = 1.5
"""Seconds of a run for each that its replies take by the sample: capture, curves, divergences, and what batches save. In CPU
seconds 0.9 on SmolLM2 (7,032 replies, curves cut by a budget) and 2.0 on the shipped model (50,178, curves of 20 draws)."""

Lines = Sequence[Sequence[Setting]]


class Seconds(NamedTuple):
    """Of one reply with its scores, timed: with worked examples before it a prompt is many times as long as without.

    Attributes:
        asked: of a prompt that asks for an emotion.
        plain: of one that does not; of those are all that are steered.
    """

    asked: float
    plain: float


class Search(NamedTuple):
    """What one search tries.

    Attributes:
        lines: settings that differ in dose only, the likeliest place first.
        skeletons: held-out ones, at most.
        middle: of the middle sample.
        finalists: settings that go on to all.
        wide: skeletons on which every dose of the chosen line is measured; as ``middle`` where that is more.
    """

    lines: Lines
    skeletons: int
    middle: int
    finalists: int
    wide: int = 0

    @property
    def settings(self) -> int:
        """How many at first."""
        return sum(map(len, self.lines))

    def replies(self, each: int) -> int:
        """Most replies that it makes, ``each`` for a skeleton."""
        first, middle, last = (min(self.skeletons, n) for n in (-(-self.middle // FIRST), self.middle, self.skeletons))
        if self.settings == 1:
            return last * each
        n = self.settings * first + max(map(len, self.lines)) * max(middle, self.wide)
        n += min(self.settings, KEEP * self.finalists) * middle if middle > first else 0
        n += min(self.settings, self.finalists) * last if last > middle else 0
        return n * each

    def further(self, each: int) -> int:
        """Most replies beside, beyond a line whose end was best."""
        of_line = max(min(self.skeletons, self.middle), self.wide)
        return BEYOND * (self.skeletons + of_line) * each if self.settings > 1 else 0

    def within(self, most: int, each: int, *, whole: bool = False) -> Search:
        """The largest cut of it that makes at most so many replies, or ``whole`` also with what may follow beyond a line.

        The smallest that there is where none does.

        The first places stay, and of their doses the first, the last and some between.
        """
        one = self
        for step in range(STEPS + 1):
            share = 1 - step / STEPS
            root = math.sqrt(share)
            places = self.lines[: max(1, round(len(self.lines) * root))]
            one = Search(
                [_spread(line, max(min(DOSES, len(line)), round(len(line) * root))) for line in places],
                max(1, round(self.skeletons * root)), max(1, round(self.middle * root)), max(1, round(self.finalists * share)),
                self.wide,
            )  # fmt: skip
            if one.replies(each) + whole * one.further(each) <= most:
                break
        return one


@dataclass(frozen=True)
class Plan:
    """Replies and minutes of a run.

    Attributes:
        searches: by arm.
        each: replies to one skeleton under one arm.
        fixed: what is answered whatever is searched → replies.
        asked: of these, how many answer prompts that ask.
        seconds: of a reply.
        max_new_tokens: of a reply.
        budget: minutes; None for any.
    """

    searches: Mapping[str, Search]
    each: int
    fixed: Mapping[str, int]
    asked: int
    seconds: Seconds
    max_new_tokens: int
    budget: float | None = None

    @property
    def replies(self) -> int:
        """Most replies."""
        searched = (one.replies(self.each) + one.further(self.each) for one in self.searches.values())
        return sum(self.fixed.values()) + sum(searched)

    @property
    def minutes(self) -> float:
        """Most minutes, from the timed sample."""
        return self._minutes(self.replies)

    def _minutes(self, replies: int) -> float:
        """Of so many, the asked ones among them."""
        return (self.asked * self.seconds.asked + (replies - self.asked) * self.seconds.plain) * REST / 60

    def allowed(self, part: str) -> float | None:
        """Seconds of the budget that are kept for one of `SHARES`; None without a budget."""
        return None if self.budget is None else 60 * self.budget * SHARES[part]

    def cut(self, most: int) -> Plan:
        """Every search cut to so many replies, and to an equal share of what the budget leaves."""
        if self.budget is not None:
            left = self.budget * (1 - sum(SHARES.values())) - self._minutes(sum(self.fixed.values()))
            most = min(most, math.floor(60 * left / (self.seconds.plain * REST) / len(self.searches)))
        cut = {name: one.within(most, self.each, whole=self.budget is not None) for name, one in self.searches.items()}
        skeletons, middle = (min(getattr(one, name) for one in cut.values()) for name in ("skeletons", "middle"))
        cut = {name: one._replace(skeletons=skeletons, middle=middle) for name, one in cut.items()}  # all on the same
        return replace(self, searches=cut)

    @property
    def said(self) -> str:
        """What it will take, for people."""
        parts = ", ".join(f"{name} {n:,}" for name, n in self.fixed.items())
        tries = ", ".join(
            f"{name} {one.replies(self.each):,} ({one.settings} settings)" for name, one in self.searches.items()
        )
        tries += (
            f", and {sum(one.further(self.each) for one in self.searches.values()):,} where the ends of lines are best"
        )
        text = (
            f"at most {self.replies:,} replies of at most {self.max_new_tokens} tokens ({self.replies * self.max_new_tokens:,}), "
            f"about {self.minutes:.0f} minutes at {self.seconds.asked:.2f} s a reply that is asked for and "
            f"{self.seconds.plain:.2f} s one that is not (timed here): {parts}; searches: {tries}"
        )
        if self.budget is None:
            return text
        kept = ", ".join(f"{name} at most {self.budget * share:.1f}" for name, share in SHARES.items())
        text += f"; minutes of the budget kept for {kept}"
        if self.minutes > self.budget * (1 - sum(SHARES.values())):
            text += f". The budget of {self.budget:g} minutes is too short for this: give a smaller --limit, or fewer --arms"
        return text

    @property
    def record(self) -> dict[str, Any]:
        """For report.json."""
        searches = {
            name: {"replies": one.replies(self.each), "settings": one.settings, "skeletons": one.skeletons}
            for name, one in self.searches.items()
        }
        return {
            "replies": self.replies, "fixed": dict(self.fixed), "searches": searches, "seconds_a_reply": self.seconds._asdict(),
            "minutes": self.minutes, "budget": self.budget,
        }  # fmt: skip


def timed(study: Study, prompts: Prompts, plain: Prompts, path: Path) -> Seconds:
    """Seconds of a reply with its scores, on a few prompts; kept, so that a run that is continued is cut as before."""
    if not path.exists():
        n = SAMPLE if isinstance(study.batch_size, str) else max(SAMPLE, study.batch_size)
        goal = plain.for_each(emotion=et.EMOTIONS)  # as arms have them: a prompt's emotions share its beginning
        seconds = Seconds(*(_timed(study, some[:n], plain) for some in (prompts, goal)))
        write_json(path, {**seconds._asdict(), "n": n})
    kept = read_json(path)
    return Seconds(float(kept["asked"]), float(kept["plain"]))


def _timed(study: Study, some: Prompts, plain: Prompts) -> float:
    bare = Study(study.model, protocol=study.protocol, batch_size=study.batch_size, progress=False)
    bare.generated("", some[:1], method="prompt")  # what is proven of a model and kept of its prompts is not timed
    begun = time.perf_counter()
    bare.scored("", bare.generated("", some, method="prompt"), plain)
    return (time.perf_counter() - begun) / len(some)


def fixed(prompts: Prompts, asked: Prompts, arms: Sequence[str], draws: int, refits: int) -> dict[str, int]:
    """Replies to the training file and, under every arm and draw and with every refit, to the test file."""
    drawn = [name for name in arms if ARMS[name].drawn]
    n = 3 + len(arms) + (draws - 1) * len(drawn)
    plain = len(asked) // len(et.EMOTIONS)
    again = {f"test ({refits} refits)": refits * len(REFITTED) * len(asked)} if refits else {}
    return {"training": len(prompts), f"test ({n} arms and draws)": n * len(asked), **again, "test (none)": plain}


def planned(
    study: Study, seconds: Seconds, prompts: Prompts, asked: Prompts, arms: Sequence[str], *, held: int, middle: int,
    finalists: int, wide: int, draws: int, refits: int, budget: float | None, asking: int = 0,
) -> Plan:  # fmt: skip
    """The plan of a run, its searches cut to `SEARCH` times what one arm has on the test file, and to the budget.

    Args:
        study: whose protocol says what is searched and how replies are decoded.
        seconds: of `timed`.
        prompts: training prompts that ask.
        asked: test prompts that ask.
        arms: beside none, prompt, steer and circuit.
        held: skeletons held out.
        middle: of them in the middle sample.
        finalists: settings that go on to all of them.
        wide: of them on which every dose of the chosen lines is measured.
        draws: of each control that is drawn.
        refits: of directions and circuit.
        budget: minutes.
        asking: replies by which it was found how to ask.
    """
    names = ["steer", "circuit", *(name for name in circuit_arms.TUNED if name in arms)]
    lines = {name: study.protocol.steering if name == "steer" else study.protocol.modulation for name in names}
    searches = {name: Search(some, held, min(middle, held), finalists, min(wide, held)) for name, some in lines.items()}
    each = len(asked) // len({p.labels["skeleton_id"] for p in asked})
    most = int(study.decoding_of("steer").get("max_new_tokens", MAX_NEW_TOKENS))
    ablated = sum(draws if ARMS[name].drawn else 1 for name in arms if ARMS[name].made == "ablated")
    every = {"asking": asking} | fixed(prompts, asked, arms, draws, refits)
    plan = Plan(searches, each, every, asking + len(prompts) + (1 + ablated) * len(asked), seconds, most, budget)
    return plan.cut(SEARCH * len(asked))


def _spread(values: Sequence[Any], n: int) -> list[Any]:
    """So many of the values, the first and the last among them."""
    if n >= len(values):
        return list(values)
    return [values[round(i * (len(values) - 1) / (n - 1))] for i in range(n)]
