"""What a report shows of circuits: figures at the values of their data, tables, page, and what is refused."""

import html
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emotrace import report as room
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.report import (
    attention,
    circuits,
    comparison,
    components,
    curves,
    effects,
    figures,
    numbers,
    overlap,
    page,
    style,
    tables,
)
from emotrace.report.parts import CircuitParts
from tests.report import inner
from tests.report.inner import CURVES, make_parts
from tests.report.test_page import parsed

PUBLISHED = {"circuit": 0.9965, "prompt": 0.9896, "steer": 0.9122}


@pytest.fixture(scope="module")
def parts():
    return make_parts()


@pytest.fixture
def compared():
    """steer is better at a small KL, circuit where both are best."""
    points = [
        {
            "method": m,
            name: d,
            "kl": kl,
            "accuracy": a + 0.02,
            "accuracy_fluent": a,
            "ci95": [a - 0.05, a + 0.03],
            "n": 288,
        }
        for m, name, rows in (
            ("steer", "dose", ((0.1, 0.1, 0.5), (0.2, 0.2, 0.8), (0.4, 0.8, 0.4))),
            ("circuit", "lambda", ((0.5, 0.1, 0.3), (1.0, 0.4, 0.9), (2.0, 2.0, 0.95))),
        )
        for d, kl, a in rows
    ]
    tests = [
        {"a": "circuit", "b": "prompt", "score": "accuracy_fluent", "difference": 0.012, "ci95": [-0.004, 0.03], "p": 0.21,
         "n_skeletons": 160},
        {"a": "circuit", "b": "steer", "score": "accuracy_fluent", "value": 0.08, "ci95": [0.05, 0.11], "p": 0.0001,
         "n_clusters": 159},
    ]  # fmt: skip
    return {
        "comparison": points,
        "paired": tests,
        "accuracy_fluent": {"prompt": {"overall": {"value": 0.96}}},
        "published": PUBLISHED,
    }


def lines(ax, marker):
    return [np.asarray(line.get_ydata(), dtype=float) for line in ax.lines if line.get_marker() == marker]


def in_view(axis):
    low, high = sorted(axis.get_view_interval())
    return [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]


def visible(figure):
    return [ax for ax in figure.axes if ax.get_visible() and ax.axison]


# -- the figures stand at their values ------------------------------------------------------------------------------


def test_circuit_map_outlines_the_heads_of_the_circuit_and_no_others(parts):
    figure = circuits.circuit_map(CircuitParts.of(parts))
    grids = [ax for ax in visible(figure) if ax.images]
    assert [ax.get_title(loc="left") for ax in grids] == [f"{e}: 12 heads" for e in EMOTIONS]
    for ax, emotion in zip(grids, EMOTIONS, strict=True):
        shown = np.asarray(ax.images[0].get_array())
        assert np.allclose(shown, parts["heads"]["contrast"].sel(emotion=emotion).values)
        boxes = {tuple(np.round(p.get_extents().min + 0.5).astype(int)) for p in ax.collections[0].get_paths()}
        mask = parts["circuit"].mask("head").sel(emotion=emotion)
        assert boxes == {(int(h), int(layer)) for layer, h in np.argwhere(mask.values)}


def test_circuit_map_bars_are_the_summed_scores_and_behind_them_all_positive_ones(parts):
    figure = circuits.circuit_map(CircuitParts.of(parts))
    ax = next(a for a in visible(figure) if a.get_title(loc="left") == "120 neurons")
    assert {t.get_text() for t in ax.texts} == {"20"}
    table = parts["circuit"].components.query("emotion == 'anger' and kind == 'neuron'")
    behind, front = np.split(np.array([bar.get_width() for bar in ax.patches]), 2)
    assert np.allclose(front, table.groupby("layer")["score"].sum())
    assert np.allclose(behind, parts["neurons"]["contrast"].sel(emotion="anger").clip(min=0).sum("unit"))


def test_circuit_map_shows_the_scores_that_the_circuit_was_ranked_by(parts):
    ranked = replace(parts["circuit"], meta={"by": "mean"})
    figure = circuits.circuit_map(CircuitParts(circuit=ranked, heads=parts["heads"]))
    grid = next(ax for ax in visible(figure) if ax.images)
    assert np.allclose(np.asarray(grid.images[0].get_array()), parts["heads"]["mean"].sel(emotion="anger"))


def test_circuit_map_without_contributions_shows_the_scores_of_the_circuit_alone(parts):
    figure = circuits.circuit_map(CircuitParts(circuit=parts["circuit"]))
    grid = np.ma.filled(next(ax for ax in visible(figure) if ax.images).images[0].get_array(), np.nan)
    mask = parts["circuit"].mask("head").sel(emotion="anger").values
    assert np.array_equal(np.isfinite(grid), mask)
    assert np.allclose(grid[mask], parts["heads"]["contrast"].sel(emotion="anger").values[mask])


def test_circuit_map_of_heads_alone_and_of_a_random_circuit(parts):
    alone = circuits.circuit_map(CircuitParts(heads=parts["heads"]))
    assert [ax.get_title(loc="left") for ax in visible(alone)[:6]] == list(EMOTIONS)
    assert "circuit" not in style.claim(alone)
    drawn = parts["circuit"].random(seed=1)
    assert (
        style.claim(circuits.circuit_map(CircuitParts(circuit=drawn))) == "A circuit per emotion: 12 heads; 120 neurons"
    )


def test_circuit_map_claims_the_shortest_run_of_layers_with_half_of_the_contribution(parts):
    claim = style.claim(circuits.circuit_map(CircuitParts.of(parts)))
    table = parts["circuit"].components.query("kind == 'head' and score > 0")
    mass = table.groupby("layer")["score"].sum().reindex(range(6), fill_value=0).values
    runs = [
        (j - i, -mass[i:j].sum(), i, j) for i in range(6) for j in range(i + 1, 7) if mass[i:j].sum() >= mass.sum() / 2
    ]
    _, _, start, stop = min(runs)
    assert f"12 heads, half of their contribution from layers {start}–{stop - 1};" in claim


def test_overlap_shows_jaccard_and_states_mean_and_sd(parts):
    figure = overlap.circuit_overlap(parts["circuit"])
    found = parts["circuit"].overlap()
    for ax, kind in zip(figure.axes, ("neuron", "head"), strict=False):
        assert np.allclose(np.asarray(ax.images[0].get_array()), found["jaccard"].sel(kind=kind))
        numbers_of = f"{kind}s {float(found['mean'].sel(kind=kind)):.3f} ± {float(found['sd'].sel(kind=kind)):.3f}"
        assert numbers_of in style.claim(figure)


def test_overlap_by_chance_is_what_random_circuits_have(parts):
    means = [float(parts["circuit"].random(seed=i).overlap()["mean"].sel(kind="neuron")) for i in range(20)]
    assert overlap.by_chance(parts["circuit"], "neuron") == pytest.approx(np.mean(means), rel=0.2)


def test_overlap_of_one_emotion_is_refused_and_left_out(parts):
    one = parts["circuit"]
    table = one.components.query("emotion == 'anger'")
    alone = replace(one, components=table, payload=one.payload.sel(emotion=["anger"]))
    with pytest.raises(EmotraceError, match="two emotions or more"):
        overlap.circuit_overlap(alone)
    assert [s.name for s in figures.draw({}, circuits={"circuit": alone})] == ["circuit"]


def test_curves_have_a_panel_each_and_one_scale_for_what_is_ablated(parts):
    panels = curves.effect_curves(parts["curves"]).axes
    assert [ax.get_title(loc="left").split(" (")[0] for ax in panels] == list(CURVES)
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert panels[2].get_ylim() == panels[3].get_ylim()
    curve = parts["curves"]["heads ablated"]
    ax = panels[1]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    for i, emotion in enumerate(EMOTIONS):
        drawn = lines(ax, style.MARKERS[i])
        assert any(np.allclose(d, curve["delta"].sel(emotion=emotion, which="top")) for d in drawn if len(d) == 4)
    assert any(
        np.allclose(d, curve["delta"].sel(which="random").mean("emotion")) for d in lines(ax, "D") if len(d) == 4
    )
    assert any(
        np.allclose(d, curve["delta"].sel(which="top").mean("emotion")) for d in lines(ax, "None") if len(d) == 4
    )
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(float(curve["random"].max()))
    assert band.min() == pytest.approx(float(curve["random"].min()))
    whiskers = [c for c in lines(ax, "_") if len(c) == 2]
    assert any(
        np.allclose(w, curve[["ci_low", "ci_high"]].sel(emotion="fear", which="top", k=8).to_array()) for w in whiskers
    )


def test_curves_claim_the_largest_k_against_random(parts):
    curve = parts["curves"]["neurons ablated"]
    best, random = (float(curve["delta"].sel(which=w, k=16).mean()) for w in ("top", "random"))
    claim = style.claim(curves.effect_curves({"neurons ablated": curve}))
    assert claim.endswith(f"16 neurons ablated {style.signed(best)} : {style.signed(random)}")
    assert "best components : random ones" in claim


def test_curves_without_random_sets_compare_with_the_lowest(parts):
    curve = parts["curves"]["heads ablated"].sel(which=["top", "low"]).drop_dims("draw")
    figure = curves.effect_curves({"heads ablated": curve})
    assert "the lowest ones" in style.claim(figure)
    assert "mean, random" not in [t.get_text() for t in figure.legends[0].get_texts()]


def test_influence_draws_the_exact_limit_and_every_dose(parts):
    found = parts["influence"]
    ax = effects.influence_profile(found).axes[3]
    assert ax.get_title(loc="left") == "fear (n = 480)"
    (attn,) = lines(ax, "o")
    assert np.allclose(attn, found["influence"].sel(emotion="fear", sublayer="attn_out"))
    finite = [line for line in lines(ax, "None") if len(line) == 6]
    assert len(finite) == 2 * 4
    assert np.allclose(finite[3], found["finite"].sel(emotion="fear", sublayer="attn_out", dose=0.7))
    assert effects.deviation(found)[0.7] == pytest.approx(0.15 * 0.49)


def test_influence_without_doses_says_nothing_of_them(parts):
    found = parts["influence"].drop_dims("dose")
    figure = effects.influence_profile(found)
    assert "dose" not in style.claim(figure)
    assert "finite" not in figure.caption
    assert not [line for line in lines(figure.axes[0], "None") if len(line) == 6]


def test_one_large_influence_makes_the_axis_logarithmic(parts):
    found = parts["influence"].copy(deep=True)
    found["influence"][0, 0, 0] = 20.0
    figure = effects.influence_profile(found)
    ax = figure.axes[0]
    assert ax.get_yscale() == "symlog"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "1", "3", "10"]
    assert "logarithmic" in figure.caption
    assert "logarithmic" not in effects.influence_profile(parts["influence"]).caption


def test_comparison_draws_fluent_accuracy_against_kl_and_prompt_across(compared):
    figure = comparison.equal_kl(compared)
    (ax,) = figure.axes
    steer, circuit = (line for line in ax.lines if line.get_marker() in ("o", "s"))
    assert list(steer.get_xdata()) == [0.1, 0.2, 0.8]
    assert list(steer.get_ydata()) == [0.5, 0.8, 0.4]
    assert list(circuit.get_ydata()) == [0.3, 0.9, 0.95]
    assert any(np.allclose(line.get_ydata(), 0.96) for line in ax.lines)
    assert {t.get_text() for t in ax.texts} == {"0.1", "0.2", "0.4", "λ 0.5", "λ 1", "λ 2"}
    # both reach 0.1 to 0.8; the best there is the circuit at 0.8, a quarter of the way from 0.4 to 2
    assert comparison.gap(comparison.by_method(compared["comparison"])) == pytest.approx((0.8, 0.9125, 0.4))
    assert "equal KL of 0.8 nats: circuit 91 %, steer 40 %" in style.claim(figure)


def test_doses_beside_close_points_do_not_collide(compared):
    compared["comparison"] = [
        {"method": m, "dose": 0.05 + i / 100, "kl": 0.1 * 1.1**i, "accuracy_fluent": 0.5 + i / 100 + j / 50, "accuracy": 0.9,
         "ci95": [0.5, 0.9], "n": 9}
        for j, m in enumerate(("steer", "circuit")) for i in range(20)
    ]  # fmt: skip
    figure = comparison.equal_kl(compared)
    boxes = [t.get_window_extent() for t in figure.axes[0].texts]
    assert 3 < len(boxes) < 40
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_comparison_without_common_kl_names_the_best_of_each(compared):
    compared["comparison"] = [p for p in compared["comparison"] if (p["method"] == "steer") == (p["kl"] < 0.3)]
    assert style.claim(comparison.equal_kl(compared)).startswith(
        "Best, read as asked and fluent: steer 80 % at 0.2 nats, circ"
    )


def test_comparison_leaves_out_points_without_kl_and_puts_prompt_among_the_points(compared):
    compared["comparison"] += [
        {"method": "steer", "dose": 9, "kl": None, "accuracy": 0.0, "accuracy_fluent": 0.0},
        {"method": "prompt", "kl": 0.5, "accuracy": 0.97, "accuracy_fluent": 0.91, "ci95": [0.9, 0.92], "n": 288},
    ]
    ax = comparison.equal_kl(compared).axes[0]
    assert not any(np.allclose(line.get_ydata(), 0.96) for line in ax.lines if len(line.get_ydata()) == 2)
    assert "9" not in {t.get_text() for t in ax.texts}


def test_attention_names_what_the_last_token_looks_at(parts):
    pattern = parts["attention"][0]
    figure = attention.attention_patterns([pattern])
    whole, last = figure.axes[:2]
    assert np.allclose(np.asarray(whole.images[0].get_array()), pattern.values)
    order = np.argsort(-pattern.values[-1])[: attention.LOOKED_AT]
    assert np.allclose([bar.get_width() for bar in last.patches], pattern.values[-1][order])
    assert [int(t.get_text().split()[-1]) for t in last.get_yticklabels()] == order.tolist()


def test_a_head_of_several_emotions_is_drawn_once(parts):
    one, other = parts["attention"][:2]
    again = [one.assign_attrs(emotion=e) for e in ("fear", "surprise")]
    found = attention.distinct([one, other, *again])
    assert [attention.title(p) for p in found] == ["3 emotions: layer 3, head 0", "sadness: layer 3, head 1"]
    assert attention.title(attention.distinct([one, again[0]])[0]) == "anger, fear: layer 3, head 0"
    assert len(attention.distinct([one, one.assign_attrs(prompt="another")])) == 2
    assert one.attrs["emotion"] == "anger"


def test_texts_of_tokens_are_no_mathematics_and_never_lack_a_glyph():
    assert style.printed(" and $x$") == r"␣and␣\$x\$"
    assert style.printed("日本\n") == "□□↵"
    assert style.printed("a" * 30, 12) == "a" * 11 + "…"


@pytest.mark.parametrize(
    "size",
    [{}, {"layers": 28, "heads": 24, "units": 300, "per_head": 6, "per_neuron": 14, "length": 92}],
    ids=["6x8", "28x24"],
)
def test_no_text_leaves_the_picture_and_tick_labels_do_not_overlap(compared, size):
    for shown in figures.draw(compared, circuits=make_parts(**size)):
        figure = shown.figure
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        for ax in visible(figure):
            across, down = in_view(ax.xaxis), in_view(ax.yaxis)
            for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label, *across, *down, *ax.texts):
                box = text.get_window_extent()
                if text.get_text() and text.get_visible():
                    assert box.x0 >= -1, (shown.name, text.get_text())
                    assert box.x1 <= width + 1, (shown.name, text.get_text())
                    assert box.y0 >= -1, (shown.name, text.get_text())
                    assert box.y1 <= height + 1, (shown.name, text.get_text())
            for labels, low, high in ((across, "x0", "x1"), (down, "y0", "y1")):
                flat = [t for t in labels if t.get_text() and t.get_rotation() == 0 and t.get_visible()]
                boxes = sorted((t.get_window_extent() for t in flat), key=lambda b, low=low: getattr(b, low))
                assert all(getattr(a, high) <= getattr(b, low) + 1 for a, b in pairwise(boxes)), shown.name
        titles = [ax._left_title.get_window_extent() for ax in visible(figure) if ax.get_title(loc="left")]
        for a, b in pairwise(titles):
            assert a.x1 <= b.x0 or abs(a.y0 - b.y0) > 5, shown.name
        suptitle = figure._suptitle.get_window_extent()
        assert suptitle.x1 <= width, shown.name
        assert all(t.y1 <= suptitle.y0 + 1 for t in titles), shown.name


# -- tables ----------------------------------------------------------------------------------------------------------


def test_csv_files_hold_the_numbers_unrounded(parts, compared, tmp_path):
    del compared["accuracy_fluent"]
    frames = tables.frames(compared, parts=CircuitParts.of(parts))
    assert list(frames) == [
        "comparison", "paired", "circuit", "heads", "neurons", "influence", "curves", "overlap", "top_tokens", "top_prompts",
        "reply_tokens",
    ]  # fmt: skip
    room.publish(tmp_path, {}, [], frames, {})
    tmp_path /= "tables"
    heads = pd.read_csv(tmp_path / "heads.csv")
    assert len(heads) == 6 * 6 * 8
    for row in heads.sample(20, random_state=0).to_dict("records"):
        cell = parts["heads"].sel(emotion=row["emotion"], layer=row["layer"], head=row["head"])
        assert (row["contrast"], row["mean"]) == (float(cell["contrast"]), float(cell["mean"]))
    assert (heads.groupby(["emotion", "layer"])["contrast"].diff().dropna() <= 0).all()
    neurons = pd.read_csv(tmp_path / "neurons.csv")
    assert len(neurons) == 6 * 6 * components.KEPT
    best = parts["circuit"].members("fear", "neuron", 3)
    assert neurons.query("emotion == 'fear' and layer == 3")["unit"].tolist() == best
    comparison_table = pd.read_csv(tmp_path / "comparison.csv")
    assert comparison_table["kl"].tolist() == [p["kl"] for p in compared["comparison"]]
    assert pd.read_csv(tmp_path / "paired.csv")["p"].tolist() == [0.21, 0.0001]


def test_curves_and_influence_tables_have_a_row_per_cell(parts):
    table = components.curves(parts["curves"])
    cells = sum(6 * (3 + 5) * c.sizes["k"] for c in parts["curves"].values())
    assert len(table) == cells
    row = table.query("curve == 'heads added' and emotion == 'fear' and which == 'random' and draw == 2 and k == 4")
    assert row["delta"].item() == float(parts["curves"]["heads added"]["random"].sel(emotion="fear", draw=2, k=4))
    influence = components.influence(parts["influence"])
    assert len(influence) == 6 * 6 * 2
    cell = influence.query("emotion == 'anger' and layer == 4 and sublayer == 'mlp_out'").iloc[0]
    found = parts["influence"].sel(emotion="anger", layer=4, sublayer="mlp_out")
    assert cell["influence"] == float(found["influence"])
    assert cell["finite_0.5"] == float(found["finite"].sel(dose=0.5))
    assert cell["sigma"] == 0.5


def test_overlap_table_ends_with_mean_sd_and_chance(parts):
    table = components.overlap(parts["circuit"])
    assert len(table) == 2 * 36 + 2
    pooled = table[table["emotion"] == "all"].set_index("kind")
    assert pooled.loc["head", "jaccard"] == float(parts["circuit"].overlap()["mean"].sel(kind="head"))
    assert pooled.loc["head", "by_chance"] == overlap.by_chance(parts["circuit"], "head")


def test_tokens_of_many_layers_are_thinned_out_and_those_of_resid_post_shown():
    shown = components.token_rows(inner.tokens(28))
    assert (shown["shown"], shown["layers"]) == (components.LAYERS_SHOWN, 28)
    assert [shown["rows"][0]["layer"], shown["rows"][-1]["layer"]] == [0, 27]
    assert shown["rows"][0]["cells"][0] == ["␣angry0", "␣fury", "<b>", "rage", "␣&amp;", "↵"]
    both = pd.concat([inner.tokens(6).assign(sublayer=s, token=s) for s in ("resid_mid", "resid_post")])
    assert set(components.token_rows(both)["rows"][2]["cells"][3]) == {"resid_post"}


def test_prompts_of_top_neurons_are_few_and_short(parts):
    shown = components.prompt_rows(parts["top_prompts"].sample(frac=1, random_state=1))
    assert len(shown) == 6 * components.NEURONS_SHOWN
    assert all([p["activation"] for p in unit["prompts"]] == ["3", "1.5", "1"] for unit in shown)
    assert all(len(p["text"]) <= components.LONGEST for unit in shown for p in unit["prompts"])


def test_reply_tokens_of_top_neurons_stand_amid_their_neighbours(parts, compared):
    shown = components.token_lines(parts["reply_tokens"])
    assert [(u["emotion"], u["unit"], u["writes"]) for u in shown[:2]] == [("anger", 0, "for"), ("anger", 7, "against")]
    first = shown[0]["prompts"][0]
    assert first == {
        "before": "so <i>the</i> ", "token": "↵", "after": " smithy.", "key": "work_00", "at": "4", "activation": "4"
    }  # fmt: skip
    text = page.render({"reply_tokens": {"of": "5 accepted replies"}}, page=page.Page(circuits=CircuitParts.of(parts)))
    assert "reply tokens of 5 accepted replies" in text
    assert "so &lt;i&gt;the&lt;/i&gt; <b>↵</b> smithy." in text
    assert "work_00, token 4 of the reply" in text


# -- page ------------------------------------------------------------------------------------------------------------


def test_a_run_with_circuits_shows_everything(compared, parts, tmp_path):
    path = room.write(tmp_path, compared, circuits=parts)
    text = path.read_text(encoding="utf-8")
    parser = parsed(text)
    names = [name.removeprefix("figure-") for name in parser.ids if name.startswith("figure-")]
    assert names == [
        "comparison",
        "circuit",
        "overlap",
        "curves",
        "influence",
        "attention",
    ]
    assert len(parser.images) == len(names)
    assert all((tmp_path / "figures" / f"{name}.svg").is_file() for name in names)
    for section in ("published", "paired", "tokens", "prompts", "reply-tokens"):
        assert f'id="{section}"' in text
    assert "<i>a</i>" not in text
    assert "<code>&lt;b&gt;</code>" in text
    assert html.escape("␣&amp;") in text


def test_headlines_put_circuit_beside_prompt_and_steer(report, compared):
    report["accuracy"]["circuit"] = report["accuracy"]["prompt"]
    assert [h["name"] for h in numbers.headlines(report)][:3] == ["prompt", "steer", "circuit"]
    text = numbers.published(compared)
    assert "Llama-3.2-3B: prompt 98.96 %, steer 91.22 %, circuit 99.65 %" in text
    assert "judge was told the asked emotion" in text
    assert "not comparable" in text
    assert 'id="published"' not in page.render(report)
    assert 'id="published"' in page.render(report | {"published": PUBLISHED})


def test_paired_tests_state_points_interval_p_and_skeletons(compared):
    first, second = numbers.paired(compared)
    assert first == {
        "a": "circuit", "b": "prompt", "score": "accuracy fluent", "difference": "+1.2 points", "interval": "[−0.4, 3.0]",
        "p": "0.21", "holm": "", "n": "160",
    }  # fmt: skip
    assert (second["difference"], second["p"], second["n"]) == ("+8.0 points", "0.0001", "159")


@pytest.mark.parametrize(
    "present",
    ["circuit", "influence", "curves", "heads", "neurons", "tokens", "attention", "top_prompts", "reply_tokens"],
)
def test_any_part_may_stand_alone(parts, present, tmp_path):
    alone = {present: parts[present]}
    path = room.write(tmp_path, {}, circuits=alone)
    parsed(path.read_text(encoding="utf-8"))
    drawn = {p.stem for p in (tmp_path / "figures").glob("*.png")}
    expected = {
        "circuit": {"circuit", "overlap"},
        "heads": {"circuit"},
        "neurons": set(),
        "tokens": set(),
        "top_prompts": set(),
        "reply_tokens": set(),
    }
    assert drawn == expected.get(present, {present})


def test_a_model_without_neurons_or_without_heads_is_shown_as_far_as_it_goes(parts):
    for kind in ("head", "neuron"):
        only = replace(parts["circuit"], components=parts["circuit"].components.query("kind == @kind"))
        shown = {s.name: s for s in figures.draw({}, circuits={"circuit": only})}
        assert f"{kind}s" in style.claim(shown["circuit"].figure)
        assert len(shown["overlap"].figure.axes[0].images) == 1


# -- what is refused ---------------------------------------------------------------------------------------------


def test_unknown_and_unfit_parts_are_refused_before_anything_is_written(parts, tmp_path):
    bad = {
        "unknown part 'influences'": {"influences": parts["influence"]},
        r"circuits\['heads'\] is a Dataset with 'contrast', not DataArray": {"heads": parts["heads"]["mean"]},
        r"circuits\['neurons'\]: 'contrast' has the dims label, layer, unit": {"neurons": parts["heads"]},
        r"circuits\['curves'\]\['x'\] is a Dataset with 'delta'": {"curves": {"x": xr.Dataset()}},
        r"lacks the column\(s\) layer, token": {"tokens": pd.DataFrame({"emotion": ["fear"], "rank": [0]})},
        "a pattern lacks head, layer": {"attention": [parts["attention"][0].drop_attrs()]},
        "is a Circuit, not dict": {"circuit": {"head": []}},
    }
    for message, given in bad.items():
        with pytest.raises(EmotraceError, match=message):
            room.write(tmp_path / "run", {}, circuits=given)
    assert not list(tmp_path.rglob("*.html"))


def test_parts_are_taken_as_mapping_or_as_they_are(parts):
    whole = CircuitParts.of(parts)
    assert CircuitParts.of(whole) is whole
    assert CircuitParts.of(None).circuit is None
    assert CircuitParts.of({"circuit": None, "curves": None}).curves == {}
