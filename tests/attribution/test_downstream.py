"""Influence of stored gradients is the influence that the model itself gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace import attribution, discovery
from emotrace.datasets import Prompts
from emotrace.labels import EmotraceError
from tests.helpers import loaded

LABELS = ("anger", "fear", "joy")
IDS = [list(range(20, 20 + n)) for n in (6, 3, 9, 5)]


def plain():
    return Prompts.of([{"key": f"p{i}", "token_ids": ids} for i, ids in enumerate(IDS)])


def directions_of(lm, seed=0):
    subs = ["resid_mid", "resid_post"] if lm.sites.has("resid_mid", 0) else ["resid_post"]
    shape = (len(LABELS), lm.sites.n_layers, len(subs), lm.sites.d_model)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    coords = {"emotion": list(LABELS), "layer": range(shape[1]), "sublayer": subs}
    return xr.DataArray(values, dims=("emotion", "layer", "sublayer", "dim"), coords=coords, attrs=lm.sites.identity)


def reference_of(directions):
    found = directions.isel(layer=-1).sel(sublayer="resid_post").drop_vars(["layer", "sublayer"])
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def stored(lm, directions, **options):
    metric = discovery.Projection(reference_of(directions), layer=lm.sites.n_layers - 1)
    sites = [str(s) for s in directions["sublayer"].values]
    return et.capture(
        lm, plain().for_each(emotion=LABELS), sites, gradients=metric, batch_size=5, progress=False, **options
    )


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gemma2", "minicpm3", "bert"])
def test_equal_to_the_influence_of_the_model(family):
    lm = loaded(family)
    directions = directions_of(lm)
    want = attribution.sublayer_influence(lm, plain(), directions, reference=reference_of(directions), progress=False)
    got = attribution.gradient_influence(stored(lm, directions), directions)
    assert dict(got.sizes) == {k: n for k, n in want.sizes.items() if k in got.sizes}
    for name in ("influence", "std", "sigma", "base", "n"):
        assert got[name].dims == want[name].dims
        scale = float(np.abs(want[name].values).max())
        np.testing.assert_allclose(got[name].values, want[name].values, rtol=1e-4, atol=2e-5 * scale, err_msg=name)
    for name in ("read_at", "flipped", "layer", "sublayer", "emotion"):
        assert got[name].values.tolist() == want[name].values.tolist()


def test_chosen_layers_labels_and_prompts(tmp_path):
    lm = loaded("llama")
    directions = directions_of(lm)
    acts = stored(lm, directions, out=tmp_path / "a.zarr")
    whole = attribution.gradient_influence(acts, directions)
    memory = attribution.gradient_influence(stored(lm, directions), directions)
    xr.testing.assert_identical(memory.drop_attrs(), whole.drop_attrs())
    some = attribution.gradient_influence(acts, directions, layers=[1], out=tmp_path / "out")
    xr.testing.assert_identical(some["influence"], whole["influence"].sel(layer=[1]))
    xr.testing.assert_identical(attribution.load_scores(tmp_path / "out", "influence"), some)
    assert some.attrs["source"] == str(acts.path)
    accepted = [f"p{i}__{e}" for i in (0, 2) for e in LABELS]
    fewer = attribution.gradient_influence(acts, directions, accepted=accepted)
    assert fewer["n"].values.tolist() == [2, 2, 2]
    narrowed = attribution.gradient_influence(acts.where(key=accepted), directions)
    xr.testing.assert_identical(fewer["influence"], narrowed["influence"])
    code = f"""
import sys
import emotrace as et
from emotrace import attribution
acts = et.open_activations({str(acts.path)!r})
print(attribution.gradient_influence(acts, et.directions.load({str(tmp_path / "d")!r}))["influence"].values.tobytes().hex())
assert "torch" not in sys.modules
"""
    et.directions.save(directions, tmp_path / "d")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert bytes.fromhex(done.stdout.strip()) == whole["influence"].values.tobytes()


def test_refusals():
    lm = loaded("llama")
    directions = directions_of(lm)
    acts = stored(lm, directions)
    values = et.capture(lm, plain(), "resid_post", progress=False)
    foreign = directions.assign_attrs({**directions.attrs, "weights_hash": "0", "weights_sample": "f" * 64})
    for make, words in (
        (lambda: attribution.gradient_influence(values, directions), "holds no gradients of the residual"),
        (lambda: attribution.gradient_influence(acts, directions, layers=[7]), "unknown layer 7"),
        (lambda: attribution.gradient_influence(acts.where(sublayer="resid_post"), directions), "no gradients of 'resid_mid'"),
        (lambda: attribution.gradient_influence(acts, directions.rename(emotion="mood")), "unknown label dim 'emotion'"),
        (lambda: attribution.gradient_influence(acts.where(emotion=["anger", "joy"]), directions), "no .* has emotion 'fear'"),
        (lambda: attribution.gradient_influence(acts, foreign), "made with"),
    ):  # fmt: skip
        with pytest.raises(EmotraceError, match=words):
            make()
