"""Circuits: selection, evaluation, stability, edits, files and drawing."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import emotrace as et
from emotrace import discovery, report
from emotrace.discovery.evaluation import area
from emotrace.stats.ties import TIED
from tests.discovery.conftest import planted


@pytest.fixture(scope="module")
def known():
    """The negative circuit with its integrated scores."""
    p = planted("negative")
    found = discovery.scores(
        p.model, p.pairs, p.metric, method="eap_ig_inputs", level="edge", steps=4, batch_size=96, progress=False
    )
    return p, found


def edges(names, scores):
    """A labelled score of edges; heads two to a group."""
    source, target = zip(*(n.split("->") for n in names), strict=True)
    part = [t.rsplit(".", 1)[-1] if "." in t else ("out" if t == "out" else "mlp") for t in target]
    coords = {
        "edge": list(names),
        "source": ("edge", list(source)),
        "target": ("edge", list(target)),
        "input": ("edge", part),
    }
    return xr.DataArray(np.array(scores, dtype=float), dims="edge", coords=coords)


# -- selection ----------------------------------------------------------------------------------------------------


def test_top_takes_magnitudes_or_signed_scores(known):
    _, found = known
    score = discovery.mean(found)
    assert "a1.h3->out" in discovery.select(found, 7)["edge"].values[discovery.select(found, 7).values]
    signed = discovery.select(found, 4, absolute=False)
    assert score.values[signed.values].min() >= np.sort(score.values)[-4]
    assert (score.values[signed.values] > 0).all()
    by_threshold = discovery.select(found, threshold=0.5)
    assert by_threshold.values.tolist() == (np.abs(score.values) >= 0.5).tolist()


def test_greedy_takes_only_what_leads_to_the_metric():
    score = edges(
        ["embed->a0.h0.q", "embed->a0.g0.v", "embed->m0", "a0.h1->out", "a0.h0->m0", "m0->out", "embed->out"],
        [9.0, 3.0, 8.0, 2.0, 7.0, -1.0, 0.5],
    )
    names = score["edge"].values
    order = [set(names[discovery.select(score, n, rule="greedy").values]) for n in range(1, 8)]
    assert order[0] == {"a0.h1->out"}
    assert order[1] == order[0] | {"embed->a0.g0.v"}  # the value of a group is an input of both of its heads
    assert order[2] == order[1] | {"m0->out"}
    assert order[3] == order[2] | {"embed->m0"}
    assert order[4] == order[3] | {"a0.h0->m0"}
    assert order[5] == order[4] | {"embed->a0.h0.q"}
    by_threshold = discovery.select(score, threshold=2.5, rule="greedy")
    assert not by_threshold.any()  # all that is higher leads to the metric through lower edges only
    by_threshold = discovery.select(score, threshold=1.0, rule="greedy")
    assert not {"embed->out"} & set(names[by_threshold.values])
    signed = discovery.select(score, 2, rule="greedy", absolute=False)
    assert set(names[signed.values]) == {"a0.h1->out", "embed->a0.g0.v"}


def test_live_edges_lie_on_a_path():
    score = edges(["embed->a0.g0.v", "a0.h1->out", "a0.h0->m0", "embed->m0", "m1->out", "embed->a1.h0.q"], [1.0] * 6)
    left = discovery.live(discovery.select(score, 6))
    assert left["edge"].values[left.values].tolist() == ["embed->a0.g0.v", "a0.h1->out"]


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=8), st.integers(0, 3), st.booleans())
def test_select_takes_n(values, n, absolute):
    score = xr.DataArray(values, dims="node", coords={"node": [f"m{i}" for i in range(len(values))]})
    chosen = discovery.select(score, n, absolute=absolute)
    assert int(chosen.sum()) == n
    size = np.abs(values) if absolute else np.array(values)
    if 0 < n < len(values):  # values that differ by rounding alone are one value: whichever comes first is taken
        assert size[chosen.values].min() >= size[~chosen.values].max() - TIED * np.abs(values).max()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 1, "threshold": 1.0}, "give one"),
        ({}, "give one"),
        ({"n": 99}, "0 to"),
        ({"n": 1, "rule": "best"}, "unknown rule"),
    ],
)
def test_selections_that_cannot_be(arguments, words):
    score = edges(["embed->out"], [1.0])
    with pytest.raises(et.EmotraceError, match=words):
        discovery.select(score, **arguments)
    nodes = xr.DataArray([1.0], dims="node", coords={"node": ["m0"]})
    with pytest.raises(et.EmotraceError, match="score edges"):
        discovery.select(nodes, 1, rule="greedy")
    with pytest.raises(et.EmotraceError, match="finite"):
        discovery.select(nodes * np.nan, 1)


# -- evaluation ---------------------------------------------------------------------------------------------------


def test_the_planted_circuit_is_faithful_complete_and_minimal(known):
    p, found = known
    circuit = found["score"][0].copy(data=np.isin(found["edge"].values, list(p.edges))).drop_vars("pair")
    told = discovery.evaluate(p.model, p.pairs, p.metric, circuit, batch_size=96, progress=False)
    assert float(told["faithfulness"]) == pytest.approx(1, abs=0.1)
    assert float(told["completeness"]) == pytest.approx(0, abs=0.1)
    lost = told["minimality"].to_series()
    assert (lost[[n for n in lost.index if "a1" not in n]] > 0.05).all()
    assert (lost[[n for n in lost.index if n in ("embed->a1.g3.v", "a1.h3->out")]] < -0.05).all()
    assert told["n"] == 7


@pytest.mark.parametrize("ablation", ["zero", "mean", "counterfactual"])
def test_all_components_are_the_model_and_none_is_nothing(known, ablation):
    p, found = known
    for level, like in (("edge", found), ("node", None)):
        score = (
            like
            if like is not None
            else discovery.scores(p.model, p.pairs, p.metric, method="eap", batch_size=96, progress=False)
        )
        every = discovery.select(score, score.sizes[level])
        none = ~every
        ran = discovery.run_circuits(
            p.model, p.pairs, p.metric, [every, none], ablation=ablation, batch_size=96, progress=False
        )
        np.testing.assert_allclose(discovery.faithfulness(ran), [1, 0], atol=1e-4)


def test_areas_under_both_axes_and_both_orders(known):
    p, found = known
    points = (0.02, 0.05, 0.1, 0.5, 1.0)
    told = discovery.curve(p.model, p.pairs, p.metric, found, points=points, batch_size=96, progress=False)
    assert told["faithfulness"].sel(point=1.0).values == pytest.approx(1)
    for order in told["order"].values:
        f = told["faithfulness"].sel(order=order).values
        for axis in told["axis"].values:
            x = told["share"].sel(order=order, axis=axis).values
            one = told.sel(order=order, axis=axis)
            assert float(one["cpr"]) == pytest.approx(np.trapezoid([0, *f], [0, *x]))
            assert float(one["cmd"]) == pytest.approx(np.trapezoid([1, *np.abs(1 - f)], [0, *x]))
            assert one["cpr"] + one["cmd"] >= 1 - 1e-6
    random = discovery.scores(p.model, p.pairs, p.metric, method="random", level="edge", batch_size=96, progress=False)
    chance = discovery.curve(p.model, p.pairs, p.metric, random, points=points, batch_size=96, progress=False)
    assert chance["cmd"].sel(order="absolute", axis="fixed") > told["cmd"].sel(order="absolute", axis="fixed") + 0.2
    assert area(np.array([1.0]), np.array([1.0])) == 0.5


def test_circuits_of_another_model_are_refused(known):
    p, found = known
    other = planted("gqa")
    with pytest.raises(et.EmotraceError, match="other edges"):
        discovery.run_circuits(other.model, other.pairs, other.metric, discovery.select(found, 3), progress=False)
    with pytest.raises(et.EmotraceError, match="rising"):
        discovery.curve(p.model, p.pairs, p.metric, found, points=(0.5, 0.1, 1.0))


# -- stability ----------------------------------------------------------------------------------------------------


def sample(effects, noise, skeletons=12, seed=0):
    """Scores of two pairs per skeleton, noise shared inside a skeleton."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.normal(size=(skeletons, len(effects))), 2, axis=0)
    values = np.array(effects) + noise * shared
    names = [f"s{i // 2}" for i in range(2 * skeletons)]
    n = len(effects)
    return xr.Dataset(
        {"score": (("pair", "node"), values)},
        coords={
            "node": [f"a0.h{i}" for i in range(n)], "kind": ("node", ["head"] * n), "layer": ("node", [0] * n),
            "pair": [f"p{i}" for i in range(2 * skeletons)], "skeleton_id": ("pair", names),
            "theme": ("pair", [f"t{i // 2 % 3}" for i in range(2 * skeletons)]),
        },
    )  # fmt: skip


def test_inclusion_is_sure_for_what_stands_out_and_split_among_the_rest():
    found = discovery.bootstrap_circuits(sample([5, -4, 0, 0, 0, 0], 0.5), 3, draws=300)
    assert found["inclusion"].values[:2].tolist() == [1, 1]
    assert found["inclusion"].values[2:].sum() == pytest.approx(1)
    assert found["consensus"].values.tolist() == [True, True, False, False, False, False]
    assert (found["lo"] <= found["hi"]).all()
    assert found["null"] < found["jaccard"] < 1
    again = discovery.bootstrap_circuits(sample([5, -4, 0, 0, 0, 0], 0.5), 3, draws=300)
    xr.testing.assert_identical(found, again)


def test_themes_agree_on_an_effect_and_not_on_noise():
    alike = discovery.across(sample([5, 5, 0, 0, 0, 0, 0, 0], 0.3), 2, draws=400)
    assert alike["mean"] == 1
    assert alike["p"] < 0.01
    ps = [float(discovery.across(sample([0] * 12, 1.0, seed=s), 4, draws=100)["p"]) for s in range(12)]
    assert np.mean(np.array(ps) < 0.05) < 0.3


def test_significance_holds_its_rate():
    found = discovery.significance(sample([3, -3, 0, 0], 0.5, skeletons=16), draws=999)
    assert (found["q"].values[:2] < 0.01).all()
    ps = np.concatenate(
        [discovery.significance(sample([0] * 20, 1.0, seed=s), draws=199)["p"].values for s in range(10)]
    )
    assert 0.01 < (ps <= 0.05).mean() < 0.1
    assert discovery.significance(sample([0, 0], 0.0), draws=99)["p"].values.tolist() == [1, 1]


def test_random_circuits_match_kind_and_layer(known):
    _, found = known
    circuit = discovery.select(found, 9)
    drawn = discovery.random_like(circuit, np.random.default_rng(0))
    assert int(drawn.sum()) == 9

    def strata(c):
        rows = zip(c["source"].values[c.values], c["target"].values[c.values], c["input"].values[c.values], strict=True)
        return sorted((s.split(".")[0], t.split(".")[0], i) for s, t, i in rows)

    assert strata(drawn) == strata(circuit)
    with pytest.raises(et.EmotraceError, match="unknown label of the pairs"):
        discovery.across(found, 3, by="emotions")


# -- edits, files, drawing ----------------------------------------------------------------------------------------


def test_edits_do_what_patching_with_zero_does(known):
    p, _ = known
    options = {"ablation": "zero", "batch_size": 96, "progress": False}
    found = discovery.scores(p.model, p.pairs, p.metric, method="patching", **options)
    circuit = discovery.select(found, 2)
    prompts = [list(q.clean) for q in p.pairs]
    ran = discovery.run_circuits(p.model, p.pairs, p.metric, ~circuit, **options)
    for outside, want in ((False, ran["metric"][0]), (True, None)):
        acts = et.capture(
            p.model,
            prompts,
            "logits",
            positions="last",
            edits=discovery.edits(circuit, outside=outside),
            progress=False,
        )
        logits = acts.sel("logits").values
        sign = np.array([1 if q.labels["emotion"] == "0" else -1 for q in p.pairs])
        got = sign * (logits[:, 20] - logits[:, 21])
        if want is not None:
            np.testing.assert_allclose(got, want, atol=1e-3)
        else:
            assert np.abs(got - found["clean"].values).max() > 0.1
    means = discovery.edits(circuit, "mean", model=p.model, prompts=prompts)
    held = et.capture(p.model, prompts, ["z", "mlp_out"], positions="all", progress=False)
    for one, other in zip(means, discovery.edits(circuit, "mean", prompts=held), strict=True):
        np.testing.assert_allclose(one.vector, other.vector, rtol=1e-4, atol=1e-5)
    assert [e.kind for e in means] == ["ablate"] * len(means)
    uneven = et.capture(p.model, [prompts[0], prompts[1][:2]], ["z", "mlp_out"], positions="all", progress=False)
    rows = uneven.sel(layer=0, sublayer="mlp_out")
    want = np.mean([rows.values[rows["prompt"].values == i].mean(0) for i in (0, 1)], 0)  # a prompt counts once
    every = discovery.edits(circuit.copy(data=np.ones(circuit.size, dtype=bool)), "mean", prompts=uneven)
    (mlp,) = [e for e in every if (e.site, e.layers) == ("mlp_out", (0,))]
    np.testing.assert_allclose(np.ravel(mlp.vector), want, rtol=1e-5, atol=1e-6)
    for held, words in (
        (uneven.where(head_dim=[0]), "narrowed along 'head_dim'"),
        (uneven.where(layer=[1]), "does not hold"),
    ):
        with pytest.raises(et.EmotraceError, match=words):
            discovery.edits(circuit.copy(data=np.ones(circuit.size, dtype=bool)), "mean", prompts=held)
    assert all(e.vector is not None for e in means)


def test_an_edge_set_becomes_edits_by_its_writers(known):
    _, found = known
    made = discovery.edits(discovery.select(found, 7))
    assert {(e.site, e.layers, e.heads) for e in made} >= {("z", (1,), (3,))}
    with pytest.raises(et.EmotraceError, match="there is no edge in"):
        discovery.edits(discovery.select(found, 0))
    with pytest.raises(et.EmotraceError, match="give model="):
        discovery.edits(discovery.select(found, 1), "mean")


def test_what_is_saved_is_loaded(known, tmp_path):
    _, found = known
    discovery.save_discovery(found, tmp_path)
    xr.testing.assert_identical(discovery.load_discovery(tmp_path), found)
    circuit = discovery.select(found, 5)
    discovery.save_discovery(circuit, tmp_path, "circuit")
    again = discovery.load_discovery(tmp_path, "circuit")
    assert isinstance(again, xr.DataArray)
    xr.testing.assert_identical(again, circuit)


def test_a_circuit_is_drawn(known, tmp_path):
    _, found = known
    figure = report.circuit_graph(discovery.select(found, 50), found)
    assert report.save_figure(figure, tmp_path / "circuit.png").stat().st_size > 10_000
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert {"embed", "out", "a0.h0", "a1.h3", "m1"} <= texts
    spots = [t.get_position() for t in figure.axes[0].texts]
    assert len(set(spots)) == len(spots)
    with pytest.raises(et.EmotraceError, match="select fewer"):
        report.circuit_graph(discovery.select(found, 0), found)


def test_scores_that_differ_by_rounding_are_equal():
    values = np.array([0.3, 0.1 + 0.2, 0.1, 0.4 - 0.1])
    found = xr.DataArray(values, dims="node", coords={"node": list("abcd")})
    assert discovery.select(found, 2).values.tolist() == [True, True, False, False]
    assert discovery.select(found, threshold=0.1 + 0.2).values.tolist() == [True, True, False, True]
