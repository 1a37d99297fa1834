"""Difference vectors under both file names, and never zeros for a file that is missing."""

import json

import numpy as np
import pytest
import xarray as xr

from emotrace import interop
from emotrace.labels import EMOTIONS, EmotraceError

LAYERS, HEADS, HEAD_DIM, UNITS = 3, 2, 4, 5
RNG = np.random.default_rng(0)
Z = RNG.standard_normal((6, LAYERS, HEADS * HEAD_DIM)).astype(np.float32)
NEURON = RNG.standard_normal((6, LAYERS, UNITS)).astype(np.float32)


def theirs(folder, values, stem):
    for n, e in enumerate(EMOTIONS):
        (folder / "emo_diff" / e).mkdir(parents=True)
        for layer in range(LAYERS):
            np.save(folder / "emo_diff" / e / f"{stem}{layer}.npy", values[n, layer])
    return folder


def ours():
    coords = {"emotion": list(EMOTIONS), "layer": range(LAYERS)}
    z = xr.DataArray(Z.reshape(6, LAYERS, HEADS, HEAD_DIM), coords, ("emotion", "layer", "head", "head_dim"))
    return xr.Dataset({"z": z, "neuron": xr.DataArray(NEURON, coords, ("emotion", "layer", "unit"))})


@pytest.mark.parametrize("stem", ["L", "layer"])
def test_both_names_are_read(tmp_path, stem):
    z, neuron = theirs(tmp_path / "a", Z, stem), theirs(tmp_path / "m", NEURON, stem)
    got = interop.read_differences(z, neuron / "emo_diff", n_heads=HEADS, n_layers=LAYERS)
    xr.testing.assert_equal(got, ours())
    assert got["z"].sel(emotion="fear", layer=2, head=1).values.tolist() == Z[3, 2, HEAD_DIM:].tolist()
    assert "n_groups" not in got["z"].attrs


def test_npz_and_stack(tmp_path):
    arrays = {f"{e}/diff/L{i}": NEURON[n, i] for n, e in enumerate(EMOTIONS) for i in range(LAYERS)}
    np.savez(tmp_path / "emo_diff_all.npz", **arrays)
    np.save(tmp_path / "z.npy", Z)
    got = interop.read_differences(tmp_path / "z.npy", tmp_path / "emo_diff_all.npz", n_heads=HEADS)
    xr.testing.assert_equal(got, ours())
    del arrays["disgust/diff/L1"]
    np.savez(tmp_path / "emo_diff_all.npz", **arrays)
    with pytest.raises(EmotraceError, match="disgust lacks layer 1"):
        interop.read_differences(mlp=tmp_path / "emo_diff_all.npz")
    np.savez(tmp_path / "emo_diff_all.npz", **{"anger/L0": NEURON[0, 0]})
    with pytest.raises(EmotraceError, match="the keys are"):
        interop.read_differences(mlp=tmp_path / "emo_diff_all.npz")


def test_written_ones_are_read_back_and_lie_under_both_names(tmp_path):
    data = ours()
    data["z"].attrs["n_groups"], data["neuron"].attrs["n_groups"] = 448, 20
    moved = data.transpose("layer", "unit", "head_dim", "emotion", "head")
    attention, mlp = interop.write_differences(moved, tmp_path)
    back = interop.read_differences(attention, mlp, n_heads=HEADS)
    xr.testing.assert_equal(back, ours())
    assert (back["z"].attrs["n_groups"], back["neuron"].attrs["n_groups"]) == (448, 20)
    for base, values in ((attention, Z), (mlp, NEURON)):
        for stem in ("L", "layer"):
            np.testing.assert_array_equal(np.load(base / "emo_diff" / "anger" / f"{stem}1.npy"), values[0, 1])
    summary = json.loads((attention / "summary.json").read_text())["surprise"]["layers"]["2"]
    assert summary == {
        "count": 448, "norm": float(np.linalg.norm(Z[4, 2])), "mean": float(Z[4, 2].mean()), "std": float(Z[4, 2].std())
    }  # fmt: skip


def test_a_missing_layer_is_an_error_never_zeros(tmp_path):
    base = theirs(tmp_path, Z, "L")
    with pytest.raises(EmotraceError, match="anger lacks layer 3 of 4"):
        interop.read_differences(base, n_heads=HEADS, n_layers=4)
    with pytest.raises(EmotraceError, match="has a layer 2 of 2"):
        interop.read_differences(base, n_heads=HEADS, n_layers=2)
    (base / "emo_diff" / "happiness" / "L0.npy").unlink()
    with pytest.raises(EmotraceError, match="happiness lacks layer 0"):
        interop.read_differences(base, n_heads=HEADS)


def test_files_that_contradict_each_other(tmp_path):
    base = theirs(tmp_path, Z, "L")
    np.save(base / "emo_diff" / "fear" / "layer1.npy", 2 * Z[3, 1])
    with pytest.raises(EmotraceError, match=r"L1\.npy and layer1\.npy differ"):
        interop.read_differences(base, n_heads=HEADS)
    np.save(base / "emo_diff" / "fear" / "layer1.npy", Z[3, 1])
    xr.testing.assert_equal(interop.read_differences(base, n_heads=HEADS)["z"], ours()["z"])
    figures = {e: {"layers": {str(i): {"count": 448, "norm": 1.0} for i in range(LAYERS)}} for e in EMOTIONS}
    (base / "summary.json").write_text(json.dumps(figures))
    with pytest.raises(EmotraceError, match="belongs to other vectors"):
        interop.read_differences(base, n_heads=HEADS)
    (base / "summary.json").unlink()
    np.save(base / "emo_diff" / "fear" / "layer3.npy", Z[3, 1])
    (base / "emo_diff" / "fear" / "notes.npy").write_bytes(b"")
    with pytest.raises(EmotraceError, match="files are named"):
        interop.read_differences(base, n_heads=HEADS)


def test_bad_arguments(tmp_path):
    base = theirs(tmp_path, Z, "L")
    with pytest.raises(EmotraceError, match="give attention="):
        interop.read_differences()
    with pytest.raises(EmotraceError, match="n_heads"):
        interop.read_differences(base)
    with pytest.raises(EmotraceError, match="n_heads=3 does not divide"):
        interop.read_differences(base, n_heads=3)
    with pytest.raises(EmotraceError, match="no folders of emotions"):
        interop.read_differences(mlp=tmp_path / "absent")
    with pytest.raises(EmotraceError, match="no variable"):
        interop.write_differences(xr.Dataset(), tmp_path)
    with pytest.raises(EmotraceError, match="from 0 on"):
        interop.write_differences(ours().isel(layer=[1]), tmp_path)
    with pytest.raises(EmotraceError, match="dims"):
        interop.write_differences(ours().isel(emotion=0), tmp_path)
