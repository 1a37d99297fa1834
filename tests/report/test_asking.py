"""Asking: every way with its shares, and the table by emotion in which no emotion is missing."""

from emotrace.report import asking, numbers, tables


def share(value, n=9):
    return {
        "value": value,
        "n": n,
        "n_unjudged": 0,
        "ci95": [max(0.0, value - 0.1), min(1.0, value + 0.1)],
        "worst_case": value,
    }


def table(**by):
    return {"overall": share(sum(by.values()) / len(by), 18), "by_emotion": {e: share(v) for e, v in by.items()}}


REPORT = {
    "elicitation": {
        "chosen": "fewshot", "asked": "auto", "n_skeletons": 3, "spread": {},
        "instruct": {"digest": "a", "accepted": {}, "not_measured": "no template"},
        "fewshot": {"digest": "b", "accepted": {"fear": share(1.0), "surprise": share(0.0)}},
    },
    "accepted_train": {"value": 0.5, "n": 72, "by_emotion": {"fear": share(1.0, 36), "surprise": share(0.0, 36)}},
    "accuracy": {"steer": table(fear=0.9, surprise=0.8)},
    "accuracy_fluent": {"steer": table(fear=0.9, surprise=0.8)},
    "accuracy_elicited": {"emotions": ["fear"], "accuracy_fluent": {"steer": share(0.9)}},
}  # fmt: skip


def test_an_emotion_that_asking_does_not_elicit_has_its_row_and_the_elicited_ones_stand_beside():
    head, rows = asking.by_emotion(REPORT)
    assert head[-1] == "steer"
    assert [row[0] for row in rows] == ["fear", "surprise", "all", "elicited: fear"]
    assert rows[1][1].startswith("0 %") or rows[1][1].startswith("0%")
    assert rows[1][2].endswith("n 9")
    assert rows[3][2] == rows[0][2]
    assert any(grid.id == "by_emotion" for grid in numbers.grids(REPORT))
    assert not any(grid.id == "by_emotion" for grid in numbers.grids({"accuracy": REPORT["accuracy"]}))


def test_ways_are_a_table_of_what_was_measured():
    found = tables.frames(REPORT)["elicitation"]
    assert found["way"].tolist() == ["fewshot", "fewshot"]
    assert found["accepted"].tolist() == [1.0, 0.0]
    assert found["chosen"].all()
