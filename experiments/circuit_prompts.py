"""How ``emotion_circuits.py`` asks: the way that the model takes best, and the prompts of both files in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import circuit_protocol
from circuit_study import Study

from emotrace import acceptance
from emotrace.datasets import Elicitation, Prompts, read_sev, sev
from emotrace.defaults import MAX_NEW_TOKENS


class Asked(NamedTuple):
    """Prompts of both files, asked in one way, and their plain counterparts.

    Attributes:
        study: whose replies end as that way's do.
        tried: how each way was taken.
        used: training skeletons on which a way, or the examples of the chosen one, were chosen.
        n_skeletons: training skeletons that the ways were measured on.
        prompts: of the training file, asking for an emotion.
        plain: the same without.
        test: of the test file, asking for an emotion.
        test_plain: the same without.
    """

    study: Study
    tried: list[acceptance.Tried]
    used: frozenset[str]
    n_skeletons: int
    prompts: Prompts
    plain: Prompts
    test: Prompts
    test_plain: Prompts

    @property
    def n_replies(self) -> int:
        """By which the way was found."""
        return sum(share["n"] for one in self.tried for share in one.accepted.values())

    def record(self, flag: str) -> dict[str, Any]:
        """For report.json."""
        return acceptance.record(self.tried, flag, self.n_skeletons)


def ask(
    study: Study, ways: Sequence[Elicitation], train: Path, test: Path, limit: int | None, elicit_limit: int
) -> Asked:
    """Measure the ways on a few training skeletons, take the best, and say so.

    Args:
        study: that answers.
        ways: that compete.
        train: the training file.
        test: the test file, of which nothing is answered.
        limit: skeletons of each.
        elicit_limit: training skeletons that the ways are measured on.
    """
    some = {str(p.labels["skeleton_id"]) for p in sev(train, limit=limit).limit(elicit_limit)}
    few = [s for s in read_sev(train) if s.skeleton_id in some]
    found = acceptance.tried(study, ways, few, int(study.decoding_of("prompt").get("max_new_tokens", MAX_NEW_TOKENS)))
    way = acceptance.best(found).way
    for line in acceptance.said(found):
        print(line)
    asked = [sev(file, instruction=i, limit=limit, elicit=way) for file in (train, test) for i in (True, False)]
    used = frozenset(some if len(ways) > 1 else ()) | frozenset(way.chosen_on)
    ended = replace(study, protocol=circuit_protocol.ended(study.protocol, way.stop))
    return Asked(ended, found, used, len(few), *asked)


def told(accepted: int, n: int, apart: Mapping[str, Any]) -> str:
    """How many prompted replies to the training file were accepted, and what share where nothing was chosen."""
    text = f"prompted replies to the training file: {accepted} of {n} express what was asked"
    if apart["optimistic"]:
        return f"{text} (all to skeletons on which the way to ask was chosen: optimistic)"
    return f"{text}; {apart['value']:.1%} of {apart['n']} to skeletons on which nothing was chosen"
