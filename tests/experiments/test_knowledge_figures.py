"""Figures of emotion knowledge: what they count and claim, from small tables by hand."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from emotrace import rsa
from emotrace.report import publish
from emotrace.report.figures import Shown
from emotrace.stats import wilson
from tests.experiments.studies import module

knowledge = module("knowledge_figures")
FIT = xr.Dataset({"correlation": 0.5, "lo": 0.1, "hi": 0.8, "p_mantel": 1 / 1001})
CONTROL = xr.Dataset({"explained": 0.25, "partial": 0.4})
NAMES = ["joy", "fear", "anger", "love"]
RDM = rsa.rdm(
    xr.DataArray(np.random.default_rng(0).normal(size=(4, 6)), dims=("emotion", "unit"), coords={"emotion": NAMES}),
    "cosine",
)


def masked(rows):
    values = np.zeros((2, 3, 8), dtype=bool)
    for cell in rows:
        values[cell] = True
    coords = {"attribute": ["valence", "arousal"], "layer": range(3), "unit": range(8)}
    return xr.DataArray(values, dims=("attribute", "layer", "unit"), coords=coords)


def table():
    rng = np.random.default_rng(1)
    rows = []
    for emotion in NAMES:
        for attribute, drop in (("valence", 0.2), ("arousal", -0.05), ("control", 0.1)):
            noise = 0.02 * rng.normal()
            rows.append({"emotion": emotion, "seed": 1, "attribute": attribute, "k": 5, "selective": 0.7 - drop + noise,
                         "random": 0.7, "drop": drop - noise, "n_draws": 9, "unmasked": 0.9})  # fmt: skip
    return pd.DataFrame(rows)


def test_heat_maps_show_every_rdm_with_an_empty_diagonal():
    figure = knowledge.rdm_maps({"model": RDM, "human side": RDM, "words": RDM}, FIT, CONTROL, 1000)
    maps = [ax for ax in figure.axes if ax.images and ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in maps] == ["model", "human side", "words"]
    shown = maps[0].images[0].get_array()
    assert shown.mask.diagonal().all()
    assert shown[0, 1] == pytest.approx(float(RDM[0]))
    assert figure.get_suptitle() == "Model and human side correlate at r = +0.50"
    assert (
        "+0.500 [+0.100, +0.800] (bootstrap over emotions and seeds), Mantel p ≤ 0.001 (1,000 shuffles"
        in figure.caption
    )
    assert "give 25%; with them held constant r is +0.400." in figure.caption


def test_counts_are_of_layers_and_attributes():
    figure = knowledge.selective_counts(masked([(0, 0, 1), (0, 0, 2), (0, 2, 7), (1, 1, 1)]), 0.05, "bh", 999)
    (ax, *_) = figure.axes
    assert ax.images[0].get_array().tolist() == [[2, 0, 1], [0, 1, 0]]
    assert figure.get_suptitle() == "Neurons counted as selective: most for valence (3 of 24)"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["valence (3)", "arousal (1)"]
    assert knowledge.selective_counts(masked([]), 0.05, "bh", 999).get_suptitle().startswith("No neuron is counted")


def test_maps_count_units_that_share_a_column(monkeypatch):
    monkeypatch.setattr(knowledge, "BINS", 4)
    figure = knowledge.top_neurons(masked([(0, 0, 0), (0, 0, 1), (0, 2, 7), (1, 1, 1), (1, 1, 2), (1, 2, 3)]))
    first, second = (ax.images[0].get_array().tolist() for ax in figure.axes[:2])
    assert first == [[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert second == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]]
    assert figure.get_suptitle() == "The 3 neurons closest to each attribute"


def test_stars_go_to_masks_that_hurt_more_than_95_percent_of_the_draws():
    tests = pd.DataFrame(
        {"k": 5, "attribute": ["valence", "arousal", "control"], "hurts_more": [1.0, 0.2, 0.95], "n_draws": 20}
    )
    figure = knowledge.masked_accuracy(table(), 5, tests)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["valence *", "arousal", "control"]
    assert figure.get_suptitle().startswith("1 of 3 selective masks of 5 neurons")
    few = knowledge.masked_accuracy(table(), 5, tests.assign(n_draws=2))
    assert few.get_suptitle().endswith("beside 2 random ones: too few for a test")
    assert [t.get_text() for t in few.axes[0].get_xticklabels()] == ["valence", "arousal", "control"]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    mean = table().query("attribute == 'valence'")["selective"].mean()
    assert lines["selective neurons masked"][0] == pytest.approx(mean)


def test_the_scatter_claims_the_mean_r_of_its_k():
    link = pd.DataFrame({"k": [5], "r": [0.5], "lo": [-0.1], "hi": [0.8], "p": [0.001], "p_floor": [0.001], "n": [4]})
    human = {"valence": 0.6, "arousal": 0.0, "control": 0.2}
    figure = knowledge.human_scatter(table(), human, 5, link)
    assert figure.get_suptitle() == "Mean r over 4 emotions +0.50 [−0.10, +0.80], p ≤ 0.001"
    points = {a.get_text(): a.xy for a in figure.axes[0].texts}
    assert points["valence"][0] == 0.6
    assert points["valence"][1] == pytest.approx(table().query("attribute == 'valence'")["drop"].mean())


def test_intervals_are_those_of_t():
    values = np.array([0.1, 0.4, 0.35, 0.6])
    mean, low, high = knowledge._interval(values)
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((values.mean(), *expected))
    assert np.isnan(knowledge._interval(values[:1])[1])


def test_everything_is_written_and_shown(tmp_path):
    shown = [Shown("rdms", "<Concepts>", knowledge.rdm_maps({"model": RDM}, FIT, CONTROL, 1000))]
    result = {"model": {"model_id": "tiny"}, "warnings": ["The ratings are illustrative."]}
    page = publish(tmp_path, result, shown, {"drops": table()}, {"command": "run.py --out x", "seed": 0})
    html = page.read_text(encoding="utf-8")
    for part in ("Emotion in tiny", "The ratings are illustrative.", 'id="figure-rdms"', "&lt;Concepts&gt;",
                 "Mantel p ≤ 0.001", "drops.csv",
                 "run.py --out x"):  # fmt: skip
        assert part in html
    assert (tmp_path / "figures" / "rdms.png").stat().st_size > 1000
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "tables" / "drops.csv"), table())


def test_what_the_prompts_learnt_is_shown_with_n_and_interval():
    table = pd.DataFrame(
        {"emotion": ["joy", "joy", "fear"], "seed": [1, 3, 1], "test_accuracy": [0.9, 0.8, 0.5], "n_test": [20, 20, 10]}
    )
    ax = knowledge.tuned_accuracy(table).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["fear (n = 10)", "joy (n = 40)"]
    points = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert points == pytest.approx([0.5, 0.85])
    bars = [tuple(line.get_xdata()) for line in ax.lines if line.get_linewidth() == 1.5 and line.get_marker() != "o"]
    np.testing.assert_allclose(bars[:2], [wilson(5, 10), wilson(34, 40)])
