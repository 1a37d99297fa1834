"""Attribution patching of stored values and gradients: what the model itself says, without the model."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace import discovery
from emotrace.datasets import Prompts
from emotrace.labels import EmotraceError
from tests.helpers import loaded

EMOTIONS = ("anger", "fear", "joy")
SITES = ("z", "neuron", "attn_out", "mlp_out", "resid_post")
NODES = ("head", "neuron", "sublayer", "resid")


def prompts_of(n=4):
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        ids = rng.integers(20, 150, 5 + i % 3).tolist()
        for k, e in enumerate(EMOTIONS):
            about = {"skeleton_id": f"s{i}", "valence": "neutral", "emotion": e}
            found.append({"key": f"s{i}__{e}", "token_ids": [*ids[:2], 60 + k, *ids[2:]], **about})
    return Prompts.of(found)


def metric_of(lm, **options):
    values = np.random.default_rng(1).normal(size=(3, lm.sites.d_model))
    directions = xr.DataArray(values, dims=("emotion", "dim"), coords={"emotion": list(EMOTIONS)})
    return discovery.Projection(directions, **{"layer": lm.sites.n_layers - 1, "against": "counterfactual", **options})


def stored(lm, pairs, metric, **options):
    sites = [s for s in SITES if s in lm.sites.names]
    return et.capture(
        lm, pairs.prompts(), sites, positions="prompt", gradients=metric, batch_size=5, progress=False, **options
    )


def close(got, want, what):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6 * float(np.abs(want).max()) + 1e-8, err_msg=what)


@pytest.mark.parametrize(
    ("family", "ablation"),
    [
        *(
            (name, how)
            for name in ("llama", "gpt-neox", "gemma2", "minicpm3", "gpt2")
            for how in ("counterfactual", "zero")
        ),
        ("llama", "mean"),
    ],
)
def test_equal_to_scores_of_the_model(family, ablation):
    lm = loaded(family)
    pairs, metric = discovery.other_emotion(lm, prompts_of()), metric_of(lm)
    assert len(pairs) <= 32
    nodes = [n for n in NODES if n != "neuron" or lm.sites.has("neuron")]
    want = discovery.scores(
        lm, pairs, metric, method="eap", nodes=nodes, ablation=ablation, batch_size=5, progress=False
    )
    got = discovery.attribution_patching(stored(lm, pairs, metric), pairs, nodes=nodes, ablation=ablation)
    assert set(got["node"].values) == set(want["node"].values)
    got = got.sel(node=want["node"].values)
    for name in ("score", "by_span", "clean", "counterfactual"):
        close(got[name].values, want[name].values, name)
    for name in ("kind", "layer", "index", "pair", "emotion", "against_emotion", "span"):
        assert got[name].values.tolist() == want[name].values.tolist()
    assert {k: got.attrs[k] for k in ("method", "level", "ablation", "metric", "sign", "n_pairs")} == {
        k: want.attrs[k] for k in ("method", "level", "ablation", "metric", "sign", "n_pairs")
    }
    assert got.attrs["source"] == "(memory)"
    assert got.attrs["plan_digest"]


def test_store_and_memory_agree_to_the_bit_and_pairs_come_from_the_store(tmp_path, monkeypatch):
    lm = loaded("llama")
    pairs, metric = discovery.other_emotion(lm, prompts_of(), each="all"), metric_of(lm, against=None)
    memory = stored(lm, pairs, metric)
    store = stored(lm, pairs, metric, out=tmp_path / "a.zarr")
    again = discovery.other_emotion(store, each="all")
    assert [p.key for p in again] == [p.key for p in pairs]
    assert all((a.clean, a.index, a.spans) == (b.clean, b.index, b.spans) for a, b in zip(again, pairs, strict=True))
    one = discovery.attribution_patching(memory, pairs, nodes=NODES)
    two = discovery.attribution_patching(store, again, nodes=NODES)
    xr.testing.assert_identical(one.drop_attrs(), two.drop_attrs())
    assert two.attrs["source"] == str(store.path)
    cut = stored(lm, pairs, metric, out=tmp_path / "b.zarr", row_group_bytes=1 << 16)
    assert cut.n_groups > 1
    three = discovery.attribution_patching(cut, again, nodes=NODES)
    close(three["score"].values, two["score"].values, "in several row groups")
    monkeypatch.setattr("emotrace.discovery.stored.BLOCK_BYTES", 4096)  # a few tokens at a time: the same sums
    xr.testing.assert_identical(discovery.attribution_patching(cut, again, nodes=NODES), three)


def test_a_narrowed_store_gives_the_nodes_that_it_holds():
    lm = loaded("llama")
    pairs, metric = discovery.other_emotion(lm, prompts_of()), metric_of(lm)
    acts = stored(lm, pairs, metric)
    whole = discovery.attribution_patching(acts, pairs, nodes="head")
    some = discovery.attribution_patching(acts.where(layer=[1], head=[1, 3]), pairs.where(emotion="fear"), nodes="head")
    assert some["node"].values.tolist() == ["a1.h1", "a1.h3"]
    want = whole.sel(node=some["node"].values, pair=some["pair"].values)
    np.testing.assert_array_equal(some["score"].values, want["score"].values)
    assert '"head": [1, 3]' in some.attrs["selection"]


def test_a_part_of_a_node_is_none():
    lm = loaded("llama")
    pairs = discovery.other_emotion(lm, prompts_of())
    acts = stored(lm, pairs, metric_of(lm))
    for part, nodes, message in [
        ({"head_dim": [0, 1]}, "head", "'z' of acts is narrowed along 'head_dim'"),
        ({"dim": slice(0, 3)}, "mlp", "'mlp_out' of acts is narrowed along 'dim'"),
    ]:
        with pytest.raises(EmotraceError, match=message):
            discovery.attribution_patching(acts.where(**part), pairs, nodes=nodes)
    whole = discovery.attribution_patching(acts, pairs, nodes="head")
    some = discovery.attribution_patching(acts.where(head=[2]), pairs, nodes="head", counterfactuals=acts)
    xr.testing.assert_identical(some["score"].drop_attrs(), whole["score"].sel(node=some["node"]).drop_attrs())
    for part, message in [({"head": [0, 1]}, "head of 'z' 2"), ({"layer": [0]}, "layer of 'z' 1")]:
        with pytest.raises(EmotraceError, match=f"unknown {message} in attribution_patching.counterfactuals"):
            discovery.attribution_patching(acts, pairs, nodes="head", counterfactuals=acts.where(**part))


def test_no_model_library_is_needed(tmp_path):
    lm = loaded("llama")
    pairs, metric = discovery.other_emotion(lm, prompts_of()), metric_of(lm)
    acts = stored(lm, pairs, metric, out=tmp_path / "a.zarr")
    want = discovery.attribution_patching(acts, pairs)["score"].values
    code = f"""
import sys
import emotrace as et
from emotrace import discovery
acts = et.open_activations({str(acts.path)!r})
found = discovery.attribution_patching(acts, discovery.other_emotion(acts))
print(found["score"].values.tobytes().hex())
for name in ("torch", "transformers", "nnsight"):
    assert name not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert bytes.fromhex(done.stdout.strip()) == want.tobytes()


def test_refusals(tmp_path):
    lm = loaded("llama")
    pairs, metric = discovery.other_emotion(lm, prompts_of()), metric_of(lm)
    plain = et.capture(lm, pairs.prompts(), "z", positions="prompt", progress=False)
    acts = stored(lm, pairs, metric)
    last = et.capture(lm, pairs.prompts(), "z", gradients=metric, progress=False)
    other = discovery.other_emotion(
        lm, Prompts.of([{**vars(p), "key": p.key, **p.labels} for p in ()] or prompts_of(6))
    )
    for make, words in (
        (lambda: discovery.attribution_patching(plain, pairs), "holds no gradients; capture with gradients=metric"),
        (lambda: discovery.attribution_patching(last, pairs, nodes="head"), "1 of .* tokens are held, and all count"),
        (lambda: discovery.attribution_patching(last, pairs, nodes="mlp"), "does not hold 'mlp_out' with its gradients"),
        (lambda: discovery.attribution_patching(acts, other), "holds no prompt 's4__anger'"),
        (lambda: discovery.attribution_patching(acts, pairs, ablation="median"), "unknown ablation 'median'"),
        (lambda: discovery.attribution_patching(acts, pairs, nodes="layer"), "unknown kind of node 'layer'"),
        (lambda: discovery.other_emotion(cast(Any, acts), prompts_of()), "hold their prompts already"),
        (lambda: discovery.other_emotion(last), "1 of .* tokens are held"),
    ):  # fmt: skip
        with pytest.raises(EmotraceError, match=words):
            make()
