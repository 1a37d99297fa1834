"""How ``emotion_circuits.py`` asks: the way that the model takes best, and the prompts of both files in it."""

from __future__ import annotations

from collections.abc import Sequence
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
        n_skeletons: training skeletons that this was measured on.
        prompts: of the training file, asking for an emotion.
        plain: the same without.
        test: of the test file, asking for an emotion.
        test_plain: the same without.
    """

    study: Study
    tried: list[acceptance.Tried]
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
    some = {p.labels["skeleton_id"] for p in sev(train, limit=limit).limit(elicit_limit)}
    few = [s for s in read_sev(train) if s.skeleton_id in some]
    found = acceptance.tried(study, ways, few, int(study.decoding_of("prompt").get("max_new_tokens", MAX_NEW_TOKENS)))
    way = acceptance.best(found).way
    for line in acceptance.said(found):
        print(line)
    asked = [sev(file, instruction=i, limit=limit, elicit=way) for file in (train, test) for i in (True, False)]
    return Asked(replace(study, protocol=circuit_protocol.ended(study.protocol, way.stop)), found, len(few), *asked)
