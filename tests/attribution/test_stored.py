"""Scores out of stored activations: against zero-ablation and literal loops, against the streaming, and what they read."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import store
from emotrace.attribution import chunked, covectors, head_contributions, load_scores, neuron_contributions
from emotrace.datasets import Prompt, Prompts
from emotrace.labels import EmotraceError, Positions
from emotrace.store.cell import Cell
from emotrace.testing import tiny
from tests.helpers import FORMS, families, loaded

LABELS = ("anger", "fear", "disgust")
FAMILIES = ("llama", "gpt2", "gpt-neox", "falcon-new", "gemma2", "olmo2", "granite", "minicpm3", "bert", "opt-post-ln")
NORMED = ("llama", "gpt2", "gemma2", "granite")
SITES = ("z", "neuron", "resid_mid", "resid_pre", "mlp_out")
OPENED = None


def _note(event, args):
    if OPENED is not None and event == "open" and isinstance(args[0], str):
        OPENED.append(args[0])


sys.addaudithook(_note)


def some_prompts(n=9, seed=0):
    rng = np.random.default_rng(seed)
    return Prompts(
        Prompt(
            f"p{i}",
            token_ids=tuple(rng.integers(len(tiny.SPECIALS), tiny.VOCAB, rng.integers(3, 9)).tolist()),
            labels={"emotion": LABELS[i % 3], "skeleton_id": f"s{i // 3}", "valence": "neutral"},
        )
        for i in range(n)
    )


def random_directions(model, seed=1):
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(len(LABELS), model.sites.n_layers, 2, model.sites.d_model)).astype(np.float32)
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    coords = {"emotion": list(LABELS), "layer": np.arange(len(v[0])), "sublayer": ["resid_mid", "resid_post"]}
    return xr.DataArray(v, dims=("emotion", "layer", "sublayer", "dim"), coords=coords)


def captured(model, prompts, positions: Positions = "last", **options):
    sites = [s for s in SITES if model.sites.has(s)]
    return et.capture(model, prompts, sites, positions=positions, components=True, progress=False, **options)


def held(acts, arrays, dtype="float32"):
    """The same rows with other numbers, in memory."""
    return store.Activations.in_memory(planned(acts, dtype), arrays)


def planned(acts, dtype="float32", **options):
    names = ("prompt", "key", "position", "prompt_length", "token_id", "token_text")
    labels = {n: acts.column(n) for n in acts.columns if n not in (*names, "position_from_end")}
    rows = store.Rows(**{n: acts.column(n) for n in names}, labels=labels)
    attrs = {k: v for k, v in acts.attrs.items() if k not in ("plan_digest", "emotrace_store")}
    return store.Plan.make(rows, [replace(v, source_dtype=dtype) for v in acts.described], attrs, **options)


def rewritten(acts, path, dtype="float32", groups: Sequence[int] = range(100)):
    """The same numbers in a store of row groups of two, of which some are committed."""
    plan = planned(acts, dtype, max_rows=2)
    with store.create_or_resume(path, plan) as writer:
        for group in (g for g in writer.pending() if g.index in groups):
            parts = {}
            for v in acts.described:
                at = (slice(None),) * len(v.cell_dims)
                parts[v.name] = np.ascontiguousarray(acts.sel(v.name).values[(*at, group.rows)])
            writer.commit(group, parts)
    return et.open_activations(path)


def by_ablation(model, prompts, directions, positions, readout):
    """Importance ``[layer, head, row, label]`` and s(r) ``[layer, row, label]``: one forward for every head."""
    site = "resid_mid" if model.sites.has("resid_mid") else "attn_out"
    sublayer = "resid_mid" if site == "resid_mid" else "resid_post"
    importance, base = [], []
    for layer in range(model.sites.n_layers):
        v = directions.sel(layer=layer, sublayer=sublayer).values.astype(np.float64)

        def read(edits=None, layer=layer, v=v):
            acts = et.capture(model, prompts, [site], layers=[layer], positions=positions, edits=edits, progress=False)
            r = torch.from_numpy(acts.sel(layer=layer, sublayer=site).values)
            if readout == "normed":
                norm = model._module.get_submodule(model.sites.address("resid_mid", layer).mirror.path)
                with torch.no_grad():
                    r = norm(r)
            return (model.sites.scale if site == "attn_out" else 1.0) * r.double().numpy() @ v.T

        s = read()
        base.append(s)
        heads = range(model.sites.n_heads)
        importance.append([s - read([et.Ablate("z", layers=[layer], heads=[h], positions="all")]) for h in heads])
    return np.array(importance), np.array(base)


def literal(importance, base, tokens):
    """What the Dataset says, by loops over labels, prompts and their rows."""

    def of_prompts(values, label):
        return [
            values[..., (tokens.prompt == p).to_numpy()].mean(-1)
            for p in tokens.prompt[tokens.emotion == label].unique()
        ]

    out = {"mean": [], "std": [], "contrast": [], "baseline": []}
    for e, label in enumerate(LABELS):
        mine = of_prompts(importance[..., e], label)
        others = [np.mean(of_prompts(importance[..., e], other), 0) for other in LABELS if other != label]
        out["mean"].append(np.mean(mine, 0))
        out["std"].append(np.std(mine, 0))
        out["contrast"].append(np.mean(mine, 0) - np.mean(others, 0))
        out["baseline"].append(np.mean(of_prompts(base[..., e], label), 0))
    return {name: np.array(value) for name, value in out.items()}


ALWAYS = {
    *((name, "residual", "last") for name in FORMS), *((name, "residual", (1, 4)) for name in ("llama", "gemma2", "bert")),
    ("gpt2", "normed", "last"), ("granite", "normed", "last"), ("llama", "normed", (1, 4)), ("gemma2", "normed", (1, 4)),
}  # fmt: skip
"""The others of these cases run in `make soak`."""
CASES = [
    (name, readout, positions)
    for readout, names in (("residual", FAMILIES), ("normed", NORMED))
    for name in names
    for positions in ("last", (1, 4))
]


@pytest.mark.parametrize(
    ("name", "readout", "positions"),
    [case if case in ALWAYS else pytest.param(*case, marks=pytest.mark.soak) for case in CASES],
)
def test_stored_heads_are_zero_ablation_of_every_head_at_every_row(name, readout, positions):
    model, prompts = loaded(name), some_prompts()
    directions = random_directions(model)
    acts = captured(model, prompts, positions)
    got = head_contributions(acts, covectors(model, directions, head_readout=readout))
    importance, base = by_ablation(model, prompts, directions, positions, readout)
    want = literal(importance, base, acts.tokens)
    assert np.abs(want["mean"]).max() > 1e-2
    scale = max(np.abs(want["mean"]).max(), np.abs(want["baseline"]).max())
    for score, values in want.items():
        assert np.abs(got[score].values - values).max() <= 2e-5 * scale, score
    assert got["n"].values.tolist() == [3, 3, 3]
    assert got.attrs["n_rows"] == len(acts)


def largest(table):
    return max(float(np.abs(table[name]).max()) for name in ("mean", "contrast"))


@pytest.mark.parametrize("name", families(FAMILIES))
def test_store_memory_and_streaming_agree(name, tmp_path):
    model, prompts = loaded(name), some_prompts()
    directions = random_directions(model)
    memory = captured(model, prompts)
    stored = rewritten(memory, tmp_path / "a.zarr")
    assert stored.n_groups == 5
    keys = [p.key for p in prompts][1:]
    for readout in ("residual", "normed") if name in NORMED else ("residual",):
        vectors = covectors(model, directions, head_readout=readout)
        calls: list[tuple[Any, dict[str, Any]]] = [
            (head_contributions, {"head_readout": readout}),
            (neuron_contributions, {}),
        ]
        for function, options in calls:
            streamed = function(model, prompts, directions, accepted=keys, progress=False, **options)
            got = function(stored, vectors, accepted=keys)
            xr.testing.assert_identical(got.drop_attrs(), function(memory, vectors, accepted=keys).drop_attrs())
            assert got.sizes == streamed.sizes
            assert list(got.data_vars) == list(streamed.data_vars)
            for score in got.data_vars:
                assert np.abs(got[score] - streamed[score]).max() <= 1e-6 * largest(streamed), (
                    function.__name__,
                    score,
                )
            same = set(got.attrs) & set(streamed.attrs) - {"method", "prompts_digest", "tokens_digest"}
            assert {k: got.attrs[k] for k in same} == {k: streamed.attrs[k] for k in same}
            assert "readout_site" in same
            assert got.attrs["source"] == str(stored.path)
            assert got.attrs["selection"] == "[]"
            assert got.attrs["plan_digest"] == stored.attrs["plan_digest"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt-neox"])
def test_stored_neurons_by_a_loop_over_rows(name):
    """Numbers are added up in float32 runs: within 1e-6 of the largest score."""
    model, prompts = loaded(name), some_prompts()
    directions = random_directions(model)
    acts = captured(model, prompts, (0, 5))
    got = neuron_contributions(acts, covectors(model, directions))
    beta, tokens = got["beta"].values, acts.tokens
    a = acts.neuron.values.astype(np.float64)
    if "neuron_norm" in acts.variables:
        a = a / acts.sel("neuron_norm").values.astype(np.float64)[..., None]

    def mean(values, label):  # [layer, row, unit]
        prompts_of = tokens.prompt[tokens.emotion == label].unique()
        return np.mean([values[:, (tokens.prompt == p).to_numpy()].mean(1) for p in prompts_of], 0)

    scale = np.abs(got["mean"]).max()
    for e, label in enumerate(LABELS):
        c = a * beta[e][:, None]
        others = np.mean([mean(a, other) for other in LABELS if other != label], 0) * beta[e]
        want = {
            "mean": mean(c, label),
            "positive": mean(np.maximum(c, 0), label),
            "negative": mean(np.minimum(c, 0), label),
        }
        want["contrast"] = want["mean"] - others
        for score, values in want.items():
            assert np.abs(got[score].values[e] - values).max() <= 1e-6 * scale, score
        out = acts.sel("residual", sublayer="mlp_out").values.astype(np.float64)
        v = directions.sel(emotion=label, sublayer="resid_post").values.astype(np.float64)
        projected = model.sites.scale * np.einsum("lrd,ld->lr", out, v / np.linalg.norm(v, axis=-1, keepdims=True))
        whole = got["mean"].values[e].sum(-1) + got["bias"].values[e]
        assert np.abs(whole - mean(projected[..., None], label)[:, 0]).max() <= 1e-5 * np.abs(projected).max()


def test_equal_numbers_of_one_label_are_added_up_to_rounding():
    """Added up in float32 one after the other, 600 of them were off by 9e-6."""
    vectors, n = covectors(loaded("llama"), random_directions(loaded("llama"))), 600
    labels = [{"emotion": e} for e in LABELS for _ in range(n)]
    rows = store.Rows.of([f"p{i}" for i in range(len(labels))], [[1]] * len(labels), [1] * len(labels),
                         [range(1)] * len(labels), str, labels)  # fmt: skip
    each = np.random.default_rng(0).uniform(-1, 1, (3, 1, vectors.sizes["unit"])).astype(np.float32)
    variable = store.Variable("neuron", ("layer", "unit"), {"layer": [0, 1, 2]}, {"unit": vectors.sizes["unit"]})
    acts = store.Activations.in_memory(
        store.Plan.make(rows, [variable], {}), {"neuron": np.repeat(each, len(labels), axis=1)}
    )
    got = neuron_contributions(acts, vectors)
    assert np.abs(got["activation"] - each[:, 0]).max() <= 1e-6
    assert np.abs(got["contrast"]).max() <= 1e-12


def test_neurons_before_their_function():
    model, prompts = loaded("gpt2"), some_prompts()
    directions = random_directions(model)
    acts = et.capture(model, prompts, ["neuron", "neuron_pre"], progress=False)
    got = neuron_contributions(acts, covectors(model, directions), variable="neuron_pre")
    want = neuron_contributions(model, prompts, directions, variable="neuron_pre", progress=False)
    assert np.abs(got["activation"] - want["activation"]).max() <= 1e-6 * np.abs(want["activation"]).max()
    assert got.attrs["variable"] == "neuron_pre"


def test_a_view_is_scored_like_a_capture_of_it(tmp_path):
    model, prompts = loaded("llama"), some_prompts(18)
    directions = random_directions(model)
    vectors = covectors(model, directions)
    acts = captured(model, prompts, "all", out=tmp_path / "a.zarr", row_group_bytes=8192)
    part = Prompts(p for p in prompts if p.labels["skeleton_id"] in ("s1", "s4", "s5"))
    view = acts.where(skeleton_id=["s1", "s4", "s5"], position=(1, 3), layer=[0, 2])
    alone = captured(model, part, (1, 3), layers=[0, 2])
    for function in (head_contributions, neuron_contributions):
        got = function(view, vectors)
        xr.testing.assert_allclose(got, function(alone, vectors), rtol=1e-4, atol=1e-6)
        assert got["layer"].values.tolist() == [0, 2]
        xr.testing.assert_identical(function(view, vectors.sel(layer=[2, 0])), got)
    some = acts.where(head=[3, 1], unit=[40, 7])
    for function, dim, names in ((head_contributions, "head", [1, 3]), (neuron_contributions, "unit", [7, 40])):
        got, whole = function(some, vectors), function(acts, vectors)
        assert got[dim].values.tolist() == names
        for score in ("mean", "contrast"):
            assert np.abs(got[score] - whole[score].sel({dim: names})).max() <= 1e-6 * largest(whole)


def test_blocks_hold_whole_prompts_and_change_nothing(monkeypatch):
    model, prompts = loaded("gemma2"), some_prompts()
    vectors = covectors(model, random_directions(model))
    acts = captured(model, prompts, "all")
    at_once = [function(acts, vectors) for function in (head_contributions, neuron_contributions)]
    sizes = []
    read = Cell.read

    def counted(self, places, room):
        found = read(self, places, room)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(chunked, "RUN", 4096)
    monkeypatch.setattr(Cell, "read", counted)
    in_blocks = [function(acts, vectors) for function in (head_contributions, neuron_contributions)]
    lengths = np.diff(np.append(np.flatnonzero(np.diff(acts.tokens.prompt, prepend=-1)), len(acts)))
    assert max(sizes) == max(lengths)
    for a, b in zip(at_once, in_blocks, strict=True):
        for score in a.data_vars:
            assert np.abs(a[score] - b[score]).max() <= 1e-6 * np.abs(a[score]).max(), score


def test_a_store_whose_capture_was_stopped_answers_with_the_rows_that_are_committed(tmp_path):
    model, prompts = loaded("llama"), some_prompts(12)
    vectors = covectors(model, random_directions(model))
    memory = captured(model, prompts)
    part = rewritten(memory, tmp_path / "a.zarr", groups=(0, 1, 4))
    assert not part.complete
    same = memory.where(key=[f"p{i}" for i in (0, 1, 2, 3, 8, 9)])
    options = {"neurons_per_layer": 2, "heads_per_layer": 1, "within": ("valence",)}
    for function in (head_contributions, neuron_contributions):
        got = function(part, vectors)
        assert got["n"].values.tolist() == [3, 1, 2]
        assert got.attrs["n_prompts"] == got.attrs["n_rows"] == 6
        xr.testing.assert_identical(got.drop_attrs(), function(same, vectors).drop_attrs())
    found = [et.circuits.discover(acts, vectors, **options).components for acts in (part, same)]
    assert found[0].equals(found[1])


def test_stored_halves_and_packed_chunks_give_the_same_bits(tmp_path):
    model = loaded("llama")
    vectors = covectors(model, random_directions(model))
    acts = captured(model, some_prompts(), "all")
    half = {v.name: acts.sel(v.name).values.astype(np.float16) for v in acts.described}
    same = held(acts, {name: values.astype(np.float32) for name, values in half.items()})
    halves, packed = held(acts, half, "float16"), rewritten(same, tmp_path / "a.zarr", "bfloat16")
    for function in (head_contributions, neuron_contributions):
        want = function(same, vectors).drop_attrs()
        for other in (halves, packed):
            xr.testing.assert_identical(function(other, vectors).drop_attrs(), want)


def test_numbers_that_are_not_finite_or_cannot_be_added_up_are_refused_by_name():
    model = loaded("llama")
    vectors = covectors(model, random_directions(model))
    acts = captured(model, some_prompts())
    for site, function, rows, value, said in (
        ("z", head_contributions, 4, np.nan, "z of layer 1 of 'p4' is not finite"),
        ("residual", head_contributions, 4, np.inf, "resid_mid of layer 1 of 'p4' is not finite"),
        ("neuron", neuron_contributions, 4, -np.inf, "neuron of layer 1 of 'p4' is not finite"),
        ("neuron", neuron_contributions, [1, 4], 3e38, "layer 1 is too large to be added up in float32"),
    ):
        arrays = {v.name: acts.sel(v.name).values.copy() for v in acts.described}
        arrays[site][(1, slice(None), rows) if site == "residual" else (1, rows)] = value
        with pytest.raises(EmotraceError, match=said):
            function(held(acts, arrays), vectors)


def test_only_the_chunks_asked_for_are_read(tmp_path):
    global OPENED
    model, prompts = loaded("llama"), some_prompts(24)
    vectors = covectors(model, random_directions(model))
    acts = captured(model, prompts, out=tmp_path / "a.zarr", row_group_bytes=4096)
    view = acts.where(layer=1, skeleton_id=["s2", "s3"])
    rows = np.flatnonzero(acts.tokens.skeleton_id.isin(["s2", "s3"]))
    groups = sorted({int(r) // acts.attrs["emotrace_store"]["row_group"] for r in rows})
    assert len(groups) < acts.n_groups
    OPENED = []
    head_contributions(view, vectors)
    chunks = {tuple(p.split("/")[-1].split(".")[1:]) for p in OPENED if "/z/z/c." in p}
    residual = {tuple(p.split("/")[-1].split(".")[1:]) for p in OPENED if "/residual/residual/c." in p}
    others = [p for p in OPENED if "/neuron/neuron/c." in p]
    OPENED = None
    mid = acts.attrs["emotrace_store"]["variables"][0]["coords"]["sublayer"].index("resid_mid")
    assert chunks == {("1", str(g), "0", "0") for g in groups}
    assert residual == {("1", str(mid), str(g), "0") for g in groups}
    assert not others


def test_covectors_are_kept_and_say_what_they_are_of(tmp_path):
    model = loaded("gemma2")
    directions = random_directions(model)
    made = covectors(model, directions, head_readout="normed", layers=[0, 2], out=tmp_path)
    xr.testing.assert_identical(load_scores(tmp_path, "covectors"), made)
    assert made.attrs["z_layers"] == made.attrs["z_after"] == made.attrs["z_reads"] == [0, 2]
    assert made.attrs["residual"] == ["resid_mid", "resid_mid"]
    assert made.attrs["weights_hash"] == model.sites.identity["weights_hash"]
    assert dict(made["z"].sizes) == {"emotion": 3, "layer": 2, "head": 4, "head_dim": 16}
    assert {x.dtype for x in made.data_vars.values()} == {np.dtype(np.float64)}
    heads = covectors(model, directions, kinds=["head"])
    assert "neuron" not in heads
    with pytest.raises(EmotraceError, match="the covectors hold nothing of 'neuron'"):
        neuron_contributions(captured(model, some_prompts()), heads)
    assert "neuron" not in covectors(loaded("mixtral"), random_directions(loaded("mixtral")))


def test_bad_inputs_are_refused_in_words():
    model, prompts = loaded("gemma2"), some_prompts()
    directions = random_directions(model)
    vectors = covectors(model, directions)
    bare = et.capture(model, prompts, ["z", "neuron"], progress=False)
    whole = captured(model, prompts)
    other = loaded("gemma2", seed=3)
    for message, wrong in [
        (r"'z_norm'.*capture 'z' with components=True", lambda: head_contributions(bare, vectors)),
        (r"'neuron_norm'.*capture 'neuron' with components=True", lambda: neuron_contributions(bare, vectors)),
        ("acts was made with the model", lambda: head_contributions(captured(other, prompts), vectors)),
        ("these are no covectors", lambda: head_contributions(whole, vectors["z"].to_dataset())),
        (
            r"takes no 'directions'\. Of stored.*head_contributions\(acts, covectors, accepted=…",
            lambda: head_contributions(whole, directions=directions),  # type: ignore[call-overload]
        ),
        ("missing a required argument: 'covectors'", lambda: neuron_contributions(whole)),  # type: ignore[call-overload]
        ("Dataset is due", lambda: head_contributions(whole, directions)),  # type: ignore[call-overload]
        ("all heads together", lambda: head_contributions(whole.where(head=[0, 1]), vectors)),
        (
            "narrowed along 'head_dim', which is read whole",
            lambda: head_contributions(whole.where(head_dim=[0, 1]), vectors),
        ),
        ("of one layer without its dim", lambda: head_contributions(whole, vectors.sel(layer=1))),
        ("of one emotion without its dim", lambda: neuron_contributions(whole, vectors.sel(emotion="fear"))),
        (
            "two or more values of 'emotion'; the covectors have 1",
            lambda: neuron_contributions(whole.where(emotion="fear"), vectors.sel(emotion=["fear"])),
        ),
        ("unknown layer of the covectors 1", lambda: head_contributions(whole, vectors.sel(layer=[0, 2]), layers=1)),
        ("unknown layer of the covectors 7", lambda: head_contributions(whole, vectors, layers=7)),
        (
            "no \\(accepted\\) prompt has emotion",
            lambda: head_contributions(whole.where(emotion=["fear", "anger"]), vectors),
        ),
        (
            "not 'z'; capture it",
            lambda: head_contributions(et.capture(model, prompts, "neuron", progress=False), vectors),
        ),
        ("unknown readout 'norm'", lambda: covectors(model, directions, head_readout="norm")),
        ("unknown kind 'mlp'", lambda: covectors(model, directions, kinds=["mlp"])),
        ("capture one of them", lambda: et.capture(model, prompts, "resid_mid", components=True, progress=False)),
    ]:
        with pytest.raises(EmotraceError, match=message):
            wrong()
    flat = loaded("llama")
    normed = covectors(flat, random_directions(flat), head_readout="normed")
    with pytest.raises(EmotraceError, match=r"'mid_norm'.*capture 'resid_mid' and 'z' with components=True"):
        head_contributions(et.capture(flat, prompts, ["z", "resid_mid"], progress=False), normed)
    with pytest.raises(EmotraceError, match="has no resid_mid"):
        covectors(loaded("gpt-neox"), random_directions(loaded("gpt-neox")), head_readout="normed")


def test_heads_without_the_others_have_no_baseline_that_is_their_sum():
    model = loaded("gpt-neox")  # read at attn_out, which is the sum of all heads
    acts, vectors = captured(model, some_prompts()), covectors(model, random_directions(model))
    whole, some = (head_contributions(a, vectors) for a in (acts, acts.where(head=[1, 2])))
    assert "baseline" in whole
    assert "baseline" not in some
    xr.testing.assert_identical(some["mean"], whole["mean"].sel(head=[1, 2]))
    model = loaded("llama")
    acts, vectors = captured(model, some_prompts()), covectors(model, random_directions(model))
    with pytest.raises(EmotraceError, match="head_contributions: 'residual' is narrowed along 'dim'"):
        head_contributions(acts.where(dim=[0, 1]), vectors)


def test_without_the_residual_there_is_no_baseline():
    model, prompts = loaded("llama"), some_prompts()
    vectors = covectors(model, random_directions(model))
    got = head_contributions(et.capture(model, prompts, "z", progress=False), vectors)
    whole = head_contributions(captured(model, prompts), vectors)
    assert "baseline" not in got
    xr.testing.assert_identical(got.drop_attrs(), whole.drop_vars("baseline").drop_attrs())


def test_a_store_is_scored_without_torch(tmp_path):
    model, prompts = loaded("llama"), some_prompts()
    captured(model, prompts, out=tmp_path / "a.zarr")
    covectors(model, random_directions(model), out=tmp_path)
    code = f"""
import sys
import emotrace as et
acts = et.open_activations({str(tmp_path / "a.zarr")!r}).where(layer=[0, 1])
c = et.attribution.load_scores({str(tmp_path)!r}, "covectors")
found = et.circuits.discover(acts, c, neurons_per_layer=2, heads_per_layer=1, out={str(tmp_path / "circuit")!r})
assert len(found.components) == 3 * 2 * 3, found.components
et.attribution.top_prompts(acts, 1, [3])
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
