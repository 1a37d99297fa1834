"""What a client without weights gets from a server is what the same model gives here, whoever's key it has.

Beside the weights it is the same to the last bit. With an ordinary key forwards are, too; weights come by calls, so what is made
of them is equal to rounding, and derivatives are central differences.
"""

import nnsight
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from nnsight.schema.config import CONFIG

import emotrace as et
from emotrace import attribution, circuits, discovery, scoring
from emotrace.datasets import Prompts
from emotrace.forwards.finite import Item
from emotrace.forwards.kept import Shared
from emotrace.labels import EmotraceError
from emotrace.remote import Server
from tests.helpers import loaded
from tests.remote.conftest import FAMILIES, HALF

SITES = (
    "resid_pre",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
    "z",
    "neuron",
    "neuron_pre",
    "final_norm",
    "logits",
)
IDS = [list(range(20, 20 + n)) for n in (6, 3, 9)]
EMOTIONS = ("anger", "fear")


def prompts(n=4, start=(*range(30, 42),)):
    rng = np.random.default_rng(0)
    return Prompts.of(
        [
            {"key": f"s{i}__{e}", "token_ids": [*start, *rng.integers(50, 150, 3 + i % 3).tolist()], "emotion": e}
            | {"skeleton_id": f"s{i}", "valence": "neutral"}
            for i in range(n)
            for e in EMOTIONS
        ]
    )


def arrays(acts):
    return {name: acts.sel(variable=name).values for name in acts.variables}


@pytest.mark.parametrize(
    "name", [n if n in ("llama", "gemma2", "bert") else pytest.param(n, marks=pytest.mark.soak) for n in FAMILIES]
)
def test_capture_and_edits_of_a_family(pair, name):
    here, there = pair(name)
    assert there.sites.names == here.sites.names
    assert next(there._module.parameters()).is_meta
    sites = [s for s in SITES if here.sites.has(s)]
    layer = here.sites.layers("resid_post")[1]
    edits = [
        et.Add(
            "resid_post", layers=[layer], vector=torch.linspace(-1, 1, here.sites.d_model), strength=2, positions="all"
        ),
        et.Ablate("z", layers=[0], heads=[1], positions="last"),
    ]
    plain = None
    for options in ({"positions": "all"}, {"positions": "all", "edits": edits}):
        want, got = (et.capture(lm, IDS, sites, batch_size=2, progress=False, **options) for lm in (here, there))
        for variable, values in arrays(want).items():
            np.testing.assert_array_equal(got.sel(variable=variable).values, values, err_msg=variable)
        if "edits" in options:
            assert not np.allclose(got.sel(variable="logits").values, plain), "the edits change nothing"
        plain = got.sel(variable="logits").values


def test_shared_prefixes_too(pair, exact):
    here, there = pair("llama")
    acts = [et.capture(lm, prompts(8), ("resid_mid", "z"), batch_size=5, progress=False) for lm in (here, there)]
    exact(acts[1].residual.values, acts[0].residual.values)
    exact(acts[1].z.values, acts[0].z.values)


@pytest.mark.parametrize("sample", [False, True])
def test_generation_with_edits(pair, world, sample):
    edits = [et.Add("resid_post", layers=[1], vector=torch.linspace(-1, 1, 32), strength=3)]
    for some in ([], edits):
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": sample, "batch_size": 2, "progress": False}
        if sample and world == "ordinary":
            with pytest.raises(EmotraceError, match=r"cannot seed that: generate greedily, or with a trusted key"):
                et.generate(pair("llama")[1], IDS, some, **options)
            continue
        rows = [et.generate(lm, IDS, some, **options) for lm in pair("llama")]
        assert [row["token_ids"] for row in rows[0]] == [row["token_ids"] for row in rows[1]]


@pytest.mark.parametrize(
    ("name", "world"),
    [("llama", "ordinary"), *((name, "trusted") for name in ("llama", "gpt2", "falcon"))],
    indirect=["world"],
)
def test_replies_and_likelihoods_behind_kept_first_tokens(pair, world, name):
    stem = list(range(60, 96))
    asked = [{"key": str(i), "token_ids": [*stem, *ids], "reply_ids": [40, 41, 42 + i]} for i, ids in enumerate(IDS)]
    found = []
    for lm in pair(name):
        vector = torch.linspace(-1, 1, lm.sites.d_model)
        edits = [et.Add("resid_post", layers=[1], vector=vector, strength=3, positions=p) for p in ("steer", "all")]
        kept = Shared(lm, [Item("0", asked[0]["token_ids"])], edits, 60, 2).begun([0])
        apart = world == "ordinary" and lm.sites.remote is not None  # keys and values would go to and fro
        assert (kept is None) is apart
        rows = et.generate(lm, [p["token_ids"] for p in asked], edits, max_new_tokens=4, batch_size=2, progress=False)
        begun = et.generate(lm, asked, edits, max_new_tokens=4, prefill=True, batch_size=2, progress=False)
        assert all(row["token_ids"][:3] == p["reply_ids"] for row, p in zip(begun, asked, strict=True))
        kl = scoring.kl(lm, asked, edits, batch_size=2)
        found.append([[r["token_ids"] for r in (*rows, *begun)], scoring.perplexity(lm, asked, 2), kl.tolist()])
    assert found[0][0] == found[1][0]
    if world == "trusted":
        assert found[0] == found[1]
    for got, want in zip(found[1][1:], found[0][1:], strict=True):
        assert got == pytest.approx(want, rel=1e-4)


def test_numbers_that_are_none_end_a_generation_there_too(pair):
    _, there = pair("llama")
    v = torch.full((32,), 2e38)
    edits = [et.Add(site, layers=[1], vector=v, positions="generated") for site in ("resid_mid", "resid_post")]
    with pytest.raises(EmotraceError, match="generate, token 1 of the reply to '2'"):
        et.generate(there, IDS, edits, max_new_tokens=3, min_new_tokens=3, progress=False)


def test_an_edit_that_never_fires_is_an_error_there_too(pair):
    _, there = pair("llama")
    with pytest.raises(EmotraceError, match="would never fire"):
        et.generate(there, IDS, [et.Scale("mlp_out", layers=[0], positions=(50, 60))], max_new_tokens=2, progress=False)


def test_a_store_of_a_server_is_scored_here_with_its_covectors(pair, tmp_path):
    found = []
    for name, lm in zip(("here", "there"), pair("gemma2"), strict=True):
        sites = ("resid_mid", "resid_post", "z", "neuron")
        acts = et.capture(lm, prompts(), sites, components=True, out=tmp_path / f"{name}.zarr", progress=False)
        dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id",))
        vectors = [attribution.covectors(lm, dirs, head_readout=readout) for readout in ("residual", "normed")]
        scores = [attribution.head_contributions(acts, v) for v in vectors]
        scores.append(attribution.neuron_contributions(acts, vectors[0]))
        found.append([*scores, circuits.difference_vectors(acts, within="skeleton_id")])
    for here, there in zip(*found, strict=True):
        for variable in here.data_vars:
            scale = float(np.abs(here[variable]).max()) or 1.0
            assert float(np.abs(here[variable] - there[variable]).max()) <= 1e-4 * scale, variable


def test_a_circuit_is_found_in_one_pass_there_too(pair, tmp_path):
    found = []
    for name, lm in zip(("here", "there"), pair("gemma2"), strict=True):
        acts = et.capture(lm, prompts(), ("resid_mid", "resid_post"), progress=False)
        dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id",))
        options = {"neurons_per_layer": 3, "heads_per_layer": 1, "within": ("skeleton_id",), "progress": False}
        assert circuits.discover.plan(lm, prompts(), dirs, **options).requests == (None if name == "here" else 1)
        circuit = circuits.discover(lm, prompts(), dirs, out=tmp_path / name, **options)
        scores = [attribution.load_scores(tmp_path / name / kind, f"{kind}s") for kind in ("neuron", "head")]
        found.append([*scores, circuit.payload])
    for here, there in zip(*found, strict=True):
        for variable in here.data_vars:
            scale = float(np.abs(here[variable]).max()) or 1.0
            assert float(np.abs(here[variable] - there[variable]).max()) <= 1e-4 * scale, variable


def test_scores_contributions_differences_influence_and_curves(pair, exact):
    found = []
    replies = [{"key": str(i), "token_ids": ids, "reply_ids": [40, 41, 42 + i]} for i, ids in enumerate(IDS)]
    for lm in pair("llama"):
        acts = et.capture(lm, prompts(), ("resid_mid", "resid_post"), progress=False)
        dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id",))
        heads = attribution.head_contributions(lm, prompts(), dirs, progress=False)
        plain = [{"key": f"p{i}", "token_ids": p.token_ids, "skeleton_id": p.key} for i, p in enumerate(prompts(2))]
        found.append(
            [
                heads,
                attribution.neuron_contributions(lm, prompts(), dirs, variable="neuron_pre", progress=False),
                attribution.head_contributions(lm, prompts(), dirs, head_readout="normed", progress=False),
                circuits.difference_vectors(lm, prompts(), within="skeleton_id", progress=False),
                attribution.sublayer_influence(lm, plain, dirs, doses=(0.3,), progress=False),
                attribution.ablation_curve(lm, prompts(), dirs, heads, ks=[1], draws=1, progress=False),
                attribution.top_tokens(lm, dirs.sel(layer=2, sublayer="resid_post"), k=3),
                attribution.top_prompts(lm, prompts(), 1, [3, 5], k=2, progress=False),
                scoring.perplexity(lm, replies),
                scoring.kl(lm, replies, [et.Scale("mlp_out", layers=[1], strength=0.5)]).tolist(),
            ]
        )
    for here, there in zip(*found, strict=True):
        if isinstance(here, xr.Dataset):
            slopes = "central differences" in there.attrs.get("limit", "")
            for name in here.data_vars:
                exact(there[name].values, here[name].values, name, 1e-2 if slopes else 1e-5)
        elif isinstance(here, pd.DataFrame):
            for name in here:
                exact(there[name].to_numpy(), here[name].to_numpy(), name)
        else:
            exact(there, here, "scores")


def test_contributions_through_norms_need_no_weights_here(pair, exact, world):
    for name in ("gemma2", "bert", "gpt-neox"):
        found = []
        for lm in pair(name):
            acts = et.capture(lm, prompts(2), "resid_post", progress=False)
            dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id",))
            found.append(attribution.neuron_contributions(lm, prompts(2), dirs, progress=False))
        for variable in ("mean", "contrast", "bias", "beta"):
            exact(found[1][variable].values, found[0][variable].values, variable)
        taken = pair(name)[1].sites.remote.weights
        assert (taken > 0) is (world == "ordinary")


def test_a_trace_of_the_users_own(pair, server, key, monkeypatch):
    here, there = pair("llama")
    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    place = et.Site("model.layers.1.mlp.gate_proj")
    found = []
    for lm, where in ((here, False), (there, server.url)):
        inputs = lm.sites.encode(IDS)
        with torch.no_grad(), lm.trace(inputs, remote=where):
            mid = lm.sites.read("resid_mid", layer=1)
            gate = lm.sites.read(place).detach()
            lm.sites.write("mlp_out", torch.zeros_like(mid), layer=1)
            kept = [mid.detach(), gate, lm.sites.read("resid_post", layer=1).detach()]
            kept = nnsight.save(kept)
        found.append(kept)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(found[1][0], found[1][2])  # the MLP of the layer was taken away


def test_a_generation_of_the_users_own_has_the_base_of_each_step(pair, server, key, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    found = []
    for lm, where in zip(pair("llama"), (False, server.url), strict=True):
        v, asked = torch.linspace(-3, 3, lm.sites.d_model), lm.sites.encode([[21], [34]])  # every forward has one shape
        with torch.no_grad(), lm.generate(max_new_tokens=5, min_new_tokens=5, do_sample=False, remote=where) as tracer:
            with tracer.invoke(asked):
                for _ in tracer.iter[:5]:
                    lm.sites.write("resid_mid", lm.sites.read("resid_mid", layer=1) + v, layer=1)
            with tracer.invoke():
                ids = tracer.result.save()
        found.append(ids.tolist())
    assert found[0] == found[1]


def test_without_weights_nothing_runs_here(pair):
    _, there = pair("llama")
    with pytest.raises(EmotraceError, match="loaded without weights"), there.trace(there.sites.encode(IDS)):
        _ = there.sites.read("resid_post", layer=0).save()
    assert next(there._module.parameters()).is_meta
    with pytest.raises(EmotraceError, match=r"the weights of .* are not here"):
        attribution.output_projection(there, "neuron", 0)


def test_the_record_says_where_and_never_the_key(pair, key, tmp_path):
    _, there = pair("llama")
    acts = et.capture(there, IDS, "resid_post", out=tmp_path / "a.zarr", progress=False)
    assert acts.attrs["backend"] == "ndif"
    assert not list(tmp_path.glob("*.jobs"))
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert key.encode() not in written
    assert key not in repr(there.sites.remote.server)


def test_simulated_is_packed_as_for_a_server_and_runs_here():
    lm = loaded("llama")
    there = et.load(lm._module, tokenizer=lm.tokenizer, remote="local")
    assert there.sites.identity["backend"] == "simulated"
    got = et.capture(there, IDS, ("resid_post", "attn_out"), positions="all", progress=False)
    there.sites.remote = None
    want = et.capture(there, IDS, ("resid_post", "attn_out"), positions="all", progress=False)
    np.testing.assert_array_equal(got.residual.values, want.residual.values)


def test_a_large_capture_comes_home_at_its_own_size(pair, server, tmp_path):
    _, there = pair("gpt2")
    ids = [[20 + (i * j) % 100 for j in range(60)] for i in range(1, 440)]
    before = len(server.log())
    acts = et.capture(
        there, ids, ("resid_pre", "resid_post"), positions="all", batch_size=64, out=tmp_path / "a.zarr", progress=False
    )
    stored = acts.residual.size * 4
    asked = server.log()[before:]
    assert stored >= 10e6
    assert sum(job["payload"] for job in asked) <= 1.2 * stored
    dry = et.capture.plan(there, ids, ("resid_pre", "resid_post"), positions="all", batch_size=64)
    assert dry.requests == len(asked)
    assert f"{dry.requests} requests" in str(dry)


@pytest.mark.parametrize(
    "mode", [{"no_gradients": True}, {"copies": True}, {"no_gradients": True, "copies": True}], ids=" and ".join
)
def test_a_server_without_gradients(pairs, server, loading, mode):
    here, _ = pairs("llama", "trusted")
    server.modes(**mode)
    try:
        there = loading("llama", "trusted")
        plain = [{"key": f"p{i}", "token_ids": p.token_ids} for i, p in enumerate(prompts(2))]
        acts = et.capture(here, prompts(), ("resid_mid", "resid_post"), progress=False)
        dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id",))
        want, got = (attribution.sublayer_influence(lm, plain, dirs, progress=False) for lm in (here, there))
        assert ("central differences" in got.attrs["limit"]) is ("no_gradients" in mode)
        assert there.sites.remote.copies is ("copies" in mode)  # then no keys and values go to and fro
        np.testing.assert_allclose(got["influence"], want["influence"], rtol=0.02, atol=5e-3)
        np.testing.assert_allclose(got["sigma"], want["sigma"], rtol=1e-5)
    finally:
        server.modes(no_gradients=False, copies=False)


def test_our_own_sums_are_exact_where_a_server_computes_in_half_precision(server, loading, pairs):
    server.modes(autocast="bfloat16")
    try:
        there = loading("gemma2", "trusted")
        here, _ = pairs("gemma2", "trusted")
        acts = et.capture(there, prompts(2), ("resid_post", "neuron", "mlp_out"), layers=[1], progress=False)
        dirs = et.directions.centered_mean(acts, label="emotion", within=("skeleton_id",)).sel(sublayer=["resid_post"])
        got = attribution.neuron_contributions(there, prompts(2), dirs, progress=False)
        norm = attribution.output_projection(here, "neuron", 1).norm
        branch = attribution.output_projection(here, "neuron", 1).output(
            torch.from_numpy(acts.sel("neuron", layer=1).values)
        )
        out = norm(branch) @ torch.from_numpy(dirs.values[:, 0, 0].astype(np.float64)).T
        for e, emotion in enumerate(dirs["emotion"].values):
            mine = acts.tokens["emotion"].to_numpy() == emotion
            total = float(got["mean"].sel(emotion=emotion).sum() + got["bias"].sel(emotion=emotion).sum())
            assert total == pytest.approx(float(out[mine, e].mean()), rel=1e-5)
    finally:
        server.modes(autocast=None)


def test_a_server_whose_weights_are_bfloat16(loading, deployed, world):
    here, there = et.load(deployed[HALF], dtype="bfloat16"), loading(HALF, world)
    assert {lm.sites.identity["dtype"] for lm in (here, there)} == {"bfloat16"}
    edits = [et.Add("resid_mid", [1], "all", vector=torch.linspace(-1, 1, 32), strength=3.0)]
    asked = prompts(2, start=(30, 31, 32))  # too few tokens to be shared, which here alone would round otherwise
    plain = [{"key": f"p{i}", "token_ids": p.token_ids} for i, p in enumerate(asked)]
    dirs = et.directions.centered_mean(
        et.capture(here, asked, ("resid_mid", "resid_post"), progress=False), within=("skeleton_id",)
    )
    found = []
    for lm in (here, there):
        acts = et.capture(lm, asked, ("resid_mid", "resid_post", "z"), progress=False)
        rows = et.generate(lm, IDS, edits, max_new_tokens=4, min_new_tokens=4, progress=False)
        influence = attribution.sublayer_influence(lm, plain, dirs, progress=False)
        heads = attribution.head_contributions(lm, asked, dirs, progress=False)
        found.append([acts.residual.values, acts.z.values, [row["token_ids"] for row in rows], influence, heads])
    (*same, slopes, heads), (*got, other, scores) = found
    for a, b in zip(same, got, strict=True):
        np.testing.assert_array_equal(b, a)
    scale = float(np.abs(heads["mean"]).max())
    assert float(np.abs(heads["mean"] - scores["mean"]).max()) <= 1e-5 * scale
    assert ("central differences" in other.attrs["limit"]) is (world == "ordinary")
    far = float(np.abs(slopes["influence"] - other["influence"]).max()) / float(np.abs(slopes["influence"]).max())
    assert far <= (0.25 if world == "ordinary" else 0.0), "a bfloat16 has 8 bits: differences of it are coarse"


def test_what_a_server_refuses_is_said_at_once(server, deployed, tmp_path, monkeypatch):
    client = deployed["llama"].parent / "client"
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    for remote, word in (
        (server.url, "needs an API key, and there is none"),
        (Server(server.url, "wrong-as-a-key"), r"refuses the API key \(Invalid API key format: '\[key\]'"),
        (Server(server.url, "11111111-2222-3333-4444-555555555555"), r"refuses the API key \(Invalid API key"),
        ("somewhere", "is no URL of the web"),
        ("http://127.0.0.1:9", "the server does not answer"),
    ):
        with pytest.raises(EmotraceError, match=word):
            et.load(client / "llama", remote=remote)
    (tmp_path / "mine").mkdir()
    for file in (client / "llama").iterdir():
        (tmp_path / "mine" / file.name).write_bytes(file.read_bytes())
    right = Server(server.url, server.key)
    with pytest.raises(EmotraceError, match=r"has no model .*mine.*It has: tiny/llama \(RUNNING, text-generation\)"):
        et.load(tmp_path / "mine", remote=right)
    with pytest.raises(EmotraceError, match="the server chose dtype"):
        et.load(client / "llama", dtype="float32", remote=right)
    server.modes(versions={"nnsight": "0.7.0"})
    try:
        with pytest.raises(EmotraceError, match=r"runs nnsight 0\.7\.0"):
            et.load(client / "llama", remote=right)
    finally:
        server.modes(versions={})


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(n, marks=pytest.mark.soak) for n in ("gemma2", "gpt-neox", "gpt2"))]
)
def test_gradients_beside_what_is_captured(pairs, server, loading, name, tmp_path):
    here, there = pairs(name, "trusted")
    dirs = et.directions.centered_mean(
        et.capture(here, prompts(), "resid_post", progress=False), within=("skeleton_id",)
    )
    metric = discovery.Projection(dirs)
    how = {"positions": "prompt", "gradients": metric, "batch_size": 3, "progress": False}
    want, got = (et.capture(lm, prompts(), ("z", "mlp_out"), **how) for lm in (here, there))
    assert "z_gradient" in got.variables
    for variable, values in arrays(want).items():
        np.testing.assert_array_equal(got.sel(variable=variable).values, values, err_msg=variable)
    server.modes(no_gradients=True)
    strangers = [loading(name, "trusted"), pairs(name, "ordinary")[1]]
    try:
        refused(strangers, how, tmp_path / "x.zarr")
    finally:
        server.modes(no_gradients=False)


def refused(strangers, how, out):
    for stranger in strangers:
        with pytest.raises(EmotraceError, match="the server keeps no graph of the model"):
            et.capture(stranger, prompts(), ("z", "mlp_out"), out=out, **how)
        assert not out.exists()
