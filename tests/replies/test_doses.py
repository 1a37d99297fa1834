"""Tables of doses by hand, the matrix of emotions, and bisection."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace.labels import EmotraceError
from emotrace.replies import bisect, diagonal, dose_table, emotion_matrix


def row(dose, emotion, predicted, i=0, **meta):
    aimed = {"joy": "happiness"}.get(emotion, emotion)
    match = None if predicted is None else int(predicted == aimed)
    about = {"perplexity": 4.0, "repetition": 0.0, "length": 3, "kl": 0.5 * abs(dose)} | meta
    return {
        "key": f"p{i}__{emotion}", "prompt": f"p{i}", "emotion": emotion, "dose": dose, "gen_text": "a b a",
        "token_ids": [1, 2, 3],
        "verdict": {"predicted": predicted, "match": match}, "meta": about,
    }  # fmt: skip


ROWS = [
    *(row(0, "anger", p, i) for i, p in enumerate(["neutral", "neutral", "fear", "anger"])),
    *(row(0, "joy", p, i) for i, p in enumerate(["neutral", "neutral", "fear", "anger"])),
    *(row(2, "anger", p, i, perplexity=100.0 if i else 4.0) for i, p in enumerate(["anger", "anger", "anger", "fear"])),
    *(row(2, "joy", p, i) for i, p in enumerate(["happiness", "neutral", None, "happiness"])),
]
BOUNDS = {"perplexity": [1, 10], "length": [1, 5], "repetition": [0, 0.5]}


def test_the_table_by_hand():
    table = dose_table(ROWS, bounds=BOUNDS).set_index(["dose", "emotion"])
    assert table.index.tolist() == [(d, e) for d in (0, 2) for e in ("all", "anger", "joy")]
    zero, two = table.loc[(0, "anger")], table.loc[(2, "anger")]
    assert (zero["on_target"], zero["off_target"], zero["neutral"], zero["drift"]) == (0.25, 0.25, 0.5, 0)
    assert (two["on_target"], two["off_target"], two["neutral"], two["drift"]) == (0.75, 0.25, 0, 0)
    assert (two["fluent"], two["on_target_fluent"], two["perplexity"]) == (0.25, 0.25, 100)
    joy = table.loc[(2, "joy")]
    assert (joy["n"], joy["n_unjudged"]) == (3, 1)
    assert joy["on_target"] == pytest.approx(2 / 3)
    assert joy["drift"] == -0.5
    assert joy["distinct_1"] == pytest.approx(2 / 3)
    assert joy["kl"] == 1.0
    everything = table.loc[(2, "all")]
    assert everything["n"] == 7
    assert everything["on_target_lo"] <= everything["on_target"] <= everything["on_target_hi"]


def test_without_bounds_or_dose_zero():
    table = dose_table([r for r in ROWS if r["dose"] == 2])
    assert table["drift"].isna().all()
    assert table["fluent"].isna().all()
    with pytest.raises(EmotraceError, match="no rows"):
        dose_table([])
    with pytest.raises(EmotraceError, match="the dose of a row is nan"):
        dose_table([{**ROWS[0], "dose": math.nan}])
    with pytest.raises(EmotraceError, match="has no 'dose'"):
        dose_table([{k: v for k, v in ROWS[0].items() if k != "dose"}])


def test_the_matrix_and_its_diagonal():
    matrix = emotion_matrix(ROWS, dose=2)
    assert matrix.loc["anger", "anger"] == 0.75
    assert matrix.loc["joy", "happiness"] == pytest.approx(2 / 3)
    assert matrix.sum(axis=1).tolist() == pytest.approx([1, 1])
    found = diagonal(matrix)
    assert found["joy"] == {"own": pytest.approx(2 / 3), "next": 0, "next_emotion": "anger", "most": True}
    flat = emotion_matrix(ROWS, dose=0)
    assert diagonal(flat)["anger"]["most"] is False, "equal rates are no lead"
    assert diagonal(pd.DataFrame({"fear": [0.2]}, index=["fear"]))["fear"]["most"] is True
    with pytest.raises(EmotraceError, match="no judged reply"):
        emotion_matrix(ROWS, dose=7)


@given(st.floats(0.01, 100), st.floats(0.5, 3), st.floats(0.05, 20), st.floats(0.01, 10))
def test_bisection_finds_a_growing_cost(factor, power, target, start):
    found = bisect(lambda s: factor * s**power, target, start=start, most=1e9, max_steps=80)
    assert found["reached"]
    assert found["cost"] == pytest.approx(target, rel=0.021)
    assert found["strength"] == pytest.approx((target / factor) ** (1 / power), rel=0.05)
    assert [found["strength"], found["cost"]] in found["steps"]


def test_bisection_says_when_a_cost_jumps_or_never_arrives():
    jump = bisect(lambda s: 0.1 if s < 3 else 5.0, 1.0)
    assert not jump["reached"]
    assert jump["cost"] in (0.1, 5.0)
    with pytest.raises(EmotraceError, match=r"reaches 0.5 at strength .*, not the target 1"):
        bisect(lambda s: 0.5, 1.0, most=100)
    with pytest.raises(EmotraceError, match="is nan"):
        bisect(lambda s: math.nan, 1.0)
    with pytest.raises(EmotraceError, match="all above 0"):
        bisect(lambda s: s, 0.0)
