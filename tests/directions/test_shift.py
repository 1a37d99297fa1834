"""Paired shift against its formula, spelled out row by row."""

import numpy as np
import pytest

from emotrace import directions
from emotrace.labels import EmotraceError
from tests.directions.labelled_rows import array

EMOTIONS = ("joy", "anger")


def answers(seed=0, queries=4, layers=2, dim=5):
    """Answers of 1 to 4 tokens to some queries of each emotion, in both conditions, with two prompt tokens each."""
    rng = np.random.default_rng(seed)
    columns = {k: [] for k in ("key", "emotion", "condition", "query_id", "position", "position_from_end")}
    for e in EMOTIONS:
        for q in range(queries):
            for c in ("neutral", "emotional"):
                for at in range(2 + int(rng.integers(1, 5))):
                    row = (f"{e}{q}{c}", e, c, f"{e}_{q}", at, at - 2)
                    for name, value in zip(columns, row, strict=True):
                        columns[name].append(value)
    return array(rng.normal(size=(layers, len(columns["key"]), dim)), **columns)


def literal(x, over):
    """v_e = mean over queries of (mean over positions, emotional − the same, neutral)."""
    wanted = {"last": lambda f: f == -1, "mean_generated": lambda f: f >= -1, "mean_all": lambda f: True}[over]
    out = {}
    for e in EMOTIONS:
        shifts = []
        for q in sorted({q for q, f in zip(x.query_id.values, x.emotion.values, strict=True) if f == e}):
            mean = {}
            for c in ("neutral", "emotional"):
                rows = [
                    x.values[:, i].astype(float)
                    for i in range(x.sizes["token"])
                    if x.query_id.values[i] == q
                    and x.condition.values[i] == c
                    and wanted(x.position_from_end.values[i])
                ]
                mean[c] = sum(rows) / len(rows)
            shifts.append(mean["emotional"] - mean["neutral"])
        out[e] = sum(shifts) / len(shifts)
    return out


@pytest.mark.parametrize("over", ["last", "mean_generated", "mean_all"])
def test_paired_shift_is_its_formula(over):
    x = answers()
    found = directions.paired_shift(x, over=over)
    assert found.dims == ("emotion", "layer", "dim")
    assert found.dtype == np.float32
    for e, wanted in literal(x, over).items():
        np.testing.assert_allclose(found.sel(emotion=e).values, wanted, atol=1e-6)
    np.testing.assert_allclose(found["norm"], np.linalg.norm(found.values, axis=-1), rtol=1e-6)
    assert found["n"].values.tolist() == [4, 4]
    assert found.attrs["over"] == over


def test_half_pairs_count_on_no_side():
    x = answers()
    keys = set(x.key.values) - {"joy0emotional"}
    found = directions.paired_shift(x, accepted=keys)
    np.testing.assert_allclose(
        found.values, directions.paired_shift(x.isel(token=x.query_id.values != "joy_0")).values, atol=1e-6
    )
    assert found.sel(emotion="joy")["n"].item() == 3


def test_shift_refuses():
    x = answers(queries=1)
    for change, message in (
        ({"over": "mean"}, "unknown over 'mean'"),
        ({"condition": "side"}, "unknown label 'side'"),
        ({"positive": "emotinal"}, "Did you mean 'emotional'"),
        ({"accepted": [k for k in x.key.values if k != "joy0neutral"]}, "no query of emotion 'joy' has both"),
    ):
        with pytest.raises(EmotraceError, match=message):
            directions.paired_shift(x, **change)


def test_base_vector():
    v = directions.paired_shift(answers())
    base = directions.base_vector(v)
    np.testing.assert_allclose(base.values, v.values.mean(0), atol=1e-7)
    np.testing.assert_allclose(directions.base_vector(v, "sum").values, v.values.sum(0), atol=1e-6)
    np.testing.assert_allclose(base["norm"], np.linalg.norm(base.values, axis=-1), rtol=1e-6)
    with pytest.raises(EmotraceError, match="unknown how 'median'"):
        directions.base_vector(v, "median")
    with pytest.raises(EmotraceError, match="unknown dim"):
        directions.base_vector(base)
