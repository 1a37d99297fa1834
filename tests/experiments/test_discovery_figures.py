"""Figures of a study of circuits show what they are given."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.experiments.studies import module

discovery = module("discovery_figures")


def row(node, effect, q, **spans):
    return {"node": node, "effect": effect, "q": q, **dict.fromkeys(discovery.SPANS, 0.0), **spans}


ROWS = [row("m0", 3.0, 0.001, changed=1.0, last=1.5), row("a1.h2", -1.0, 0.4, after=0.5, last=-1.5)]


def test_bars_stack_on_their_own_side_and_diamonds_are_filled_where_sure():
    figure = discovery.node_effects(ROWS, {"value": 4.0, "ci95": [3.0, 5.0]}, "emotion")
    assert figure.get_suptitle() == "Another emotion changes the metric by +4.0 [+3, +5]"
    ax: Any = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a1.h2", "m0"]
    ends = {(round(p.get_y() + p.get_height() / 2), p.get_x() + p.get_width()) for p in ax.patches}
    assert {(1, 2.5), (0, 0.5), (0, -1.5)} <= ends  # of m0: 1 + 1.5; of a1.h2: +0.5 and −1.5 apart
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [line.get_xdata()[0] for line in diamonds] == [-1.0, 3.0]
    assert [line.get_markerfacecolor() for line in diamonds] == ["white", discovery.INK]


@pytest.mark.parametrize(("ci", "said"), [([-1.0, 2.0], True), ([0.5, 2.0], False), ([-2.0, -0.5], False)])
def test_a_change_that_may_be_none_is_said_to_be(ci, said):
    title = discovery.node_effects(ROWS, {"value": 0.5, "ci95": ci}, "valence").get_suptitle()
    assert ("not to be told from none" in title) == said


def test_agreement_leaves_out_what_was_not_scored():
    found = {"emotion node": {"eap": 0.9, "eap (magnitudes)": 0.8, "random": 0.0}, "emotion edge": {"eap": 0.7}}
    ax: Any = discovery.agreement(found).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["random", "eap"]
    points = {line.get_label(): sorted(zip(*line.get_data(), strict=True)) for line in ax.lines[:2]}
    assert points == {"emotion node": [(0.0, 0), (0.9, 1)], "emotion edge": [(0.7, 1)]}


def test_curves_are_drawn_at_the_share_that_was_chosen_though_none_of_it_is_live():
    share = np.stack([np.stack([[0.1, 1.0], [0.0, 1.0]])] * 2)
    curve = xr.Dataset(
        {"faithfulness": (("order", "point"), [[0.0, 1.0]] * 2), "share": (("order", "axis", "point"), share)},
        coords={"order": ["signed", "absolute"], "axis": ["fixed", "realised"], "point": [0.1, 1.0]},
    )
    figure = discovery.faithfulness_curves({"emotion node eap": curve, "emotion edge magnitude": curve})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["nodes", "edges"]
    for ax in figure.axes:
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.1, 1.0])
