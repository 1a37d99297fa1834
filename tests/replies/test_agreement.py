"""Two judges of the same replies: agreement arm by arm, each text once, and the second's accuracies beside."""

import pytest

from emotrace import replies, stats
from emotrace.labels import EmotraceError

SAID = ("anger", "fear", "anger", "joy")


def rows(method: str, other: tuple[str | None, ...], texts: int = 4) -> list[dict]:
    verdict = {"match": 1, "judge": "a", "reason": ""}
    out = []
    for i in range(texts):
        match = None if other[i] is None else int(other[i] == "anger")
        out += [
            {
                "key": f"k{i}_{times}", "method": method, "draw": 0, "skeleton_id": f"s{i}", "emotion": "anger",
                "valence": "neutral", "gen_text": f"{method} {i}", "token_ids": [1, 2, 3],
                "verdict": {**verdict, "predicted": SAID[i]},
                "verdict_second": {**verdict, "judge": "b", "predicted": other[i], "match": match},
                "meta": {"fluent": True, "repetition": 0.0, "length": 3, "perplexity": 2.0},
            }
            for times in range(2)
        ]  # fmt: skip
    return out


def test_each_text_counts_once_and_every_arm_has_a_line() -> None:
    steer, none = rows("steer", ("anger", "fear", "joy", "joy")), rows("none", SAID)
    lines = {line["method"]: line for line in replies.agreement_table([*steer, *none])}
    assert list(lines) == ["all", "steer", "none"]
    assert [(line["n"], line["same"]) for line in lines.values()] == [(8, 7 / 8), (4, 3 / 4), (4, 1)]
    found = stats.cohen_kappa(SAID, ("anger", "fear", "joy", "joy"), ["s0", "s1", "s2", "s3"])
    assert (lines["steer"]["kappa"], lines["steer"]["kappa_ci95"]) == (found.value, [found.lo, found.hi])
    assert lines["none"]["alpha"] == 1
    with pytest.raises(EmotraceError, match="both judges"):
        replies.agreement_table(rows("steer", (None,) * 4))


def test_the_tables_of_a_report_show_what_the_second_judge_says() -> None:
    both = [*rows("steer", ("anger", "fear", "joy", None)), *rows("none", SAID)]
    found = replies.summary(both)
    overall = found["accuracy_second"]["steer"]["overall"]
    assert (overall["value"], overall["n"], overall["n_unjudged"]) == (1 / 3, 6, 2)
    assert found["accuracy"]["steer"]["overall"]["value"] == 1
    assert found["accuracy_second_fluent"]["none"]["overall"]["value"] == 0.5
    assert [line["method"] for line in found["judge_agreement"]] == ["all", "steer", "none"]
    silent = replies.summary(rows("steer", (None,) * 4))
    assert silent["accuracy_second"]["steer"]["overall"]["value"] is None
    assert "judge_agreement" not in silent
    alone = replies.summary([{k: v for k, v in row.items() if k != "verdict_second"} for row in both])
    assert not {"accuracy_second", "judge_agreement"} & set(alone)
