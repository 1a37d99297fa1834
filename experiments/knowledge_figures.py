"""Knowledge: figures of the study of emotion concepts: RDMs, selective neurons, masked accuracy, the link to people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.ticker import MaxNLocator
from scipy import stats

from emotrace.report import style
from emotrace.report.heat import heat, scale
from emotrace.report.style import FAINT, INK, Picture
from emotrace.rsa import square
from emotrace.stats import wilson
from emotrace.stats.permutation import p_said

SELECTIVE, RANDOM, UNMASKED = "#D55E00", "#777777", "#0072B2"
BINS: Final = 256
"""Most columns of a map of neurons; where there are more units, a column counts several."""
DRAWS: Final = 19
"""Random masks, at least, of which one in twenty would be beaten by chance."""


def tuned_accuracy(table: pd.DataFrame, part: str = "test") -> Picture:
    """Share of right answers of the soft prompts of each emotion, all seeds together, with Wilson's 95 % interval.

    Args:
        table: of `prompt_tuning.tune_all`.
        part: whose accuracy is shown.
    """
    right = table[f"{part}_accuracy"] * table[f"n_{part}"].astype(float)
    found: Any = pd.DataFrame({"emotion": table["emotion"], "right": right, "n": table[f"n_{part}"].astype(float)})
    found = found.groupby("emotion", sort=False).sum().assign(share=lambda d: d["right"] / d["n"]).sort_values("share")
    low = [wilson(r, n) for r, n in zip(found["right"], found["n"], strict=True)]
    above = sum(lo > 0.5 for lo, _ in low)
    figure = style.canvas(
        1.2 + 0.22 * len(found), f"For {above} of {len(found)} emotions the prompts answer better than chance",
        f"""Share of right answers on {part}, all seeds of an emotion together, with Wilson's 95 % interval. Half of the
        texts hold the emotion, so chance is 50 %.""",
    )  # fmt: skip
    ax = style.axes(figure.subplots(), "", f"right answers on {part}", "")
    for i, (share, (lo, hi)) in enumerate(zip(found["share"], low, strict=True)):
        ax.plot([lo, hi], [i, i], color=FAINT, linewidth=1.5)
        ax.plot([share], [i], marker="o", color=UNMASKED, markersize=5, linestyle="none")
    ax.axvline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    names = [f"{e} (n = {int(n)})" for e, n in zip(found.index, found["n"], strict=True)]
    ax.set_yticks(range(len(found)), names, fontsize=8.5)
    ax.set_xlim(min(0.35, *(lo - 0.02 for lo, _ in low)), 1.02)
    return figure


def rdm_maps(rdms: Mapping[str, xr.DataArray], fit: xr.Dataset, control: xr.Dataset, permutations: int) -> Picture:
    """One heat map per RDM, concepts in the same order in all; each has its own scale, from its least to its largest distance.

    Args:
        rdms: name → ``[pair]``, the model's and the human side.
        fit: of `rsa.compare`, of the two.
        control: of `rsa.text_control`: how much of it the words explain.
        permutations: that its Mantel p is of.
    """
    across = min(2, len(rdms))
    down = math.ceil(len(rdms) / across)
    r, explained, partial = float(fit["correlation"]), float(control["explained"]), float(control["partial"])
    mantel = p_said(float(fit["p_mantel"]), 1 / (1 + permutations))
    lo, hi = (style.signed(float(fit[name]), 3) for name in ("lo", "hi"))
    caption = f"""Left: 1 − cosine of the neurons that are active for each emotion, mean over seeds. Right: the human side. Their
        Pearson correlation is {style.signed(r, 3)} [{lo}, {hi}] (bootstrap over emotions and seeds), Mantel p {mantel}
        ({permutations:,} shuffles of the emotions). Of r² the words of the texts and the embeddings of the names give
        {f"{explained:.0%}" if explained > 0 else "nothing"}; with them held constant r is {style.signed(partial, 3)}."""
    figure = style.canvas(0.2 + 4.3 * down, f"Model and human side correlate at r = {style.signed(r)}", caption)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for ax in panels[len(rdms) :]:
        ax.set_axis_off()
    for ax, (name, rdm) in zip(panels, rdms.items(), strict=False):
        matrix = square(rdm)
        names = [str(c) for c in matrix[matrix.dims[-1]].values]
        values = np.array(matrix.values, dtype=float)
        np.fill_diagonal(values, np.nan)
        look: Any = {"cmap": style.DISTANCES, "interpolation": "nearest", "aspect": "equal"}
        image = heat(ax, values, names, names, turn=90, size=6.5, **look)
        style.titled(ax, name)
        scale(figure, image, ax=ax, shrink=0.75, aspect=25)
    return figure


def selective_counts(significant: xr.DataArray, level: float, rule: str, permutations: int) -> Picture:
    """How many neurons are selective for each attribute in each layer, as numbers on a heat map.

    Args:
        significant: bool ``[attribute, layer, unit]``.
        level: of the test.
        rule: of the false discovery rate, where the p are asymptotic.
        permutations: shuffles of the concepts; 0: the p are asymptotic.
    """
    counts = significant.sum("unit").transpose("attribute", "layer")
    names = [str(a) for a in counts["attribute"].values]
    layers = [int(i) for i in counts["layer"].values]
    values = counts.values
    total = values.sum(1)
    most = names[int(total.argmax())]
    claim = f"Neurons counted as selective: most for {most} ({int(total.max()):,} of {significant[0].size:,})"
    how = f"""τ is above the largest of all neurons in all but {level:g} of {permutations:,} shuffles of the emotions (family-wise
        error per attribute)."""
    if not permutations:
        how = f"""one-sided asymptotic p, FDR q < {level} over all neurons and attributes (rule: {rule}). That p takes pairs of
        emotions for independent, which they are not, so the counts are too high."""
    caption = f"""Neurons whose distances between emotions follow those of an attribute: Kendall's τ-b; {how} A neuron may be
        selective for several attributes."""
    claim = claim if total.max() else "No neuron is counted as selective for an attribute"
    figure = style.canvas(1.2 + 0.3 * len(names), claim, caption)
    ax = figure.subplots()
    rows = [f"{n} ({int(t):,})" for n, t in zip(names, total, strict=True)]
    image = heat(ax, values, [str(i) for i in layers], rows, text=lambda n: f"{int(n):,}", vmin=0)
    style.titled(ax, x="layer")
    scale(figure, image, ax=ax, shrink=0.7, ticks=MaxNLocator(integer=True))
    return figure


def top_neurons(masked: xr.DataArray) -> Picture:
    """Where the best neurons of each attribute lie: layers upwards, units to the right, darker where there are more.

    Args:
        masked: bool ``[attribute, layer, unit]``, all with the same number of neurons.
    """
    names = [str(a) for a in masked["attribute"].values]
    k = int(masked[0].sum())
    across = min(3, len(names))
    down = math.ceil(len(names) / across)
    layers = [int(i) for i in masked["layer"].values]
    figure = style.canvas(
        0.9 + down * max(0.8, 0.13 * len(layers) + 0.5), f"The {k:,} neurons closest to each attribute",
        f"The {k:,} neurons with the highest τ of each attribute, whether significant or not; ties go to the lower layer.",
    )  # fmt: skip
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    size = math.ceil(masked.sizes["unit"] / BINS)
    for i, ax in enumerate(panels.ravel()):
        if i >= len(names):
            ax.set_axis_off()
            continue
        values = masked[i].transpose("layer", "unit").values
        padded = np.pad(values, ((0, 0), (0, -values.shape[1] % size)))
        counts = padded.reshape(len(values), -1, size).sum(-1)
        extent = (-0.5, counts.shape[1] * size - 0.5, -0.5, len(values) - 0.5)
        heat(ax, counts, cmap=style.COUNTS, origin="lower", interpolation="nearest", vmin=0, extent=extent)
        style.titled(ax, names[i], size=9.5)
        step = max(1, math.ceil(len(layers) / 6))
        ax.set_yticks(range(0, len(layers), step), [str(n) for n in layers[::step]])
        ax.tick_params(labelsize=8, colors=INK, length=2, labelbottom=i + across >= len(names))
    figure.supxlabel("unit", fontsize=10, color=INK)
    figure.supylabel("layer", fontsize=10, color=INK)
    return figure


def masked_accuracy(drops: pd.DataFrame, k: int, tests: pd.DataFrame, part: str = "test") -> Picture:
    """Accuracy with the selective and with random neurons of each attribute masked, at one k; 95 % intervals over emotions.

    Args:
        drops: of `rsa.drops`, with unmasked accuracies.
        k: neurons masked.
        tests: of `rsa.draw_tests`; an attribute whose selective mask hurts more than 95 % of the draws gets a star, where there
            are enough draws for that.
        part: whose accuracy it is.
    """
    here: Any = drops[drops["k"] == k]
    names = list(dict.fromkeys(here["attribute"]))
    means = here.groupby(["attribute", "emotion"])[["selective", "random", "unmasked"]].mean()
    unmasked = float(means["unmasked"].mean())
    drawn: Any = tests[tests["k"] == k]
    rows: Any = drawn[(drawn["hurts_more"] > 0.95) & (drawn["n_draws"] >= DRAWS)]
    starred = set(rows["attribute"])
    claim = f"{len(starred)} of {len(names)} selective masks of {k:,} neurons hurt more than 95 % of random ones"
    if (few := int(drawn["n_draws"].min())) < DRAWS:
        claim = f"Selective masks of {k:,} neurons beside {few} random ones: too few for a test"
    caption = f"""Mean accuracy of the prompts on {part}, with 95 % t-intervals over emotions. A star: the mean with the
        selective mask is below that of more than 95 % of at least {DRAWS} random masks of the same size; one attribute in twenty
        would be by chance."""
    figure = style.canvas(4.2, claim, caption)
    ax = style.axes(figure.subplots(), "", "", "accuracy")
    for i, name in enumerate(names):
        mine = means.loc[name]
        for offset, column, colour, marker in ((-0.14, "random", RANDOM, "D"), (0.14, "selective", SELECTIVE, "o")):
            mean, low, high = _interval(mine[column].to_numpy())
            style.whisker(ax, i + offset, (low, high), colour)
            ax.plot([i + offset], [mean], marker=marker, color=colour, markersize=5, linestyle="none",
                    label=f"{column} neurons masked" if i == 0 else None)  # fmt: skip
    ax.axhline(
        unmasked, color=UNMASKED, linewidth=1, linestyle=(0, (4, 3)), label=f"no mask, {style.percent(unmasked, 1)}"
    )
    ax.set_xticks(range(len(names)), [f"{n}{' *' if n in starred else ''}" for n in names], rotation=40, ha="right")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def human_scatter(drops: pd.DataFrame, human: Mapping[str, float], k: int, link: pd.DataFrame) -> Picture:
    """Mean drop of each attribute against how closely people's concepts follow it, at one k.

    Args:
        drops: of `rsa.drops`.
        human: attribute → its correlation with the human RDM.
        k: neurons masked.
        link: of `rsa.human_link`, per k.
    """
    here: Any = drops[drops["k"] == k]
    emotions = here.groupby(["attribute", "emotion"])["drop"].mean()
    names = list(dict.fromkeys(here["attribute"]))
    title = "Drop of accuracy against the human side"
    if k in link["k"].tolist():
        row: Any = link[link["k"] == k].iloc[0]
        title = f"Mean r over {int(row['n'])} emotions {row['r']:+.2f} [{row['lo']:+.2f}, {row['hi']:+.2f}]".replace(
            "-", "−"
        )
        title += f", p {p_said(float(row['p']), float(row.get('p_floor', 0)))}"
    caption = """Each point is an attribute: to the right, people's concepts follow it more; upwards, masking its neurons hurts
        more than masking random ones (95 % t-interval over emotions). """
    if "df" in link:
        caption += "The published test takes emotions for independent, which share the masks, so its p is too small."
    else:
        caption += """Emotions share the masks, so p is that of the human side shuffled over attributes, and the interval that of
        attributes drawn again."""
    figure = style.canvas(4.6, title, caption)
    ax = style.axes(
        figure.subplots(), "", "correlation of the attribute with the human RDM", "drop (random − selective)"
    )
    points = []
    for name in sorted(names, key=lambda n: human[n]):
        mean, low, high = _interval(emotions.loc[name].to_numpy())
        style.whisker(ax, human[name], (low, high), FAINT)
        ax.plot([human[name]], [mean], marker="o", color=SELECTIVE, linestyle="none", markersize=5)
        points.append((name, human[name], mean))
    ax.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    style.names(figure, ax, points)
    return figure


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and its 95 % interval by t; without one for fewer than two values."""

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half
