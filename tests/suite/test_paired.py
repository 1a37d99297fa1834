"""Arms: paired and seeded; controls of equal norm that are what their names say."""

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace.datasets import Prompts
from emotrace.labels import EmotraceError
from emotrace.suite import arms, control
from tests.helpers import loaded

NAMES = ["anger", "fear", "joy"]
PROMPTS = [
    {"key": f"q{i}", "text": text, "query": text} for i, text in enumerate(("Hello", "So it goes", "Why", "The bus"))
]
SAMPLED = {"do_sample": True, "max_new_tokens": 6}


def vectors(scale=1.0):
    rng = np.random.default_rng(0)
    values = scale * rng.standard_normal((3, 2, 32)).astype(np.float32)
    coords = {"emotion": NAMES, "layer": [0, 2]}
    return xr.DataArray(values, dims=["emotion", "layer", "dim"], coords=coords, attrs={"site": "resid_post"})


def test_rows_are_paired_and_labelled(tmp_path):
    lm = loaded()
    options = {"decoding": SAMPLED, "draws": 2, "seed": 4, "strength": 4.0, "progress": False, "out": tmp_path}
    rows = arms(lm, PROMPTS, vectors(), **options)
    assert len(rows) == 4 * 3 * (1 + 1 + 2 + 2)
    keys = [row["key"] for row in rows if row["method"] == "none"]
    for method, draw in (("steer", 0), ("random", 1), ("wrong_emotion", 1)):
        assert [r["key"] for r in rows if (r["method"], r["draw"]) == (method, draw)] == keys
    assert {(r["prompt"], r["query"]) for r in rows} == {(p["key"], p["text"]) for p in PROMPTS}
    plain = et.generate(lm, PROMPTS, seed=4, progress=False, **SAMPLED)
    for row in rows:
        if row["method"] == "none":
            assert row["token_ids"] == next(p["token_ids"] for p in plain if p["key"] == row["prompt"])
    assert any(a["token_ids"] != b["token_ids"] for a, b in zip(rows[:12], rows[12:24], strict=True))
    assert arms(lm, PROMPTS, vectors(), **options) == rows  # read again
    with pytest.raises(EmotraceError, match=r"none_0\.jsonl: row 'q0' .*prompt: "):
        arms(lm, [{**PROMPTS[0], "text": "Good day"}, *PROMPTS[1:]], vectors(), **options)
    with pytest.raises(EmotraceError, match=r"steer_0\.jsonl: row .*edits: "):
        arms(lm, PROMPTS, vectors(2.0), **options)


def test_where_edits_change_next_to_nothing_a_sampled_reply_is_the_baselines():
    rows = arms(loaded(), PROMPTS, vectors(1e-9), decoding=SAMPLED, draws=1, controls=["random"], progress=False)
    base = {row["key"]: row["token_ids"] for row in rows if row["method"] == "none"}
    assert all(row["token_ids"] == base[row["key"]] for row in rows)
    assert {row["method"] for row in rows} == {"none", "steer", "random"}


def test_controls_have_the_norms_of_the_true_vectors():
    true = vectors()
    norms = np.linalg.norm(true, axis=-1)
    wrong = control("wrong_emotion", true, seed=3)
    for found in (control("random", true, seed=1), wrong, control("shuffled", true, shuffled=[vectors(7.0)])):
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), norms, rtol=1e-5)
        assert found["emotion"].values.tolist() == NAMES
    unit = true / np.linalg.norm(true, axis=-1, keepdims=True)
    cosine = np.einsum("eld,fld->ef", unit, wrong / np.linalg.norm(wrong, axis=-1, keepdims=True)) / 2
    assert sorted(cosine.argmax(1).tolist()) == [0, 1, 2]
    assert (cosine.argmax(1) != np.arange(3)).all()
    np.testing.assert_allclose(cosine.max(1), 1, atol=1e-6)
    a, b = (control("random", true, seed=s) for s in (1, 2))
    assert abs(float((a * b).sum()) / float(np.sqrt((a * a).sum() * (b * b).sum()))) < 0.5


def test_a_mixture_aims_at_its_largest_emotion():
    true = vectors()
    found = control("random", true, "fear=2,anger=-1")
    assert found["emotion"].values.tolist() == ["fear"]
    wanted = np.linalg.norm(2 * true.sel(emotion="fear") - true.sel(emotion="anger"), axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found.sel(emotion="fear"), axis=-1), wanted, rtol=1e-5)
    rows = arms(
        loaded(), PROMPTS[:1], true, "fear=2,anger=-1", controls=[], decoding={"max_new_tokens": 2}, progress=False
    )
    assert {(row["method"], row["emotion"]) for row in rows} == {("none", "fear"), ("steer", "fear")}


@pytest.mark.parametrize(
    ("mix", "options", "said"),
    [
        (None, {"controls": ["placebo"]}, "unknown control"),
        (None, {"controls": ["shuffled"]}, "shuffled="),
        (None, {"draws": 0}, "at least 1"),
        ("anger=-1", {}, "aims at none"),
        ("boredom=1", {}, "unknown emotion"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(mix, options, said):
    with pytest.raises(EmotraceError, match=said):
        arms(loaded(), Prompts.of(PROMPTS), vectors(), mix, progress=False, **options)
