from __future__ import annotations

import numpy as np
import pytest

from emotrace import directions
from emotrace.labels import EMOTIONS


def run(x, **more):
    return directions.context_agnosticism(x, n_bootstrap=60, **more)


def test_equals_leaving_out_by_hand(plant):
    x, _ = plant(noise=1.0, layers=1)
    ds = run(x)
    right, right_raw, n = 0, 0, 0
    for theme in sorted(set(x["theme"].values)):
        inside = x["theme"].values == theme
        train, test = x.isel(token=~inside), x.isel(token=inside)
        d = directions.centered_mean(train)
        at = ds.sel(held_out=f"theme={theme}")
        alone = directions.centered_mean(test)
        np.testing.assert_allclose(at["cosine"].values, (d.values * alone.values).sum(-1), atol=1e-6)
        assert at["n_groups"].item() == 6
        for g in range(0, test.sizes["token"], 6):
            h = test.values[0, 1, g : g + 6].astype(np.float64)
            v = d.values[:, 0, 1].astype(np.float64)
            right += (((h - h.mean(0)) @ v.T).argmax(1) == np.arange(6)).sum()
            right_raw += (((h - train.values[0, 1].mean(0, dtype=np.float64)) @ v.T).argmax(1) == np.arange(6)).sum()
            n += 6
    at = ds.sel(factor="theme", layer=0, sublayer="resid_post")
    assert at["accuracy"].item() == pytest.approx(right / n)
    assert at["accuracy_raw"].item() == pytest.approx(right_raw / n)
    assert 0.3 < right / n < 1


def test_planted_directions_hold_everywhere(plant):
    x, _ = plant(n=16, noise=0.1)
    ds = run(x)
    assert ds["cosine"].min() > 0.97
    assert (np.abs(ds["cosine"] - ds["cosine_random_context"]) < 0.02).all()
    assert (ds["accuracy"] == 1).all()
    assert (ds["accuracy_ci"].sel(bound="lo") < 1).all()
    assert (ds["accuracy_raw"] < 1).all()  # the context is five times the direction
    assert ds["held_out"].values.tolist()[-3:] == ["valence=positive", "valence=neutral", "valence=negative"]
    assert ds.attrs["chance"] == pytest.approx(1 / 6)
    assert ds["cosine"].dims == ("held_out", "emotion", "layer", "sublayer")
    assert ds["emotion"].values.tolist() == list(EMOTIONS)


def test_null_is_chance(plant):
    x, _ = plant(n=24, noise=0.1)
    ds = run(x)
    assert np.abs(ds["null_mean"] - 1 / 6).max() < 0.04
    assert (ds["null_max"] > ds["null_mean"]).all()
    assert (ds["null_max"] < 0.4).all()
    nothing = run(plant(n=24, strength=0.0, noise=1.0)[0])
    assert np.abs(nothing["accuracy"] - 1 / 6).max() < 0.12
    by_chance = nothing["cosine"].mean("emotion")  # the parts of a whole would be alike in noise, too
    assert np.abs(by_chance).max() < 0.5
    assert np.abs(by_chance.mean()) < 0.1
    assert np.abs(nothing["cosine_random_context"].mean()) < 0.1
    assert (ds["cosine_null_max"] < ds["cosine"]).all()
    assert np.abs(ds["cosine_null_mean"].mean()) < 0.05


def test_context_bound_directions_are_found_out(plant):
    x, _ = plant(n=12, themes=6, noise=0.1, shared=False)
    ds = run(x)
    theme = ds["accuracy"].sel(factor="theme")
    assert (theme < 0.5).all()
    assert (
        ds["cosine"].sel(held_out=ds["held_out_factor"] == "theme") < 0
    ).all()  # what the others have is its opposite
    assert (run(plant(n=12, themes=6, noise=0.1)[0])["accuracy"].sel(factor="theme") == 1).all()


def test_intervals_hold_their_estimate_and_tighten(plant):
    few, many = run(plant(n=8, noise=1.0)[0]), run(plant(n=48, noise=1.0)[0])
    for ds in (few, many):
        for name in ("cosine", "accuracy", "accuracy_raw", "accuracy_by_level", "accuracy_raw_by_level"):
            lo, hi = ds[f"{name}_ci"].sel(bound="lo"), ds[f"{name}_ci"].sel(bound="hi")
            assert ((lo <= ds[name] + 1e-9) & (ds[name] <= hi + 1e-9)).all(), name
            assert (hi > lo).all(), name
    width = [float((ds["cosine_ci"].sel(bound="hi") - ds["cosine_ci"].sel(bound="lo")).mean()) for ds in (few, many)]
    assert width[1] < width[0] / 2


def test_bootstrap_spread_equals_refitting(plant):
    from emotrace.directions.halves import cosines
    from emotrace.stats import cluster_weights

    rng = np.random.default_rng(0)
    inner = rng.normal(size=(12, 6, 5)) + 2 * rng.normal(size=(6, 5))
    inner -= inner.mean(1, keepdims=True)
    clusters, code = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    weights = cluster_weights(4, 20, 0)
    cosine, spread = cosines(inner, code, clusters, weights)
    for t in range(3):
        z = []
        for w in [np.ones(4), *weights]:
            mine, left = ((inner * (w[clusters] * side)[:, None, None]).sum(0) for side in (code == t, code != t))
            norms = np.linalg.norm(mine, axis=-1) * np.linalg.norm(left, axis=-1)
            z.append((mine * left).sum(-1) / norms)
        np.testing.assert_allclose(cosine[t], z[0], atol=1e-12)
        np.testing.assert_allclose(spread[t], np.arctanh(z[1:]).std(0), rtol=1e-6)


def test_without_sublayer_and_same_seed_same_answer(plant):
    x, _ = plant(noise=1.0)
    full, one = run(x, seed=3), run(x.sel(sublayer="resid_post"), seed=3)
    assert one["accuracy"].dims == ("factor", "layer")
    for name in ("accuracy", "cosine_ci", "null_max"):
        np.testing.assert_allclose(one[name].values, full[name].sel(sublayer="resid_post").values, atol=1e-12)


def test_random_contexts_are_as_large_and_keep_clusters_together():
    from emotrace.directions.halves import other_contexts

    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(6), 3)
    theme, valence = np.repeat([0, 0, 1, 2, 2, 2], 3), np.tile(np.arange(3), 6)
    for code in (theme, valence):
        drawn = other_contexts(code, clusters, 40, rng)
        assert (np.sort(drawn) == np.sort(code)).all()
        assert (drawn != code).any()
    assert (np.ptp(other_contexts(theme, clusters, 40, rng).reshape(40, 6, 3), axis=2) == 0).all()
    within = other_contexts(valence, clusters, 40, rng).reshape(40, 6, 3)
    assert (np.sort(within, axis=2) == np.arange(3)).all()


def test_a_context_that_bends_directions_is_told_from_random_ones(plant):
    """Half of the themes have a direction of their own beside the common one."""
    x, truth = plant(n=24, themes=4, noise=0.5, layers=1)
    bent = np.isin(x["theme"].values, ["theme 0", "theme 1"])
    own = np.roll(truth, 1, axis=0)[[EMOTIONS.index(e) for e in x["emotion"].values]].transpose(1, 2, 0, 3)
    ds = run(x + np.where(bent[:, None], 2 * own, 0), leave_out=["theme"])
    assert (ds["cosine"].mean("emotion") < ds["cosine_random_context"].mean("emotion") - 0.1).all()
    same = run(x, leave_out=["theme"])
    assert (abs(same["cosine"].mean("emotion") - same["cosine_random_context"].mean("emotion")) < 0.05).all()
