"""What the two studies of vectors may say of their replies: a sentence holds in its tests, or is not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from emotrace import replies
from emotrace.judges import measured
from emotrace.replies import Claim, Comparison, Row
from emotrace.sites import LanguageModel

CLAIMS = (
    Claim(
        "steers", "the vectors make the model express the emotion aimed at",
        tuple(Comparison("steer", control, "accuracy") for control in ("none", "random", "wrong_emotion")),
        "what the model says anyway, random vectors of equal length, and another emotion's vector", "doses",
    ),
    Claim(
        "opening_steer", "the first tokens do not explain steering",
        (Comparison("steer", "prefill_4", "accuracy_from_third"),),
        "the model's own replies begun with the four commonest first tokens, judged from the third token on", "doses",
    ),
    Claim(
        "steering_beats_prompting", "steering beats asking in words",
        (Comparison("steer", "prompt", "accuracy"),), "the same queries", "doses",
    ),
)  # fmt: skip


def claimed(methods: Mapping[str, list[Row]], judge: Any, lm: LanguageModel, seed: int) -> dict[str, Any]:
    """``claims`` and ``paired`` of report.json; the cluster is the query.

    Args:
        methods: replies to the test queries by method and draw, judged also from their third token on.
        judge: who judged them.
        lm: the model.
        seed: of the tests.
    """
    rows: list[Row] = []
    for name, found in methods.items():
        rows += [cast("Row", {**row, "method": "none"}) if name == "none" else row for row in found]
    doubt = measured.doubt(judge, lm.sites.identity)
    claims, family = replies.claims(rows, wanted=CLAIMS, doubt=doubt, cluster="prompt", seed=seed)
    return {"claims": claims, "paired": family}
