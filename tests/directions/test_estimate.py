from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from emotrace import directions
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError


def literal(x, within=("skeleton_id", "valence"), complete=True):
    """The specification's formula, word for word: {(emotion, layer, sublayer): c_e}."""
    x = x.transpose("token", "layer", "sublayer", "dim")
    values = x.values.astype(np.float64)
    emotions = x["emotion"].values
    groups = {}
    for i in range(len(values)):
        name = tuple(str(x[w].values[i]) for w in within)
        groups.setdefault(name, {}).setdefault(emotions[i], []).append(values[i])
    d = {e: [] for e in EMOTIONS}
    for cells in groups.values():
        if (complete and len(cells) < len(EMOTIONS)) or len(cells) < 2:
            continue
        means = {e: sum(v) / len(v) for e, v in cells.items()}
        middle = sum(means.values()) / len(means)
        for e, m in means.items():
            d[e].append(m - middle)
    c = {e: sum(v) / len(v) for e, v in d.items()}
    overall = sum(c.values()) / len(c)
    return np.stack([c[e] - overall for e in EMOTIONS])


def check(got, c):
    got = got.transpose("emotion", "layer", "sublayer", "dim")
    norms = np.linalg.norm(c, axis=-1)
    np.testing.assert_allclose(got.values, c / norms[..., None], atol=2e-7)
    np.testing.assert_allclose(got["norm"].values, norms, rtol=1e-6)


@pytest.mark.parametrize("complete", [True, False])
def test_equals_the_literal_twin_with_rows_missing_and_repeated(plant, complete):
    x, _ = plant()
    rng = np.random.default_rng(1)
    rows = np.sort(np.r_[rng.choice(x.sizes["token"], 130, replace=False), rng.choice(x.sizes["token"], 15)])
    x = x.isel(token=rows)
    check(directions.centered_mean(x, complete=complete), literal(x, complete=complete))


@pytest.mark.parametrize("within", [None, ()])
def test_without_groups_it_is_the_class_mean_less_the_mean_of_class_means(plant, within):
    x, _ = plant()
    x = x.isel(token=np.r_[0:70, 80:130])
    x = x.drop_vars(["skeleton_id", "valence"])
    got = directions.centered_mean(x, within=within)
    check(got, literal(x, within=()))
    assert (got.attrs["within"], got.attrs["n_groups"]) == ([], 1)
    with pytest.raises(
        EmotraceError, match=r"unknown label 'skeleton_id'.*For one group of all rows: within=None, --within ''"
    ):
        directions.centered_mean(x)


def test_what_comes_back(plant):
    x, truth = plant(n=40, noise=0.05)
    got = directions.centered_mean(x)
    assert got.dims == ("emotion", "layer", "sublayer", "dim")
    assert (got.name, got.dtype) == ("direction", np.float32)
    assert got["emotion"].values.tolist() == list(EMOTIONS)
    assert got["norm"].dims == ("emotion", "layer", "sublayer")
    np.testing.assert_allclose(np.linalg.norm(got.values, axis=-1), 1, atol=2e-7)
    assert ((got.values * truth).sum(-1) > 0.99).all()
    about = got.attrs
    assert (about["n_groups"], about["n_rows"], about["n_incomplete"], about["space"]) == (120, 720, 0, "residual")
    assert (about["model_id"], about["prompts_digest"]) == ("planted", "abc")
    assert "command" not in about
    json.dumps(about)


def test_dims_in_any_order_and_absent(plant):
    x, _ = plant()
    full = directions.centered_mean(x)
    xr.testing.assert_identical(full, directions.centered_mean(x.transpose("dim", "token", "sublayer", "layer")))
    one = directions.centered_mean(x.sel(sublayer="resid_post"))
    assert one.dims == ("emotion", "layer", "dim")
    assert one["sublayer"].item() == "resid_post"
    np.testing.assert_array_equal(one.values, full.sel(sublayer="resid_post").values)
    alone = directions.centered_mean(x.isel(layer=1, sublayer=0))
    assert alone.dims == ("emotion", "dim")
    np.testing.assert_array_equal(alone.values, full.isel(layer=1, sublayer=0).values)


def test_blocks_do_not_matter(plant, monkeypatch):
    x, _ = plant()
    whole = directions.centered_mean(x)
    monkeypatch.setattr("emotrace.directions.source.BLOCK_BYTES", 8 * 2 * 16 * 7)
    np.testing.assert_allclose(directions.centered_mean(x).values, whole.values, atol=1e-7)
    np.testing.assert_allclose(directions.mean_rms(x).values, np.sqrt((x**2).mean("dim")).mean("token"), rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_row_order_and_scale_do_not_matter(seed, scale):
    from_rng = np.random.default_rng(seed)
    x = small(from_rng)
    base = directions.centered_mean(x)
    moved = directions.centered_mean((x * scale).isel(token=from_rng.permutation(x.sizes["token"])))
    np.testing.assert_allclose(moved.values, base.values, atol=1e-5)
    np.testing.assert_allclose(moved["norm"].values, base["norm"].values * np.float32(scale), rtol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_what_a_group_shares_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    x = small(rng)
    shift = np.repeat(rng.normal(size=(4, 1, 5)), 6, axis=0).reshape(24, 1, 5).transpose(1, 0, 2)
    np.testing.assert_allclose(
        directions.centered_mean(x + shift).values, directions.centered_mean(x).values, atol=1e-6
    )


def small(rng):
    rows = [(s, v, e) for s in ("a", "b") for v in VALENCES[:2] for e in EMOTIONS]
    labels = {c: ("token", [r[i] for r in rows]) for i, c in enumerate(("skeleton_id", "valence", "emotion"))}
    return xr.DataArray(rng.normal(size=(1, 24, 5)), dims=("layer", "token", "dim"), coords=labels)


def test_accepted_and_incomplete_are_listed(plant):
    x, _ = plant()
    rows = [{"key": k, "verdict": {"match": int(k != "s_03__neutral__fear")}} for k in x["key"].values]
    keys = directions.accepted(rows)
    got = directions.centered_mean(x, accepted=keys)
    assert json.loads(got.attrs["incomplete"]) == [{"group": ["s_03", "neutral"], "missing": ["fear"]}]
    assert (got.attrs["n_groups"], got.attrs["n_rows"], got.attrs["n_incomplete"]) == (23, 138, 1)
    keep = ~((x["skeleton_id"] == "s_03") & (x["valence"] == "neutral"))
    np.testing.assert_array_equal(got.values, directions.centered_mean(x.isel(token=keep.values)).values)
    loose = directions.centered_mean(x, accepted=keys, complete=False)
    assert (loose.attrs["n_groups"], loose.attrs["n_rows"]) == (24, 143)


def test_rows_without_label_are_left_out(plant):
    x, _ = plant()
    plain = x.isel(token=slice(0, 6)).assign_coords(emotion=("token", [""] * 6))
    both = xr.concat([x.drop_attrs(), plain.drop_attrs()], "token")
    np.testing.assert_array_equal(directions.centered_mean(both).values, directions.centered_mean(x).values)


class Acts:
    """What open activations look like from here."""

    def __init__(self, x):
        self.x, self.attrs, self.asked = x, {"model_id": "acts", "revision": "r1"}, []

    def sel(self, variable="residual", position=None):
        self.asked.append((variable, position))
        return self.x


def test_activations_and_positions(plant):
    x, _ = plant()
    acts = Acts(x)
    got = directions.centered_mean(acts, variable="residual")
    assert acts.asked == [("residual", "last")]
    assert (got.attrs["model_id"], got.attrs["revision"]) == ("planted", "r1")
    n = x.sizes["token"]
    noise = x.copy(data=np.random.default_rng(0).normal(size=x.shape).astype(np.float32))
    two = xr.concat([noise, x], "token").assign_coords(position_from_end=("token", [-2] * n + [-1] * n))
    np.testing.assert_array_equal(directions.centered_mean(two).values, got.values)
    check(directions.centered_mean(two, position="prompt"), literal(two))
    with pytest.raises(EmotraceError, match="generated"):
        directions.centered_mean(two, position="generated")


def test_difference_vectors_of_heads(plant):
    x, _ = plant(subs=("resid_mid",))
    z = xr.DataArray(
        x.values[:, 0].reshape(2, -1, 4, 4),
        dims=("layer", "token", "head", "head_dim"),
        coords={c: x[c] for c in ("skeleton_id", "valence", "emotion")},
    )
    got = directions.centered_mean(z, unit=False)
    assert got.dims == ("emotion", "layer", "head", "head_dim")
    np.testing.assert_allclose(got.values.reshape(6, 2, 16), literal(x)[:, :, 0], atol=1e-6)


def test_mean_difference_plain_and_paired(plant):
    x, truth = plant(n=30, noise=0.05)
    values = x.values.astype(np.float64)
    fear, joy = x["emotion"].values == "fear", x["emotion"].values == "happiness"
    expected = values[:, :, fear].mean(2) - values[:, :, joy].mean(2)
    got = directions.mean_difference(x, "emotion", "fear", "happiness")
    assert got.dims == ("layer", "sublayer", "dim")
    np.testing.assert_allclose(got.values * got["norm"].values[..., None], expected, atol=1e-5)
    cut = x.isel(token=np.flatnonzero(~(fear & (x["theme"].values == "theme 1"))))
    paired = directions.mean_difference(cut, "emotion", "fear", "happiness", within=("skeleton_id", "valence"))
    want = truth[3] - truth[2]
    want = want / np.linalg.norm(want, axis=-1, keepdims=True)
    assert ((paired.values * want).sum(-1) > 0.99).all()
    assert ((directions.mean_difference(cut, "emotion", "fear", "happiness").values * want).sum(-1) < 0.99).any()
    assert paired.attrs["n_groups"] == 90 - 24


@pytest.mark.parametrize("n", [3, 20])
def test_pca_equals_svd(plant, n):
    x, _ = plant(n=n, dim=64)
    got = directions.pca(x, k=3)
    for layer in range(2):
        h = x.values[layer, 1].astype(np.float64)
        _, s, v = np.linalg.svd(h - h.mean(0), full_matrices=False)
        cos = np.abs((got.values[:, layer, 1] * v[:3]).sum(-1))
        np.testing.assert_allclose(cos, 1, atol=1e-5)
        np.testing.assert_allclose(got["norm"].values[:, layer, 1], s[:3] / np.sqrt(len(h) - 1), rtol=1e-6)
        np.testing.assert_allclose(got["explained"].values[:, layer, 1], (s**2 / (s**2).sum())[:3], rtol=1e-6)


def test_pca_within_groups_finds_the_planted_span(plant):
    x, truth = plant(n=30, noise=0.02)
    span = np.linalg.svd(truth[:, 0, 0])[2][:5]
    got = directions.pca(x, within=("skeleton_id", "valence"), k=5).values[:, 0, 0]
    np.testing.assert_allclose(np.linalg.norm(got @ span.T, axis=-1), 1, atol=1e-3)
    assert np.linalg.norm(directions.pca(x, k=1).values[0, 0, 0] @ span.T) < 0.95


def flat(x):
    return x.copy(data=np.ones(x.shape, dtype=np.float32))


def holed(x):
    out = x.copy(deep=True)
    out.values[1, 0, 5, 3] = np.nan
    return out


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda x: directions.centered_mean(x, label="emotions"), "Did you mean 'emotion'"),
        (lambda x: directions.centered_mean(x, within=("skeleton",)), "skeleton_id"),
        (lambda x: directions.centered_mean(x, within=("emotion",)), "within"),
        (lambda x: directions.centered_mean(x.isel(token=slice(0, 1))), "two or more"),
        (lambda x: directions.centered_mean(x, within="key"), "no complete group"),
        (lambda x: directions.centered_mean(x, accepted="s_00"), "a list of names"),
        (lambda x: directions.centered_mean(x, accepted=["nobody"]), "none of the keys"),
        (lambda x: directions.centered_mean(x.values), "ndarray"),
        (lambda x: directions.centered_mean(x.rename(token="row")), "token"),
        (lambda x: directions.centered_mean(x, position="lst"), "last"),
        (lambda x: directions.centered_mean(flat(x)), "anger.*layer 0, sublayer resid_mid.*norm zero"),
        (lambda x: directions.centered_mean(holed(x)), "layer 1.*s_00__positive__disgust.*not finite"),
        (lambda x: directions.mean_difference(x, "emotion", "joy", "fear"), "positive"),
        (lambda x: directions.mean_difference(x, "emotion", ["fear", "anger"], "fear"), "overlap"),
        (lambda x: directions.pca(x, k=17), "1..16"),
        (lambda x: directions.context_agnosticism(x, leave_out=("emotion",)), "not constant"),
        (lambda x: directions.context_agnosticism(x.sel(token=x["valence"] == "neutral")), "one level"),
        (lambda x: directions.context_agnosticism(x, cluster="skeleton"), "skeleton_id"),
    ],
)
def test_bad_input(plant, call, word):
    x, _ = plant(n=4)
    with pytest.raises(EmotraceError, match=word):
        call(x)


def test_published_complete_groups(oracles):
    """Specification §9, row 4."""
    rows = oracles.jsonl("emotion_circuits/labeled_sev/accepted.jsonl")
    complete, incomplete = directions.complete_groups(rows)
    assert (len(complete), len(incomplete)) == (448, 32)
    assert [sum(v == valence for _, v in complete) for valence in VALENCES] == [157, 151, 140]
    assert len({s for s, _ in complete}) == 159
    assert len(directions.accepted(rows)) == 2847
