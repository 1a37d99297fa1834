"""Vectors of other tools: exact round trips, a GGUF written byte by byte, layer offsets, and what cannot be written."""

import pickle
import struct

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import interop
from emotrace.labels import EmotraceError
from tests.helpers import loaded

WIDTH = 32
RNG = np.random.default_rng(5)


def vectors(layers=(1, 2)):
    values = RNG.normal(size=(2, len(layers), WIDTH)).astype(np.float32)
    coords = {"emotion": ["fear", "joy"], "layer": list(layers)}
    return xr.DataArray(values, dims=("emotion", "layer", "dim"), coords=coords, attrs={"site": "resid_post"})


def addition(vector=None, layers=(1, 2), **change):
    vector = vectors().sel(emotion="joy") if vector is None else vector
    return et.Add(
        **{"site": "resid_post", "layers": layers, "vector": vector, "positions": "all", "strength": 0.5} | change
    )


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def by_hand(rows, kind=0, version=3, architecture="controlvector"):
    """A control vector as the format's description has it, alignment 32; float16 for kind 1."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(rows), 3)
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    head += text("controlvector.layer_count") + struct.pack("<Ii", 5, 3)
    head += text("odd.list") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<II", 7, 8)
    body = b""
    for layer, row in rows.items():
        head += text(f"direction.{layer}") + struct.pack("<IQIQ", 1, len(row), kind, len(body))
        body += np.asarray(row, "<f2" if kind else "<f4").tobytes()
        body += bytes(-len(body) % 32)
    return head + bytes(-len(head) % 32) + body


def as_written(rows, hint, count):
    """What a control vector of layers 1, 2, … is, byte by byte."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), 3)
    head += text("general.architecture") + struct.pack("<I", 8) + text("controlvector")
    head += text("controlvector.model_hint") + struct.pack("<I", 8) + text(hint)
    head += text("controlvector.layer_count") + struct.pack("<II", 4, count)
    body = b""
    for layer, row in enumerate(rows, 1):
        head += text(f"direction.{layer}") + struct.pack("<IQIQ", 1, len(row), 0, len(body))
        body += row.astype("<f4").tobytes() + bytes(-4 * len(row) % 32)
    return head + bytes(-len(head) % 32) + body


def test_a_control_vector_goes_out_and_comes_back_exactly(tmp_path):
    v = vectors()
    for e in ("fear", "joy"):
        interop.write_control_vector(
            addition(v.sel(emotion=e), strength=1.0), tmp_path / f"{e}.gguf", model_hint="llama", layers=3
        )
    assert (tmp_path / "joy.gguf").read_bytes() == as_written(v.sel(emotion="joy").values, "llama", 3)
    back = interop.read_control_vectors({e: tmp_path / f"{e}.gguf" for e in ("fear", "joy")}, model=loaded())
    assert (back.values == v.values).all()
    assert back["layer"].values.tolist() == [1, 2]
    assert back.attrs["site"] == "resid_post"
    interop.write_control_vector(
        addition(v.sel(emotion="joy"), layers=[2], strength=-0.25), tmp_path / "x.gguf", model_hint="m"
    )
    scaled = interop.read_control_vectors({"joy": tmp_path / "x.gguf"})
    assert (scaled.sel(emotion="joy", layer=2) == np.float32(-0.25) * v.sel(emotion="joy", layer=2).values).all()


@pytest.mark.parametrize("kind", [0, 1])
def test_a_file_of_another_writer_is_read(tmp_path, kind):
    rows = {1: [1.0, 2.0, 3.5], 3: [-4.0, 0.0, 6.0]}
    (tmp_path / "v.gguf").write_bytes(by_hand(rows, kind))
    found = interop.read_control_vectors({"joy": tmp_path / "v.gguf"})
    assert found["layer"].values.tolist() == [1, 3]
    assert found.sel(emotion="joy").values.tolist() == list(rows.values())
    assert interop.read_control_vectors({"joy": tmp_path / "v.gguf"}, offset=1)["layer"].values.tolist() == [0, 2]


def test_files_that_are_no_control_vectors_are_refused(tmp_path):
    good = by_hand({1: [1.0, 2.0]})
    for data, message in (
        (b"PK", "no GGUF file"),
        (good[:60], "damaged"),
        (good[:-40], "damaged"),
        (
            good.replace(
                text("odd.list") + struct.pack("<IIQII", 9, 4, 2, 7, 8),
                text("general.alignment") + struct.pack("<II", 4, 0),
            ),
            "damaged.*alignment is 0",
        ),
        (by_hand({1: [1.0]}, version=99), "version 99"),
        (by_hand({1: [1.0]}, architecture="llama"), "architecture 'llama'"),
        (by_hand({}), "0 directions"),
        (
            by_hand({1: [1.0] * 32}).replace(struct.pack("<IQI", 1, 32, 0), struct.pack("<IQI", 1, 32, 8)),
            "of type Q8_0",
        ),
    ):
        (tmp_path / "f.gguf").write_bytes(data)
        with pytest.raises(EmotraceError, match=message):
            interop.read_control_vectors({"joy": tmp_path / "f.gguf"})
    with pytest.raises(EmotraceError, match="No such file"):
        interop.read_control_vectors({"joy": tmp_path / "absent.gguf"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (addition(layers=(0, 1), vector=np.ones(WIDTH)), "layer 0, which llama.cpp leaves out"),
        (addition(positions="last"), "positions='last', but llama.cpp adds at every token"),
        (addition(positions="steer"), "positions='steer'"),
        (addition(scale="rms"), "scale='rms'"),
        (addition(site="o_proj_out"), "Add at 'o_proj_out'"),
        (et.Scale("resid_post", layers=[1], strength=2.0, positions="all"), "Scale; llama.cpp adds"),
        (addition(vector=vectors()), r"dims \('emotion', 'dim'\)"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused_by_name(tmp_path, edit, message):
    with pytest.raises(EmotraceError, match=message):
        interop.write_control_vector(edit, tmp_path / "v.gguf", model_hint="llama")
    assert not (tmp_path / "v.gguf").exists()


def test_pt_files_round_trip_and_say_their_place(tmp_path):
    v = vectors()
    for e in ("fear", "joy"):
        interop.write_steering(v.sel(emotion=[e]), tmp_path / f"{e}.pt")
    files = {e: tmp_path / f"{e}.pt" for e in ("fear", "joy")}
    back = interop.read_steering(files, offset=0, model=loaded())
    assert (back.values == v.values).all()
    held = {"layer_activations": {2: torch.ones(WIDTH)}, "layer_type": "self_attn"}
    torch.save(held, tmp_path / "sv.pt")
    found = interop.read_steering({"joy": tmp_path / "sv.pt"}, offset=0)
    assert (found.attrs["site"], found["layer"].values.tolist()) == ("attn_out", [2])
    for layer in (1, 2):  # CAA: a file a layer
        torch.save(
            torch.from_numpy(v.sel(emotion="joy", layer=layer).values), tmp_path / f"vec_layer_{layer}_Llama-2-7b.pt"
        )
    caa = interop.read_steering({"joy": sorted(tmp_path.glob("vec_layer_*.pt"))}, offset=0)
    assert (caa.values == v.sel(emotion=["joy"]).values).all()
    with pytest.raises(EmotraceError, match="one emotion's"):
        interop.write_steering(v, tmp_path / "both.pt")


def test_the_numbering_of_layers_is_said_and_checked(tmp_path):
    interop.write_steering(vectors((0, 1, 2)).sel(emotion="joy"), tmp_path / "states.pt", offset=1)
    files = {"joy": tmp_path / "states.pt"}
    with pytest.raises(TypeError, match="offset"):
        interop.read_steering(files)
    with pytest.raises(EmotraceError, match=r"layer 3 with offset=0; the model's are 0 to 2.*offset=1\?"):
        interop.read_steering(files, offset=0, model=loaded())
    found = interop.read_steering(files, offset=1, model=loaded())
    assert found["layer"].values.tolist() == [0, 1, 2]
    interop.write_steering(vectors((0, 1)).sel(emotion="joy"), tmp_path / "blocks.pt")
    with pytest.raises(EmotraceError, match="does not number blocks from 1"):
        interop.read_steering({"joy": tmp_path / "blocks.pt"}, offset=1)


class Foreign:
    """Stands for an object of another library."""


def test_pt_files_that_do_not_fit_are_refused(tmp_path):
    for name, value, message in (
        ("a", {"layer_activations": {1: torch.ones(3)}, "layer_type": "mlpp"}, "Did you mean 'mlp'"),
        ("b", {"x": torch.ones(3)}, "'x' is no layer"),
        ("c", torch.ones(3), "does not say of which layer"),
        ("d", [torch.ones(3)], "holds a list"),
        ("e", {}, "holds no vector"),
        ("f", {1: torch.ones(3), 2: torch.ones(4)}, "vectors of shapes"),
        ("g", {1: torch.ones(WIDTH + 1)}, "33; 'resid_post' of the model is 32 wide"),
    ):
        torch.save(value, tmp_path / f"{name}.pt")
        with pytest.raises(EmotraceError, match=message):
            interop.read_steering({"joy": tmp_path / f"{name}.pt"}, offset=0, model=loaded())
    (tmp_path / "o.pt").write_bytes(pickle.dumps(Foreign()))
    with pytest.raises(EmotraceError, match="cannot be read as numbers"):
        interop.read_steering({"joy": tmp_path / "o.pt"}, offset=0)
