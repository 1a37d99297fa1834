"""Stable block, reference and local directions: by hand, and against the published directions."""

import json

import numpy as np
import pytest
import xarray as xr

from emotrace.attribution import reference
from emotrace.labels import EMOTIONS, EmotraceError


def along(angles, labels=("joy",), subs=("resid_mid", "resid_post"), layers=None):
    """Directions in a plane, by their angle in degrees ``[label, place]``, places in the order mid0, post0, mid1, …."""
    radians = np.deg2rad(np.atleast_2d(np.asarray(angles, dtype=float)))
    values = np.stack([np.cos(radians), np.sin(radians)], axis=-1).reshape(len(radians), -1, len(subs), 2)
    layers = range(values.shape[1]) if layers is None else layers
    return xr.DataArray(
        values, dims=("emotion", "layer", "sublayer", "dim"),
        coords={"emotion": list(labels), "layer": list(layers), "sublayer": list(subs)},
    )  # fmt: skip


def published(oracles):
    parts = [oracles.npy(f"emotion_circuits/directions_{p}.npy") for p in ("attention", "mlp")]
    return xr.DataArray(
        np.stack(parts, axis=2),
        dims=("emotion", "layer", "sublayer", "dim"),
        coords={"emotion": list(EMOTIONS), "layer": np.arange(28), "sublayer": ["resid_mid", "resid_post"]},
    )


def test_the_block_is_the_longest_run_of_neighbours_that_agree():
    assert reference.stable_block(along([0, 0, 90, 91, 92, 0, 90, 0])) == [
        (1, "resid_mid"), (1, "resid_post"), (2, "resid_mid"),
    ]  # fmt: skip


def test_ties_go_to_later_places():
    assert reference.stable_block(along([0, 1, 90, 91, 0, 90, 0, 1])) == [(3, "resid_mid"), (3, "resid_post")]


def test_one_block_for_all_labels_by_the_mean_cosine():
    angles = [[0, 0, 0, 0], [0, 25.5, 0, 0]]  # cos 25.5° = 0.9026; with the other label's 1 the mean is 0.951
    d = along(angles, labels=("joy", "fear"))
    assert reference.stable_block(d, 0.951) == [
        (0, "resid_mid"),
        (0, "resid_post"),
        (1, "resid_mid"),
        (1, "resid_post"),
    ]
    assert reference.stable_block(d, 0.952) == [(1, "resid_mid"), (1, "resid_post")]


def test_where_no_neighbours_agree_the_last_place_is_left():
    assert reference.stable_block(along([0, 90, 0, 90])) == [(1, "resid_post")]


def test_layers_that_were_left_out_end_a_run():
    d = along([0, 0, 0, 0, 0, 0], layers=[2, 3, 7])
    assert reference.stable_block(d) == [(2, "resid_mid"), (2, "resid_post"), (3, "resid_mid"), (3, "resid_post")]


def test_order_of_dims_layers_and_sublayers_does_not_matter():
    d = along([0, 0, 90, 91, 92, 0, 90, 0])
    other = d.isel(layer=slice(None, None, -1), sublayer=[1, 0]).transpose("dim", "sublayer", "emotion", "layer") * 3
    assert reference.stable_block(other) == reference.stable_block(d)
    block = reference.layer_block(d, [1, 2])
    xr.testing.assert_allclose(reference.reference_direction(other, block), reference.reference_direction(d, block))


def test_parallel_models_and_other_sublayers():
    d = along([0, 1, 2, 90], subs=("resid_post",))
    assert reference.stable_block(d) == [(0, "resid_post"), (1, "resid_post"), (2, "resid_post")]
    five = along([0, 50, 100, 0, 50, 100], subs=("mlp_out", "resid_post", "attn_out"))
    assert reference.stable_block(five) == [(0, "resid_post"), (1, "resid_post")]


def test_the_reference_is_the_sum_of_the_block_with_the_first_ones_sign():
    d = along([[0, 210, 20, 40]])
    got = reference.reference_direction(d, [(0, "resid_mid"), (0, "resid_post"), (1, "resid_mid")])
    angle = np.rad2deg(np.arctan2(got.values[0, 1], got.values[0, 0]))
    by_hand = np.deg2rad([0, 30, 20])  # 210° points away from 0°, so it is turned round
    assert angle == pytest.approx(np.rad2deg(np.arctan2(np.sin(by_hand).sum(), np.cos(by_hand).sum())), abs=1e-4)
    assert np.linalg.norm(got.values) == pytest.approx(1)
    assert json.loads(got.attrs["block"]) == [[0, "resid_mid"], [0, "resid_post"], [1, "resid_mid"]]
    other = reference.reference_direction(d, [(0, "resid_post"), (0, "resid_mid"), (1, "resid_mid")])
    np.testing.assert_allclose(other.values, -got.values, atol=1e-6)


def test_local_directions_are_those_of_the_residual_after_the_sublayer():
    d = along([0, 10, 20, 30]) * 5
    local = reference.local_directions(d, [1])
    assert local["read_at"].values.tolist() == [["resid_mid", "resid_post"]]
    np.testing.assert_allclose(
        np.rad2deg(np.arctan2(local.values[0, 0, :, 1], local.values[0, 0, :, 0])), [20, 30], 1e-5
    )
    np.testing.assert_allclose(np.linalg.norm(local.values, axis=-1), 1, atol=1e-6)
    assert not local["flipped"].any()


def test_without_resid_mid_both_sublayers_take_the_direction_of_resid_post():
    local = reference.local_directions(along([0, 10, 20, 30]), [0, 1], without_mid=[1])
    assert local["read_at"].values.tolist() == [["resid_mid", "resid_post"], ["resid_post", "resid_post"]]
    np.testing.assert_array_equal(*local.sel(layer=1).transpose("sublayer", ...).values)


def test_a_flip_is_made_only_where_asked():
    d = along([[0, 10, 120, 30], [0, 10, 20, 30]], labels=("joy", "fear"))
    ref = reference.reference_direction(d, [(0, "resid_mid")])
    plain, turned = reference.local_directions(d, [0, 1]), reference.local_directions(d, [0, 1], align_to=ref)
    assert turned["flipped"].values.tolist() == [[[False, False], [True, False]], [[False, False], [False, False]]]
    np.testing.assert_array_equal(
        turned.values, np.where(turned["flipped"].values[..., None], -plain.values, plain.values)
    )


ERRORS = {
    "threshold": (lambda d: reference.stable_block(d, 1.5), "between"),
    "no layer": (lambda d: reference.stable_block(d.isel(layer=0)), "layer"),
    "no array": (lambda d: reference.stable_block(d.values), "DataArray"),
    "other sublayers": (lambda d: reference.stable_block(d.assign_coords(sublayer=["attn_out", "mlp_out"])), "resid_mid"),
    "zero": (lambda d: reference.stable_block(d * 0), "zero"),
    "nan": (lambda d: reference.reference_direction(d * np.nan, [(0, "resid_mid")]), "finite"),
    "empty block": (lambda d: reference.reference_direction(d, []), "at least one"),
    "unknown place": (lambda d: reference.reference_direction(d, [(9, "resid_mid")]), "unknown place"),
    "unknown layer": (lambda d: reference.layer_block(d, [9]), "Choices: 0, 1"),
    "no layers": (lambda d: reference.layer_block(d, []), "at least one"),
    "local layer": (lambda d: reference.local_directions(d, [9]), "unknown place"),
    "two labels": (lambda d: reference.local_directions(d.expand_dims(seed=2), [0]), "one label"),
    "reference of other labels": (
        lambda d: reference.local_directions(
            d, [0], align_to=xr.DataArray(np.eye(1, 2), dims=("emotion", "dim"), coords={"emotion": ["fear"]})
        ),
        "unknown emotion 'joy'",
    ),
    "reference of another width": (
        lambda d: reference.local_directions(d, [0], align_to=xr.DataArray(np.eye(1, 3), dims=("emotion", "dim"))),
        "width 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input(case):
    call, message = ERRORS[case]
    with pytest.raises(EmotraceError, match=message):
        call(along([0, 10, 20, 30]))


COSINES = {
    ("anger", "sadness"): -0.407, ("anger", "happiness"): -0.274, ("anger", "fear"): -0.438,
    ("anger", "surprise"): -0.209, ("anger", "disgust"): 0.367, ("sadness", "happiness"): -0.024,
    ("sadness", "fear"): 0.039, ("sadness", "surprise"): -0.281, ("sadness", "disgust"): -0.356,
    ("happiness", "fear"): -0.307, ("happiness", "surprise"): -0.123, ("happiness", "disgust"): -0.275,
    ("fear", "surprise"): -0.023, ("fear", "disgust"): -0.407, ("surprise", "disgust"): -0.268,
}  # fmt: skip


def test_published_reference(oracles):
    """Specification §9, row 15: the reference of layers 21 to 25."""
    d = published(oracles)
    block = reference.layer_block(d, range(21, 26))
    assert len(block) == 10
    assert block[0] == (21, "resid_mid")
    ref = reference.reference_direction(d, block)
    np.testing.assert_allclose(
        ref.sel(emotion="anger").values[:5], [-0.007175, 0.025488, -0.004305, 0.013592, -0.020164], atol=1e-6
    )
    for (a, b), cosine in COSINES.items():
        assert float(ref.sel(emotion=a) @ ref.sel(emotion=b)) == pytest.approx(cosine, abs=1e-3), (a, b)


def test_published_flips(oracles):
    """Specification §7: the local directions that the original turned round."""
    d = published(oracles)
    ref = reference.reference_direction(d, reference.layer_block(d, range(21, 26)))
    local = reference.local_directions(d, range(28), align_to=ref)
    found = {
        e: [
            f"{s.removesuffix('_out')}{layer}"
            for layer in range(28)
            for s in ("attn_out", "mlp_out")
            if local["flipped"].sel(emotion=e, layer=layer, sublayer=s)
        ]
        for e in EMOTIONS
    }
    assert found == {
        "anger": ["mlp2"], "sadness": ["attn0", "mlp0", "mlp4"], "happiness": ["attn0", "mlp0", "mlp1"],
        "fear": ["attn0", "mlp0", "mlp5"], "surprise": ["attn2", "mlp4", "attn5", "mlp5"], "disgust": ["attn0", "mlp0"],
    }  # fmt: skip


def test_the_published_stable_block_holds_the_layers_that_the_original_chose(oracles):
    """The rule on the published directions: mlp19 to attn27 (mlp27 lies in another space: after the final norm)."""
    d = published(oracles)
    block = reference.stable_block(d)
    assert block[0] == (19, "resid_post")
    assert block[-1] == (27, "resid_mid")
    assert len(block) == 16
    assert set(reference.layer_block(d, range(21, 26))) <= set(block)
