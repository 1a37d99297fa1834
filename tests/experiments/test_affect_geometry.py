"""Affect geometry: the regression is scikit-learn's, planted dimensions are found, and the study runs from end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeCV

from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.experiments import studies

EXPERIMENTS = Path(studies.__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import affect_geometry  # noqa: E402
import affect_norms  # noqa: E402


def warriner(path, count=60, seed=0):
    """A file in the layout of the norms, with made-up ratings: valence counts letters, men and women agree but for noise."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefgh"))
    words = sorted({"".join(rng.choice(letters, rng.integers(3, 8))) for _ in range(2 * count)})[: count - 3]
    words += ["joy", "fear", "sadness"]
    valence = np.array([w.count("e") - w.count("f") for w in words], float)
    table = pd.DataFrame({"Word": words})
    for name, score in (("V", valence), ("A", rng.normal(size=count)), ("D", rng.normal(size=count))):
        table[f"{name}.Mean.Sum"] = score
        for group in "MF":
            table[f"{name}.Mean.{group}"] = score + rng.normal(size=count) * 0.1
    table.to_csv(path, index=False)
    return path


def test_the_penalty_is_the_one_that_leaving_one_out_prefers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 30)) * rng.uniform(0.1, 3, size=30)
    y = np.column_stack([x @ rng.normal(size=30) + rng.normal(size=80), rng.normal(size=80)])
    weights, offset = affect_norms.fitted(x, y)
    variance = ((x - x.mean(0)) ** 2).mean()
    for i in range(2):
        theirs = RidgeCV(alphas=affect_norms.PENALTIES * variance).fit(x - x.mean(0), y[:, i])
        np.testing.assert_allclose(weights[:, i], theirs.coef_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(x @ weights[:, i] + offset[i], theirs.predict(x - x.mean(0)), atol=1e-8)


def test_what_was_planted_is_found_and_nothing_else():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 40))
    y = np.column_stack([x[:, 0] + 0.5 * rng.normal(size=300), rng.normal(size=300)])
    found = affect_norms.predicted(x, y, affect_norms.folds(300, 5, 0))
    draws = affect_norms.correlations(y, found, 0)
    np.testing.assert_allclose(draws[0, 0], np.corrcoef(y[:, 0], found[:, 0])[0, 1])
    planted, low, high = affect_norms.interval(draws[:, 0])
    assert 0.8 < low < planted < high < 0.95
    assert abs(draws[0, 1]) < 0.2, "noise stays noise: the fit has not seen the words"
    main = np.outer(rng.normal(size=300), np.ones(40)) * 3 + x
    assert affect_norms.components(main, main.mean(1, keepdims=True))[0, 0] > 0.95


def test_norms_of_two_layouts_and_their_ceiling(tmp_path):
    norms = affect_norms.read(warriner(tmp_path / "w.csv"))
    assert norms.dimensions == ["valence", "arousal", "dominance"]
    assert list(norms.groups) == ["M/F"]
    top = affect_norms.ceiling(norms).set_index("dimension")
    r = top.loc["arousal", "r"]
    assert top.loc["arousal", "ceiling"] == pytest.approx((2 * r / (1 + r)) ** 0.5)
    own = pd.DataFrame(
        {"word": norms.words, "warmth": norms.values[:, 0], "frequency": 5.0, "warmth.a": 1.0, "warmth.b": 2.0}
    )
    own.to_csv(tmp_path / "o.csv", index=False)
    other = affect_norms.read(tmp_path / "o.csv")
    assert (other.dimensions, list(other.groups), other.frequency is None) == (["warmth"], ["a/b"], False)
    for text, message in (
        ("a,b\n1,2\n", "column 'word'"),
        ("word,v\nx,1\n", "1 words"),
        ("word,v\nx,1\n", "dimension 'joyness'"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(EmotraceError, match=message):
            affect_norms.read(tmp_path / "bad.csv", ["joyness"] if "joyness" in message else None)


def test_the_study_from_end_to_end(tmp_path):
    tiny.save("llama", tmp_path / "model")
    options = {
        "model": str(tmp_path / "model"),
        "norms": warriner(tmp_path / "w.csv"),
        "out": tmp_path / "run",
        "folds": 3,
    }
    affect_geometry.main(**options, steer=2, new_tokens=2, steer_data=EXPERIMENTS.parent / "data" / "sev.jsonl")
    by_layer = pd.read_csv(tmp_path / "run" / "tables" / "by_layer.csv")
    assert set(by_layer["dimension"]) == {"valence", "arousal", "dominance"}
    assert (by_layer["r_lo"] <= by_layer["r"]).all()
    assert len(pd.read_csv(tmp_path / "run" / "tables" / "steering.csv")) == 7
    page = (tmp_path / "run" / "report.html").read_text()
    assert "figure-circumplex" in page
    with pytest.raises(EmotraceError, match="at its end"):
        affect_geometry.main(**options, template="{word} is a feeling")
