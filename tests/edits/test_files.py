"""Files of edits: whole round trips, damage that is named, and a digest that tells apart what would act differently."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import bundles, edits
from emotrace.labels import EmotraceError

V = np.arange(8, dtype=np.float32)


def table(names):
    return xr.DataArray(np.arange(16.0).reshape(2, 8), dims=("emotion", "dim"), coords={"emotion": list(names)})


def test_numbers_of_every_library_survive(tmp_path):
    mine = [
        et.Add(
            "resid_post", layers=np.arange(2), vector=torch.tensor(V).bfloat16(), strength=np.float32(0.5), scale="unit"
        ),
        et.Scale(et.Site("a.b", "input", 1), strength=np.int64(2), positions=(0, 3)),
        et.Project("resid_post", layers=1, vector=table(["fear", "anger"])),
    ]
    edits.save_edits(mine, tmp_path)
    again = edits.load_edits(tmp_path)
    assert edits.edits_digest(again) == edits.edits_digest(mine), "a run that stored its edits goes on with them"
    assert [type(e) for e in again] == [type(e) for e in mine]
    assert (again[0].strength, again[0].layers, again[1].strength, again[1].positions) == (0.5, (0, 1), 2, (0, 3))
    assert again[1].site == mine[1].site
    np.testing.assert_array_equal(again[0].vector, V)
    xr.testing.assert_identical(again[2].vector, mine[2].vector)


def test_the_digest_sees_values_labels_and_settings():
    def digest(**change):
        base = {"layers": [1], "vector": table(["fear", "anger"]), "strength": 1.0}
        return edits.edits_digest([et.Add("resid_post", **(base | change))])

    others = [
        digest(vector=table(["anger", "fear"])),
        digest(vector=table(["fear", "anger"]) + 1),
        digest(layers=[2]),
        digest(strength=2.0),
        digest(positions="last"),
        digest(scale="rms"),
    ]
    assert digest() == digest()
    assert len({digest(), *others}) == 7
    assert edits.edits_digest([]) == "none"


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(EmotraceError, match=r"edits\.json does not exist"):
        edits.load_edits(tmp_path)
    mine = [et.Add("resid_post", layers=[0], vector=V)]
    edits.save_edits(mine, tmp_path)
    whole = (tmp_path / "edits.json").read_text()
    told = {k: v for k, v in json.loads(whole).items() if k != bundles.CONTENT}
    early = json.dumps(told)  # as an earlier version wrote it
    for text, message in (
        (whole.replace('"steer"', '"last"'), "does not say what was written"),
        ("{", "damaged"),
        ("[3]", "damaged or no manifest of edits"),
        (json.dumps({**told, "edits": 3}), "no manifest of edits"),
        (json.dumps({**told, "edits": [3]}), "entry 0 is no edit"),
        (early.replace('"strength"', '"strenght"'), "entry 0 is damaged.*strenght"),
        (early.replace('"steer"', '"ster"'), "Did you mean 'steer'"),
    ):
        (tmp_path / "edits.json").write_text(text)
        with pytest.raises(EmotraceError, match=message):
            edits.load_edits(tmp_path)
    (tmp_path / "edits.json").write_text(whole)
    (tmp_path / "edits.safetensors").write_bytes(b"xx")
    with pytest.raises(EmotraceError, match="sha256 differs"):
        edits.load_edits(tmp_path)


def test_values_of_each_prompt_survive(tmp_path):
    values = xr.DataArray(np.arange(6.0).reshape(3, 2), dims=("key", "dim"), coords={"key": ["a", "b", "c"]})
    mine = [
        et.Ablate("z", layers=1, heads=[3], vector=values, positions="last"),
        et.Ablate("neuron", layers=0, units=[2]),
    ]
    edits.save_edits(mine, tmp_path)
    again = edits.load_edits(tmp_path)
    xr.testing.assert_identical(again[0].vector, values)
    assert (again[0].heads, again[1].vector, again[1].units) == ((3,), None, (2,))
    assert edits.edits_digest(again) == edits.edits_digest(mine)
