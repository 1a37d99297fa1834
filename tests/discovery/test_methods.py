"""Scores: literal twins, exactness where theory gives it, invariance to batches and padding, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import emotrace as et
from emotrace import discovery
from emotrace.discovery import batches, edges
from emotrace.forwards.entering import enter
from emotrace.testing import tiny
from emotrace.traced import circuits as circuits_in_a_trace
from emotrace.traced import rewiring
from tests.discovery.conftest import planted

APPROXIMATE = ("eap", "eap_ig_inputs", "ceap", "eap_ig_activations")


def ready(p, ablation="counterfactual"):
    g = edges.graph(p.model, p.metric)
    return g, next(batches.ready(p.model, p.pairs, p.metric, g.seen, ablation, 96))


@pytest.mark.parametrize("name", ["gqa", "negative"])
def test_eap_of_edges_is_the_slope_of_cutting_them(circuits, name):
    """The fast one takes gradients of projections back through norms; its twin differentiates a rewired forward."""
    p = circuits(name)
    g, batch = ready(p)
    slope = next(edges.rewired(p.model, g, batch, [torch.zeros(len(batch), *g.allowed.shape)], live=True)).gradient
    torch.testing.assert_close(
        edges.edge_scores(p.model, batch, g, "eap", 1), -slope[:, g.allowed], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["gqa", "negative", "mqa"])
def test_a_rewired_model_is_the_model_and_without_any_edge_the_counterfactual(circuits, name):
    p = circuits(name)
    g, batch = ready(p)
    whole = next(edges.rewired(p.model, g, batch, [torch.zeros(len(batch), *g.allowed.shape)])).metric
    none = next(edges.rewired(p.model, g, batch, [g.allowed.float().expand(len(batch), -1, -1)])).metric
    torch.testing.assert_close(whole, batch.clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(none, batch.counterfactual, atol=1e-4, rtol=1e-4)


def by_hooks(model, ids, hooks):
    """Logits at the last token under plain torch hooks: module → function of its output."""
    handles = [m.register_forward_hook(lambda _m, i, o, f=f: f(i, o)) for m, f in hooks]
    try:
        with torch.no_grad():
            return model._module(input_ids=torch.tensor([ids])).logits[0, -1].clone()
    finally:
        for h in handles:
            h.remove()


def test_path_patching_of_one_edge_by_hand(circuits):
    """a0.h5 → the values of group 0 in layer 1 of a GQA Llama, with torch hooks and the formula."""
    p = circuits("gqa")
    layers, config = p.model._module.model.layers, p.model._module.config
    size, pair = config.head_dim, p.pairs[0]
    kept = {}
    for which, ids in (("clean", pair.clean), ("other", pair.counterfactual)):
        z = layers[0].self_attn.o_proj
        by_hooks(p.model, ids, [(z, lambda i, o, w=which: kept.update({w: i[0].clone()}))])
    columns = slice(5 * size, 6 * size)
    change = (kept["clean"] - kept["other"])[..., columns] @ layers[0].self_attn.o_proj.weight[:, columns].T

    stream = {}

    def v(_inputs, out):
        normed = layers[1].input_layernorm.weight * torch.nn.functional.rms_norm(
            stream["x"] - change, (config.hidden_size,), eps=config.rms_norm_eps
        )
        new = out.clone()
        new[..., :size] = normed @ layers[1].self_attn.v_proj.weight[:size].T
        return new

    hooks = [
        (layers[1].input_layernorm, lambda i, o: stream.update(x=i[0])),
        (layers[1].self_attn.v_proj, v),
    ]
    sign = 1 if pair.labels["emotion"] == "0" else -1

    def metric(logits):
        return sign * float(logits[20] - logits[21])

    want = metric(by_hooks(p.model, pair.clean, [])) - metric(by_hooks(p.model, pair.clean, hooks))
    found = discovery.scores(
        p.model, p.pairs[:2], p.metric, method="path_patching", level="edge", batch_size=96, progress=False
    )
    assert found["score"].sel(edge="a0.h5->a1.g0.v")[0].item() == pytest.approx(want, abs=1e-4)
    assert want > 1


def test_patching_of_one_head_by_hand(circuits):
    p = circuits("chain")
    out, pair = p.model._module.transformer.h[1].attn.c_proj, p.pairs[1]
    kept = {}
    by_hooks(p.model, pair.counterfactual, [(out, lambda i, o: kept.update(z=i[0].clone()))])
    want = by_hooks(p.model, pair.clean, [])
    handle = out.register_forward_pre_hook(lambda m, i: (torch.cat([kept["z"][..., :16], i[0][..., 16:]], -1),))
    try:
        want = want - by_hooks(p.model, pair.clean, [])
    finally:
        handle.remove()
    sign = 1 if pair.labels["emotion"] == "0" else -1
    found = discovery.scores(p.model, p.pairs, p.metric, method="patching", batch_size=96, progress=False)
    assert found["score"].sel(node="a1.h0")[1].item() == pytest.approx(sign * float(want[20] - want[21]), abs=1e-4)


class Gain(nn.Module):
    """A norm that only multiplies, so that a whole model is linear."""

    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(0.5 + torch.rand(d))

    def forward(self, x):
        return x * self.weight


@pytest.fixture(scope="module")
def linear():
    """A GPT-2 in which nothing is nonlinear: no norm, no activation, attention spread evenly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=tiny.VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64, activation_function="linear",
                tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.15,
            )
        )  # fmt: skip
        for block in module.transformer.h:
            block.ln_1, block.ln_2 = Gain(32), Gain(32)
            with torch.no_grad():
                block.attn.c_attn.weight[:, :64] = 0  # no query, no key
        module.transformer.ln_f = Gain(32)
    model = et.load(module.eval(), tokenizer=tiny.tiny_tokenizer())
    rng = np.random.default_rng(0)
    clean = [rng.integers(9, 150, n).tolist() for n in (6, 9, 7, 6)]
    other = [[*ids[:3], ids[3] + 1, *ids[4:]] for ids in clean]
    weights = torch.randn(tiny.VOCAB, generator=torch.Generator().manual_seed(0))
    metric = discovery.SiteFunction([("logits", None)], lambda v: v[0] @ weights, "a mixture of logits")
    return model, discovery.pairs(model, clean, other), metric


def test_in_a_linear_model_every_method_is_exact_and_scores_sum_to_the_total(linear):
    model, pairs, metric = linear

    def score(method, level):
        return discovery.scores(
            model, pairs, metric, method=method, level=level, steps=2, batch_size=64, progress=False
        )

    exact = {level: score(m, level) for level, m in (("node", "patching"), ("edge", "path_patching"))}
    total = (exact["edge"]["clean"] - exact["edge"]["counterfactual"]).values
    assert np.abs(total).min() > 1e-2
    for method in (*APPROXIMATE, "path_patching"):
        found = exact["edge"] if method == "path_patching" else score(method, "edge")
        into = found["score"].where(found["target"] == "out", drop=True).sum("edge").values
        np.testing.assert_allclose(into, total, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found["score"], exact["edge"]["score"], rtol=1e-2, atol=1e-4)
    for method in APPROXIMATE:
        np.testing.assert_allclose(score(method, "node")["score"], exact["node"]["score"], rtol=1e-2, atol=1e-4)


def test_integrated_activations_of_a_layer_sum_to_its_exact_effect(circuits):
    """Completeness of the path integral, per place that is moved."""
    p = circuits("gqa")
    found = discovery.scores(
        p.model, p.pairs, p.metric, method="eap_ig_activations", nodes="head", steps=64, batch_size=96, progress=False
    )
    for layer in range(3):
        mine = found["score"].where(found["layer"] == layer, drop=True).sum("node")
        keep = discovery.select(discovery.mean(found), 0)
        ran = discovery.run_circuits(
            p.model, p.pairs, p.metric, ~keep & (keep["layer"] != layer), batch_size=96, progress=False
        )
        np.testing.assert_allclose(mine, ran["full"] - ran["metric"][0], atol=0.03)


@settings(max_examples=6)
@given(
    method=st.sampled_from(APPROXIMATE),
    level=st.sampled_from(["node", "edge"]),
    ablation=st.sampled_from(batches.ABLATIONS),
    batch_size=st.integers(1, 6) | st.just("auto"),
    order=st.permutations(range(6)),
)
def test_scores_depend_neither_on_batches_nor_on_padding(method, level, ablation, batch_size, order):
    """Pairs of three lengths: what is beside a pair in its batch changes its padding."""
    p = planted("negative")
    common = {"method": method, "level": level, "ablation": ablation, "steps": 2, "progress": False}
    whole = discovery.scores(p.model, p.pairs, p.metric, batch_size=6, **common)
    mixed = discovery.Pairs([p.pairs[i] for i in order])
    other = discovery.scores(p.model, mixed, p.metric, batch_size=batch_size, **common)
    np.testing.assert_allclose(other["score"].sel(pair=whole["pair"].values), whole["score"], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("level", "method"), [("node", "patching"), ("edge", "path_patching")])
def test_exact_scores_do_not_depend_on_batches_either(circuits, level, method):
    p = circuits("negative")
    some = p.pairs[:3]
    a, b = (
        discovery.scores(p.model, some, p.metric, method=method, level=level, batch_size=n, progress=False)["score"]
        for n in (2, 96)
    )
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_spans_say_where_a_node_acts_and_sum_to_its_score(circuits):
    p = circuits("chain")
    found = discovery.scores(p.model, p.pairs, p.metric, method="eap", batch_size=96, progress=False)
    np.testing.assert_allclose(found["by_span"].sum("span"), found["score"], atol=1e-4)
    where = found["by_span"].mean("pair")
    assert where.sel(span="after", node="a0.h2") > 1  # it carries the word to the middle token
    assert where.sel(span="last", node="a1.h0") > 1  # and this one from there to the end
    assert abs(where.sel(span="changed").values).max() < 0.1


def test_neurons_and_sublayers_are_nodes_too(circuits):
    p = circuits("direct")
    found = discovery.scores(
        p.model, p.pairs, p.metric, nodes=("neuron", "sublayer", "resid"), batch_size=96, steps=2, progress=False
    )
    kinds, counts = np.unique(found["kind"].values, return_counts=True)
    assert dict(zip(kinds.tolist(), counts.tolist(), strict=True)) == {"attn": 2, "mlp": 2, "neuron": 96, "resid": 2}
    best = discovery.mean(found).where(found["kind"] == "neuron", 0)
    assert set(discovery.nodes_of(discovery.select(best, 2))) == {"n1.0", "n1.1"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "path_patching"}, "level='edge'"),
        ({"method": "eapp"}, "Did you mean 'eap'"),
        ({"level": "path"}, "unknown level"),
        ({"nodes": "haed"}, "Did you mean 'head'"),
        ({"ablation": "none"}, "unknown ablation"),
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"method": "acdc", "level": "edge"}, "threshold=None"),
        ({"method": "eap", "metric": discovery.KL()}, "slope of"),
        ({"metric": "logits"}, "Metric is due"),
        ({"pairs": "anger"}, "Pairs or a list"),
    ],
)
def test_what_cannot_be_is_refused(circuits, options, words):
    p = circuits("direct")
    arguments = {"pairs": p.pairs, "metric": p.metric, **options}
    with pytest.raises(et.EmotraceError, match=words):
        discovery.scores(p.model, arguments.pop("pairs"), arguments.pop("metric"), progress=False, **arguments)


@pytest.mark.parametrize("ablation", ["counterfactual", "mean"])
@pytest.mark.parametrize(("level", "method"), [(level, m) for level, named in discovery.METHODS.items() for m in named])
def test_a_plan_counts_the_runs_of_prompts(circuits, monkeypatch, level, method, ablation):
    p, ran = circuits("gqa"), {"forward": 0, "back": 0}
    ask = {"method": method, "level": level, "ablation": ablation, "steps": 2, "batch_size": 64}
    ask |= {"threshold": 1e9} if method == "acdc" else {}

    def counted(model, function, *args):
        if function is circuits_in_a_trace.forward:
            ran["forward"] += len(args[2])
            ran["back"] += len(args[2]) * ("gradients" in args[-1])
        elif function is rewiring.rewired:
            ran["forward"] += sum(len(one.at) for one in args[2])
        return enter(model, function, *args)

    for module in (batches, edges):
        monkeypatch.setattr(module, "enter", counted)
    dry = discovery.scores.plan(p.model, p.pairs[:2], p.metric, **ask)
    assert ran == {"forward": 0, "back": 0}
    found = discovery.scores(p.model, p.pairs[:2], p.metric, progress=False, **ask)
    assert (dry.forwards, dry.backwards) == (ran["forward"], ran["back"])
    assert (dry.prompts, dry.components) == (4, found.sizes[level])
