"""The table of replies and the mean of its columns, by hand."""

import math

import numpy as np
import pytest

from emotrace import replies, stats
from emotrace.labels import EmotraceError
from emotrace.replies.table import READINGS, by_key, finite_mean

BOUNDS = {"perplexity": [1, 9], "length": [1, 9], "repetition": [0, 0.5]}


def row(i, match, predicted="anger", **more):
    verdict = None if match is None else {"match": match, "predicted": predicted}
    meta = {"perplexity": 5.0, "length": 3, "repetition": 0.0}
    return {"key": f"k{i}", "theme": f"t{i % 2}", "gen_text": "a b a", "verdict": verdict, "meta": meta} | more


ROWS = [
    row(0, 1), row(1, 0), row(2, 0, "neutral"), row(3, None),
    row(4, 1, meta={"perplexity": 99.0, "length": 3, "repetition": 0.0}),
]  # fmt: skip


def test_every_reading_by_hand():
    names = (
        "match",
        "other",
        "neutral",
        "fluent",
        "fluent_match",
        "perplexity",
        "kl",
        "distinct_1",
        "draw",
        "method",
        "aim",
    )
    lines = replies.table(ROWS, ("key", *names), cluster="theme", bounds=BOUNDS)
    assert list(lines.columns) == ["key", *names, "cluster"]
    assert lines["cluster"].tolist() == ["t0", "t1", "t0", "t1", "t0"]
    wanted = {"match": [1, 0, 0, math.nan, 1], "other": [0, 1, 0, math.nan, 0], "neutral": [0, 0, 1, math.nan, 0]}
    wanted |= {"fluent": [1, 1, 1, 1, 0], "fluent_match": [1, 0, 0, math.nan, 0], "perplexity": [5, 5, 5, 5, 99]}
    for name, values in wanted.items():
        np.testing.assert_array_equal(lines[name], values, err_msg=name)
    assert lines["kl"].isna().all()
    assert lines["distinct_1"].tolist() == pytest.approx([2 / 3] * 5)
    assert set(lines["method"]) == {"none"}
    assert set(lines["draw"]) == {0}
    assert set(lines["aim"]) == {""}
    assert set(names) <= set(READINGS)


def test_without_bounds_the_row_says_what_is_fluent_and_a_label_must_be_there():
    said = [{**r, "meta": {"fluent": i % 2 == 0}} for i, r in enumerate(ROWS)]
    np.testing.assert_array_equal(replies.table(said, ["fluent_match"])["fluent_match"], [1, 0, 0, math.nan, 1])
    with pytest.raises(EmotraceError, match=r"'k0' has no meta\.fluent"):
        replies.table(ROWS, ["fluent_match"])
    with pytest.raises(EmotraceError, match="row 'k0' has no 'valence'; it has key, theme"):
        replies.table(ROWS, ["valence"])
    assert replies.table([], ["match"]).empty


def test_a_mean_leaves_out_what_is_missing_and_draws_clusters():
    lines = replies.table(ROWS, ["match"], cluster="theme")
    found = replies.mean_of(lines, "match", 300, 4, shares=True)
    assert (found.value, found.n, found.n_missing, found.n_clusters) == (0.5, 4, 1, 2)
    assert (found.lo, found.hi) == stats.bootstrap_ci([1, 0, 0, 1], ["t0", "t1", "t0", "t0"], 300, 4, shares=True)
    nothing = replies.mean_of(lines.loc[lines["match"].isna()], "match")
    assert math.isnan(nothing.value)
    assert (nothing.n, nothing.n_missing, nothing.n_clusters) == (0, 1, 0)


def test_the_one_mean_is_of_what_is_finite():
    assert finite_mean([1.0, math.nan, 3.0, -math.inf]) == 2.0
    assert math.isnan(finite_mean([math.nan]))
    assert math.isnan(finite_mean([]))
    rng = np.random.default_rng(0).standard_normal(1000)
    rows = [{"key": str(i), "meta": {"kl": float(v)}} for i, v in enumerate(rng)]
    part = replies.table(rows, ["kl"], cluster="key")
    assert replies.mean_of(part, "kl").value == finite_mean(rng) == part["kl"].mean()


def test_draws_of_a_key_are_averaged():
    lines = replies.table([*ROWS, row(0, 0, draw=1)], ["key", "match"], cluster="theme")
    assert by_key(lines, "match") == {"k0": (0.5, "t0"), "k1": (0.0, "t1"), "k2": (0.0, "t0"), "k4": (1.0, "t0")}
