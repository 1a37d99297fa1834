"""Every method against circuits that are known: nodes and edges, with a random and a magnitude baseline."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from emotrace import discovery
from emotrace.testing.planted_shapes import SHAPES
from tests.discovery.conftest import planted

LEVELS = ("node", "edge")
EXACT = {"node": "patching", "edge": "path_patching"}
APPROXIMATE = ("eap", "eap_ig_inputs", "ceap", "eap_ig_activations")


@functools.cache
def scored(name, method, level, **options):
    p = planted(name)
    return discovery.scores(
        p.model, p.pairs, p.metric, method=method, level=level, batch_size=96, steps=4, progress=False, **options
    )


def truth(p, found, level):
    wanted = p.nodes - p.idle if level == "node" else p.edges
    mask = np.isin(found[level].values, list(wanted))
    assert mask.sum() == len(wanted), "every planted component is a component of the graph"
    return mask


def quality(p, found, level):
    """AUROC and average precision of the magnitudes."""
    mask, values = truth(p, found, level), np.abs(discovery.mean(found).values)
    return roc_auc_score(mask, values), average_precision_score(mask, values)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SHAPES)
def test_exact_methods_find_the_planted_circuit_and_nothing_else_first(circuits, name, level):
    p = circuits(name)
    assert quality(p, scored(name, EXACT[level], level), level) == pytest.approx((1, 1), abs=1e-9)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SHAPES)
def test_integrated_methods_find_it_where_attribution_patching_may_not_and_baselines_do_not(circuits, name, level):
    p = circuits(name)
    best = {m: quality(p, scored(name, m, level), level) for m in (*APPROXIMATE[1:], "magnitude")}
    random = quality(p, scored(name, "random", level, seed=1), level)
    for method in APPROXIMATE[1:]:
        assert best[method][0] > 0.99
        assert best[method][1] > 0.9
        assert best[method][1] > best["magnitude"][1] > 0  # a decoy changes more than what is planted
        assert best[method][1] > random[1]


def test_a_saturated_attention_has_hardly_a_slope_so_attribution_patching_misses_the_query():
    local, exact = (
        discovery.mean(scored("query", m, "edge")).sel(edge="a0.h1->a1.h2.q").item() for m in ("eap", "path_patching")
    )
    integrated = discovery.mean(scored("query", "eap_ig_inputs", "edge")).sel(edge="a0.h1->a1.h2.q").item()
    assert abs(local) < 0.1 * exact
    assert integrated > 0.5 * exact


def test_a_random_baseline_is_a_draw_that_may_be_repeated():
    a, b, c = (scored.__wrapped__("direct", "random", "edge", seed=s)["score"].values for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).all()
    assert (a == a[:1]).all()  # the same for every pair
    assert abs(a[0].mean()) < 0.5


@pytest.mark.parametrize("level", LEVELS)
def test_what_takes_the_answer_away_scores_below_zero(level):
    for method in (*APPROXIMATE, EXACT[level]):
        score = discovery.mean(scored("negative", method, level))
        name = "a1.h3" if level == "node" else "a1.h3->out"
        assert score.sel({level: name}).item() < -0.3
        assert score.sel({level: name.replace("a1.h3", "a0.h0")}).item() > 0.3


def test_a_head_that_steps_in_hides_the_first_under_zero_ablation_and_is_itself_idle(circuits):
    p = circuits("backup")
    swapped = discovery.mean(scored("backup", "patching", "node")).sel(node="a2.h3").item()
    assert abs(swapped) < 0.1
    first, clean = (scored("backup", "patching", "node", ablation="zero")[v] for v in ("score", "clean"))
    alone = first.sel(node="a0.h1").mean().item()
    circuit = discovery.select(scored("backup", "patching", "node"), 0)
    without = [~circuit, ~circuit]
    without[0] = without[0].where(circuit["node"] != "a0.h1", False)
    without[1] = without[0].where(circuit["node"] != "a2.h3", False)
    ran = discovery.run_circuits(p.model, p.pairs, p.metric, without, ablation="zero", batch_size=96, progress=False)
    both = (clean - ran["metric"][1]).mean().item()
    assert alone < 0.7 * both  # the backup makes up for what the first head did


def test_acdc_leaves_the_planted_edges(circuits):
    p = circuits("negative")
    found = scored("negative", "acdc", "edge", threshold=0.2)
    assert set(found["edge"].values[found["kept"].values]) == set(p.edges)
    signed = scored("negative", "acdc", "edge", threshold=0.2, absolute=False)
    assert not signed["kept"].sel(edge="a1.h3->out")  # it lowers the metric, so a signed rule lets it go
