"""Directions, activations, sigmas and cosines: from their layouts into ours, and back."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

from emotrace import directions, interop
from emotrace.labels import EMOTIONS, EmotraceError
from tests.interop import literal

LAYERS, DIM = 3, 7
RNG = np.random.default_rng(0)


def centred(layers=LAYERS, dim=DIM, seed=0):
    """Unit vectors that are dependent as centring makes them, and the norms that were taken away."""
    x = np.random.default_rng(seed).standard_normal((6, layers, 2, dim))
    x -= x.mean(0)
    norms = np.linalg.norm(x, axis=-1)
    return (x / norms[..., None]).astype(np.float32), norms


def save_theirs(folder, values, kinds=("attention", "mlp")):
    for i, kind in enumerate(kinds):
        content = {"dirs": {e: values[n, :, i].copy() for n, e in enumerate(EMOTIONS)}, "layers": LAYERS, "hidden": DIM}
        torch.save({**content, "emotions": list(EMOTIONS), "type": kind}, folder / f"emo_directions_{kind}.pt")


def test_published_directions_become_labelled(tmp_path):
    values, norms = centred()
    save_theirs(tmp_path, values)
    got = interop.read_directions(tmp_path)
    assert got.dims == ("emotion", "layer", "sublayer", "dim")
    assert got["sublayer"].values.tolist() == ["resid_mid", "resid_post"]
    assert got["emotion"].values.tolist() == list(EMOTIONS)
    np.testing.assert_array_equal(got.values, values)
    one = got.sel(emotion="fear", layer=1, sublayer="resid_post").values
    np.testing.assert_array_equal(one, values[3, 1, 1])
    np.testing.assert_allclose(got["relative_norm"].values, norms / norms.mean(0), rtol=1e-5)


def test_the_last_layer_of_mlp_is_marked_as_after_the_final_norm(tmp_path):
    save_theirs(tmp_path, centred()[0])
    leak = [{"layer": LAYERS - 1, "sublayer": "resid_post"}]
    assert interop.read_directions(tmp_path).attrs["after_final_norm"] == leak
    assert interop.read_directions(tmp_path / "emo_directions_attention.pt").attrs["after_final_norm"] == []
    assert interop.read_directions(tmp_path, final_norm=False).attrs["after_final_norm"] == []


def test_a_stack_says_its_sublayer_by_name_or_by_argument(tmp_path):
    values, _ = centred()
    for name, i in (("directions_attention", 0), ("directions_mlp", 1), ("stack", 1)):
        np.save(tmp_path / f"{name}.npy", values[:, :, i])
    got = interop.read_directions([tmp_path / "directions_mlp.npy", tmp_path / "directions_attention.npy"])
    np.testing.assert_array_equal(got.values, values)
    xr.testing.assert_identical(interop.read_directions(tmp_path), got)
    one = interop.read_directions(tmp_path / "stack.npy", sublayer="resid_post", emotions=EMOTIONS[::-1])
    np.testing.assert_array_equal(one.sel(emotion="disgust", sublayer="resid_post").values, values[0, :, 1])
    with pytest.raises(EmotraceError, match="say sublayer="):
        interop.read_directions(tmp_path / "stack.npy")
    with pytest.raises(EmotraceError, match="5 emotions"):
        interop.read_directions(tmp_path / "directions_mlp.npy", emotions=EMOTIONS[:5])


def test_their_scripts_read_our_directions(tmp_path):
    values, _ = centred()
    ours = xr.DataArray(
        values[[2, 0, 1, 3, 5, 4]],
        dims=("emotion", "layer", "sublayer", "dim"),
        coords={
            "emotion": [EMOTIONS[i] for i in (2, 0, 1, 3, 5, 4)], "layer": range(LAYERS),
            "sublayer": ["resid_mid", "resid_post"],
        },
    )  # fmt: skip
    files = interop.write_directions(ours.transpose("layer", "dim", "sublayer", "emotion"), tmp_path / "new")
    assert [f.name for f in files] == ["emo_directions_attention.pt", "emo_directions_mlp.pt"]
    rows = literal.directions(tmp_path / "new")
    cosines = directions.sublayer_similarity(ours)
    for n, e in enumerate(EMOTIONS):
        np.testing.assert_array_equal(rows[e], values[n].reshape(2 * LAYERS, DIM))
        np.testing.assert_allclose(rows[e] @ rows[e].T, cosines.sel(emotion=e).values, atol=1e-6)
    back = interop.read_directions(tmp_path / "new")
    np.testing.assert_array_equal(back.values, values)
    assert back.attrs["after_final_norm"] == []  # ours are captured before the final norm, and the file says so
    save_theirs(tmp_path, values)
    interop.write_directions(interop.read_directions(tmp_path), tmp_path / "again")
    assert interop.read_directions(tmp_path / "again").attrs["after_final_norm"] != []


def test_bad_directions(tmp_path):
    values, _ = centred()
    save_theirs(tmp_path, values)
    good = interop.read_directions(tmp_path)
    with pytest.raises(EmotraceError, match="from 0 on"):
        interop.write_directions(good.isel(layer=[1, 2]), tmp_path / "x")
    with pytest.raises(EmotraceError, match="unknown sublayer"):
        interop.write_directions(good.assign_coords(sublayer=["attn_out", "mlp_out"]), tmp_path / "x")
    with pytest.raises(EmotraceError, match="dims"):
        interop.write_directions(good.isel(layer=0), tmp_path / "x")
    with pytest.raises(EmotraceError, match="a second file"):
        interop.read_directions([tmp_path / "emo_directions_mlp.pt"] * 2)
    save_theirs(tmp_path, 2 * values)
    with pytest.raises(EmotraceError, match="unit vectors"):
        interop.read_directions(tmp_path)
    save_theirs(tmp_path, np.where(values > 0, np.nan, values))
    with pytest.raises(EmotraceError, match="finite"):
        interop.read_directions(tmp_path)
    save_theirs(tmp_path, values)
    torch.save({"type": "mlp", "dirs": {"anger": values[0, :, 0], "joy of life": values[1, :, 0]}}, tmp_path / "a.pt")
    torch.save({"type": "mlp", "dirs": {"anger": values[0, :, 0], "fear": values[1, :2, 0]}}, tmp_path / "b.pt")
    torch.save({"type": "mlp", "vectors": {}}, tmp_path / "c.pt")
    for name, word in (("a", "unknown emotion"), ("b", "of one shape"), ("c", "no dict 'dirs'")):
        with pytest.raises(EmotraceError, match=word):
            interop.read_directions(tmp_path / f"{name}.pt")
    (tmp_path / "none").mkdir()
    with pytest.raises(EmotraceError, match="holds no file"):
        interop.read_directions(tmp_path / "none")


def dump(folder, groups, width=DIM, seed=1):
    folder.mkdir(parents=True)
    rng, held = np.random.default_rng(seed), {}
    for group in groups:
        x = {e: torch.tensor(rng.standard_normal((LAYERS, width)) + n).half() for n, e in enumerate(EMOTIONS)}
        held[group] = {e: t.numpy() for e, t in x.items()}
        extra = {"logits_0": torch.zeros(1), "input_ids": torch.zeros(1), "gen_text": dict.fromkeys(EMOTIONS, "Hm.")}
        indices = {e: torch.tensor(81, dtype=torch.int32) for e in EMOTIONS}
        torch.save({"hidden_last_all_layers": x, "last_input_idx": indices, **extra}, folder / f"{group}.pt")
    return held


GROUPS = ["work_00__positive", "work_00__negative", "travel_test_01__neutral"]


def test_published_activations_give_their_directions(tmp_path):
    held = {
        kind: dump(tmp_path / "residual_dump" / kind, GROUPS, seed=i) for i, kind in enumerate(("attention", "mlp"))
    }
    acts = interop.read_activations(tmp_path / "residual_dump")
    assert dict(acts.sizes) == {"layer": LAYERS, "sublayer": 2, "token": 18, "dim": DIM}
    assert acts.dtype == np.float16
    assert acts.attrs["after_final_norm"] == [{"layer": LAYERS - 1, "sublayer": "resid_post"}]
    got = directions.centered_mean(acts)
    assert got.attrs["n_groups"] == 3  # the three groups of two skeletons: valence belongs to the key
    for kind, sub in (("attention", "resid_mid"), ("mlp", "resid_post")):
        wanted = literal.direction_dump(held[kind])
        for e in EMOTIONS:
            np.testing.assert_allclose(got.sel(emotion=e, sublayer=sub).values, wanted[e], atol=1e-6)
    row = acts.isel(token=list(acts["key"].values).index("travel_test_01__neutral__fear")).sel(sublayer="resid_mid")
    np.testing.assert_array_equal(row.values, held["attention"]["travel_test_01__neutral"]["fear"])


def test_inputs_of_the_projections(tmp_path):
    z = dump(tmp_path / "o_proj_input", GROUPS, width=8)
    neuron = dump(tmp_path / "down_proj_input", GROUPS, width=11)
    got = interop.read_activations(tmp_path / "o_proj_input", n_heads=4)
    assert got.dims == ("layer", "token", "head", "head_dim")
    np.testing.assert_array_equal(got.isel(token=0, head=1).values, z["travel_test_01__neutral"]["anger"][:, 2:4])
    got = interop.read_activations(tmp_path / "down_proj_input")
    assert got.dims == ("layer", "token", "unit")
    np.testing.assert_array_equal(got.isel(token=1).values, neuron["travel_test_01__neutral"]["sadness"])
    assert "after_final_norm" not in got.attrs


def test_bad_activations(tmp_path):
    dump(tmp_path / "attention", GROUPS)
    with pytest.raises(EmotraceError, match="unknown kind"):
        interop.read_activations(tmp_path / "attention", "hidden")
    with pytest.raises(EmotraceError, match="n_heads"):
        interop.read_activations(tmp_path / "attention", "o_proj_input")
    with pytest.raises(EmotraceError, match="does not divide"):
        interop.read_activations(tmp_path / "attention", "o_proj_input", n_heads=2)
    dump(tmp_path / "mlp", GROUPS[:2])
    with pytest.raises(EmotraceError, match="other groups"):
        interop.read_activations(tmp_path)
    (tmp_path / "mlp" / "work_00__positive.pt").rename(tmp_path / "mlp" / "work_00.pt")
    with pytest.raises(EmotraceError, match="SKELETON__VALENCE"):
        interop.read_activations(tmp_path / "mlp")
    torch.save({"hidden": 1}, tmp_path / "attention" / "work_09__neutral.pt")
    with pytest.raises(EmotraceError, match="hidden_last_all_layers"):
        interop.read_activations(tmp_path / "attention")
    torch.save({"hidden_last_all_layers": {"fear": torch.ones(2, DIM)}}, tmp_path / "attention" / "work_09__neutral.pt")
    with pytest.raises(EmotraceError, match="shape"):
        interop.read_activations(tmp_path / "attention")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmotraceError, match=r"no \.pt file"):
        interop.read_activations(tmp_path / "empty", "mlp")


def test_sigma(tmp_path):
    keys = {
        f"{kind}_{layer}": 1.0 + layer + 10 * i for i, kind in enumerate(("attention", "mlp")) for layer in range(12)
    }
    (tmp_path / "sigma_summary.json").write_text(json.dumps(keys))
    got = interop.read_sigma(tmp_path / "sigma_summary.json")
    assert got.sel(layer=11, sublayer="resid_post").item() == 22.0
    assert got.sel(layer=2, sublayer="resid_mid").item() == 3.0
    assert got.attrs["after_final_norm"] == [{"layer": 11, "sublayer": "resid_post"}]
    for broken, word in (
        ({"mlp_1": 2.0}, "mlp_0"),
        ({"z_0": 1.0}, "z_0"),
        ({"mlp_0": "big"}, "big"),
        ({}, "every key"),
    ):
        (tmp_path / "b.json").write_text(json.dumps(broken))
        with pytest.raises(EmotraceError, match=word):
            interop.read_sigma(tmp_path / "b.json")


def test_similarity_is_laid_out_as_ours(tmp_path):
    values, _ = centred()
    save_theirs(tmp_path, values)
    ours = directions.sublayer_similarity(interop.read_directions(tmp_path))
    for e in ("fear", "anger"):
        rows = literal.directions(tmp_path)[e]
        np.save(tmp_path / f"{e}_similarity_matrix.npy", rows @ rows.T)
    theirs = interop.read_similarity(tmp_path)
    assert theirs["emotion"].values.tolist() == ["anger", "fear"]
    aligned = ours.sel(emotion=["anger", "fear"])
    assert aligned["place"].values.tolist() == theirs["place"].values.tolist()
    np.testing.assert_allclose(theirs.values, aligned.values, atol=1e-6)
    np.save(tmp_path / "matrix_similarity_matrix.npy", np.eye(4))
    with pytest.raises(EmotraceError, match="says no emotion"):
        interop.read_similarity(tmp_path / "matrix_similarity_matrix.npy")
    np.save(tmp_path / "disgust_similarity_matrix.npy", np.eye(3))
    with pytest.raises(EmotraceError, match="square"):
        interop.read_similarity(tmp_path / "disgust_similarity_matrix.npy")
