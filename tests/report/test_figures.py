from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from emotrace.labels import ANSWERS, EMOTIONS, EmotraceError
from emotrace.report import doses, figures, geometry, layers, replies, style
from emotrace.report.heat import heat


def texts(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


def test_accuracy_has_two_bars_per_method_and_one_per_emotion_and_method(report):
    above, below = replies.accuracy_bars(report).axes
    assert [bar.get_height() for bar in above.patches] == [
        report[part][m]["overall"]["value"] for m in report["accuracy"] for part in ("accuracy", "accuracy_fluent")
    ]
    assert len(below.patches) == 5 * 6
    assert texts(below.xaxis) == list(EMOTIONS)
    assert [t.splitlines()[0] for t in texts(above.xaxis)] == [
        "none",
        "prompt",
        "steer",
        "random_steer",
        "wrong_emotion",
    ]
    assert "n = 2,880" in texts(above.xaxis)[0]
    assert "highest of 3 draws" in texts(above.xaxis)[3]


def test_labels_of_many_methods_with_draws_stand_apart(report):
    for name in ("accuracy", "accuracy_fluent"):
        report[name] |= {"circuit": report[name]["steer"]}
        report[name] |= dict.fromkeys(("random_circuit", "wrong_emotion"), report[name]["random_steer"])
    figure = replies.accuracy_bars(report)
    figure.canvas.draw()
    labels = [t for t in figure.axes[0].get_xticklabels() if t.get_text()]
    assert len(labels) == 7
    assert sum("highest of\n3 draws" in t.get_text() for t in labels) == 3
    boxes = sorted((t.get_window_extent() for t in labels), key=lambda b: b.x0)
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_accuracy_bars_stand_at_the_values_of_their_emotion(report):
    below = replies.accuracy_bars(report).axes[1]
    steer = sorted(below.patches[12:18], key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in steer] == [
        report["accuracy"]["steer"]["by_emotion"][e]["value"] for e in EMOTIONS
    ]


def test_accuracy_without_fluency_has_one_bar_per_method(report):
    del report["accuracy_fluent"]
    assert len(replies.accuracy_bars(report).axes[0].patches) == 5


def test_accuracy_shows_every_draw_and_the_chance_line(report):
    above = replies.accuracy_bars(report).axes[0]
    dots = [line for line in above.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert sorted(map(len, (d.get_ydata() for d in dots))) == [3, 3, 3, 3]
    assert any(np.allclose(line.get_ydata(), 1 / 6) for line in above.lines)


def test_the_unedited_model_has_no_whiskers(report):
    """Its replies are the same whatever is aimed at."""
    for ax, per_method in zip(replies.accuracy_bars(report).axes, (2, len(EMOTIONS)), strict=True):
        ends = [line for line in ax.lines if line.get_marker() == "_"]
        assert len(ends) == (len(report["accuracy"]) - 1) * per_method


def test_accuracy_title_states_method_controls_and_chance(report):
    claim = style.claim(replies.accuracy_bars(report))
    assert claim.startswith("steer: 93 % of replies")
    assert "best control 15 %, chance 17 %" in claim


def test_accuracy_of_nothing_judged_is_drawn_without_a_bar(report):
    empty = {"value": None, "n": 0, "n_unjudged": 9, "ci95": [None, None], "worst_case": 0.0}
    report["accuracy"]["steer"]["overall"] = empty
    assert replies.accuracy_bars(report).axes[0].patches[4].get_height() == 0


def test_confusion_shows_shares_of_rows(report):
    report["confusion"] = {"steer": {"anger": {"anger": 3, "disgust": 1}, "fear": {"fear": 2}}}
    figure = replies.confusion(report)
    panel = figure.axes[0]
    assert texts(panel.xaxis) == list(ANSWERS)
    assert texts(panel.yaxis) == ["anger", "fear"]
    shown = np.asarray(panel.images[0].get_array())
    assert shown[0, 0] == 0.75
    assert shown[0, 5] == 0.25
    assert shown[1, 3] == 1.0
    assert "anger as disgust (25 % of its 4 replies)" in style.claim(figure)


def test_no_matrix_stands_alone_and_what_is_left_over_holds_the_scale(report):
    for n in range(1, 12):
        report["confusion"] = {f"m{i}": {"fear": {"fear": 1}} for i in range(n)}
        if n in (2, 5, 7):
            panels = [ax for ax in replies.confusion(report).axes if ax.images]
            assert len(panels) == n
        across = replies._across(n)
        assert n <= across or n % across != 1, n


def test_confusion_has_a_column_for_unjudged_only_where_there_are_any(report):
    assert "unjudged" not in texts(replies.confusion(report).axes[0].xaxis)
    report["confusion"]["steer"]["fear"]["unjudged"] = 2
    assert texts(replies.confusion(report).axes[0].xaxis)[-1] == "unjudged"


def solid(ax, n=6):
    return [line for line in ax.lines if len(line.get_xdata()) == n and line.get_linestyle() == "-"]


def test_dose_curve_has_a_panel_per_range_and_a_star_at_the_chosen_point(report):
    figure = doses.dose_curve(report)
    chosen = next(p for p in report["sweep"] if p["layers"] == [2, 3, 4] and p["dose"] == 1.0)
    above, below = ([ax for ax in figure.axes if ax.get_yscale() == scale] for scale in ("linear", "log"))
    names = [ax.get_title(loc="left").split(" (")[0] for ax in above]
    assert names == ["layers 0–5", "layers 1–3", "layers 2–4", "layers 3–5"]
    for panels, name in ((above, "accuracy_fluent"), (below, "perplexity")):
        assert [len(solid(ax)) for ax in panels] == [1] * 4
        assert len({ax.get_ylim() for ax in panels}) == 1
        stars = {i: line.get_ydata()[0] for i, ax in enumerate(panels) for line in ax.lines if line.get_marker() == "*"}
        assert stars == {2: chosen[name]}
    assert texts(below[-1].xaxis) == ["0.25", "0.5", "1", "1.5", "2", "3"]


def test_dose_curve_shows_the_chosen_positions_and_the_layer_ranges_that_reach_most(report):
    others = [{**p, "positions": "last", "layers": [9], "accuracy_fluent": 1.0} for p in report["sweep"]]
    weak = [{**p, "layers": [10 + i], "ci95": [0, 1]} for i in range(5) for p in report["sweep"][:6]]
    report["sweep"] = [{**p, "positions": "steer"} for p in report["sweep"] + weak] + others
    report["chosen"]["positions"] = "steer"
    above = [ax for ax in doses.dose_curve(report).axes if ax.get_yscale() == "linear" and ax.axison]
    assert len(above) == doses.MOST
    assert max(max(line.get_ydata()) for ax in above for line in solid(ax)) < 1
    assert [line for ax in above for line in ax.lines if line.get_marker() == "*"]


def test_dose_curve_without_perplexity_or_choice_has_one_panel_and_no_star(report):
    for point in report["sweep"]:
        del point["perplexity"]
    del report["chosen"]
    figure = doses.dose_curve(report)
    assert len(figure.axes) == 4
    assert not [line for ax in figure.axes for line in ax.lines if line.get_marker() == "*"]
    assert style.claim(figure).startswith("Highest: layers 2–4 at dose 1")


def test_similarity_is_the_cosine_in_the_order_of_emotions_and_sublayers(dirs):
    first, second, below, _ = geometry.similarity_maps(dirs, layer=4).axes
    mid = dirs.sel(layer=4, sublayer="resid_mid", emotion=list(EMOTIONS)).values
    assert np.allclose(np.asarray(first.images[0].get_array()), mid @ mid.T, atol=1e-5)
    assert texts(first.yaxis) == list(EMOTIONS)
    assert second.get_title(loc="left").startswith("resid_post, layer 4 (n = 96 groups)")
    assert texts(below.xaxis)[:4] == ["attn0", "mlp0", "attn1", "mlp1"]
    assert below.images[0].get_array().shape == (12, 12)


def test_similarity_refuses_a_layer_that_is_not_there(dirs):
    with pytest.raises(EmotraceError, match="0–5"):
        geometry.similarity_maps(dirs, layer=9)


def test_chosen_layer_prefers_the_named_one_then_the_middle_of_the_edited():
    assert geometry.chosen_layer(range(6), {"layer": 2, "layers": [4, 5]}) == 2
    assert geometry.chosen_layer(range(6), {"layers": [3, 4, 5]}) == 4
    assert geometry.chosen_layer(range(6), {"layers": [40]}) == 3


def test_agnosticism_draws_accuracy_of_every_factor_and_the_null(found):
    figure = layers.agnosticism(found)
    top = figure.axes[0]
    curve = next(line for line in top.lines if line.get_marker() == "o" and len(line.get_xdata()) == 6)
    assert np.allclose(curve.get_ydata(), found["accuracy"].sel(factor="theme", sublayer="resid_mid"))
    null = top.collections[0].get_paths()[0].vertices[:, 1].max()
    assert null == pytest.approx(float(found["null_max"].sel(factor="theme").max()))
    assert "Leave one valence out (3 levels, n = 96 groups)" in figure.axes[1].get_title(loc="left")


def test_saturated_accuracy_is_shown_from_just_below_it(found):
    high = found.assign({v: found[v] * 0 + 1 for v in ("accuracy", "accuracy_by_level")})
    high["accuracy_ci"] = found["accuracy_ci"] * 0 + 0.97
    figure = layers.agnosticism(high)
    top = figure.axes[0]
    assert 0.9 < top.get_ylim()[0] < 0.97
    assert "shuffled labels reach at most" in top.texts[0].get_text()
    assert layers.agnosticism(found).axes[0].get_ylim()[0] == 0


def test_agnosticism_says_what_the_dataset_lacks(found):
    with pytest.raises(EmotraceError, match="cosine_ci, null_max"):
        layers.agnosticism(found.drop_vars(["null_max", "cosine_ci"]))


def test_layer_profile_has_a_panel_for_what_there_is(report, dirs, found):
    assert len(layers.layer_profile(dirs).axes) == 1
    assert len(layers.layer_profile(dirs, found).axes) == 2
    assert len(layers.layer_profile(dirs, found, report["layer_profile"]).axes) == 3


def test_layer_profile_divides_the_norm_by_the_length_of_an_activation(report, dirs):
    relative = layers.layer_profile(dirs, profile=report["layer_profile"]).axes[1].lines[1].get_ydata()
    expected = dirs["norm"].sel(sublayer="resid_post").mean("emotion").values / ((0.5 + 0.3 * np.arange(6)) * 4.0)
    assert np.allclose(relative, expected)


def test_layer_profile_needs_norms(dirs):
    with pytest.raises(EmotraceError, match="norm"):
        layers.layer_profile(dirs.drop_vars("norm"))


def test_one_sublayer_without_its_dim_is_enough(dirs, found):
    one, part = dirs.sel(sublayer="resid_post"), found.sel(sublayer="resid_post")
    assert texts(geometry.similarity_maps(one).axes[1].xaxis)[:2] == ["mlp0", "mlp1"]
    curve = next(line for line in layers.agnosticism(part).axes[0].lines if len(line.get_xdata()) == 6)
    assert np.allclose(curve.get_ydata(), part["accuracy"].sel(factor="theme"))
    norm = layers.layer_profile(one, part).axes[0].lines[0].get_ydata()
    assert np.allclose(norm, one["norm"].mean("emotion"))


def test_each_figure_says_what_it_needs(report):
    del report["accuracy"], report["sweep"], report["confusion"]
    for draw, name in (
        (replies.accuracy_bars, "accuracy"),
        (doses.dose_curve, "sweep"),
        (replies.confusion, "confusion"),
    ):
        with pytest.raises(EmotraceError, match=f"needs '{name}'"):
            draw(report)


def test_no_text_leaves_the_picture_and_tick_labels_do_not_overlap(report, dirs, found):
    for shown in figures.draw(report, dirs, found):
        figure = shown.figure
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        for ax in figure.axes:
            for label in (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label):
                box = label.get_window_extent()
                if label.get_text():
                    assert box.x0 >= -1, (shown.name, label.get_text())
                    assert box.x1 <= width + 1, (shown.name, label.get_text())
                    assert box.y0 >= -1, (shown.name, label.get_text())
                    assert box.y1 <= height + 1, (shown.name, label.get_text())
            flat = [t for t in ax.get_xticklabels() if t.get_text() and t.get_rotation() == 0 and t.get_visible()]
            boxes = sorted((t.get_window_extent() for t in flat), key=lambda b: b.x0)
            assert all(a.x1 <= b.x0 for a, b in pairwise(boxes)), shown.name
        assert figure._suptitle.get_window_extent().x1 <= width, shown.name


def test_save_writes_every_format_and_refuses_other_endings(report, tmp_path):
    figure = replies.confusion(report)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for ending, start in starts.items():
        path = figures.save_figure(figure, tmp_path / "a" / f"b.{ending}")
        assert path.read_bytes().startswith(start)
    assert int.from_bytes((tmp_path / "a" / "b.png").read_bytes()[16:20], "big") == 1350
    assert b"<text" not in (tmp_path / "a" / "b.svg").read_bytes()  # drawn: no font is needed
    assert sorted(p.suffix[1:] for p in (tmp_path / "a").iterdir()) == sorted(starts)
    with pytest.raises(EmotraceError, match=r"\.png, \.svg, \.pdf"):
        figures.save_figure(figure, tmp_path / "b.jpg")


def test_percent_never_rounds_to_certainty():
    assert [style.percent(x) for x in (0.9999, 0.001, 1.0, 0.0, None)] == ["100.0 %", "0.1 %", "100 %", "0 %", "–"]


def test_numbers_on_a_heat_map_are_read_on_their_cell():
    """White on dark ends of any map, dark in its light middle, and where there is no number."""
    figure = style.canvas(2, "Claim")
    ax = figure.subplots()
    heat(ax, [[-1.0, 0.0, 1.0, np.nan]], cmap=style.SIGNED, vmin=-1, vmax=1, text=str)
    assert [t.get_color() for t in ax.texts] == ["white", style.INK, "white", style.INK]
    ax = figure.add_subplot()
    heat(ax, [[0.0, 100.0]], text=str)
    assert [t.get_color() for t in ax.texts] == [style.INK, "white"]


def test_names_beside_near_points_do_not_overlap_and_stay_inside():
    figure = style.canvas(4, "points")
    ax = style.axes(figure.subplots())
    points = [(f"a long name {i}", 0.01 * (i % 3), 0.005 * (i // 3)) for i in range(9)]
    ax.plot([x for _, x, _ in points], [y for _, _, y in points], "o")
    ax.plot([1, -1], [1, -1])
    style.names(figure, ax, points)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == [name for name, *_ in points]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)
