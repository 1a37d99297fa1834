"""Layers: figures of what the directions do layer by layer: context-agnosticism, layer profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from emotrace.labels import EmotraceError
from emotrace.report import style
from emotrace.report.geometry import counted, full, groups
from emotrace.report.style import FAINT, INK, MARKERS, SERIES, Picture
from emotrace.signatures import typed


@typed
def agnosticism(found: xr.Dataset) -> Picture:
    """Held-out accuracy and cosine of disjoint parts per layer, one column per factor left out, one colour per sublayer.

    Where all accuracies lie far above what shuffled labels reach, their axis begins just below the lowest, and says so.

    Above: accuracy over all held-out rows with its 95 % interval; thin line: the worst level; grey: up to the highest
    accuracy of the shuffled labels; dashed: chance. Below: cosine of the direction without a level to that of the level alone,
    mean over levels and emotions; thin line: the lowest of them with its own 95 % interval; grey: up to the mean of random
    contexts of that size.

    Args:
        found: of `directions.context_agnosticism`.

    Raises:
        EmotraceError: if a variable is missing.
    """
    needed = {"cosine", "cosine_ci", "cosine_random_context", "cosine_null_max"}
    missing = needed | {"accuracy", "accuracy_ci", "accuracy_by_level", "null_max"}
    missing -= set(map(str, found))
    if missing:
        raise EmotraceError(f"agnosticism: the dataset lacks {', '.join(sorted(missing))}.")
    found = full(found)
    factors, subs = [str(f) for f in found["factor"].values], [str(s) for s in found["sublayer"].values]
    layers = found["layer"].values
    chance = float(found.attrs.get("chance", 1 / found.sizes[found.attrs.get("label", "emotion")]))
    figure = style.canvas(6.6, _agnosticism_claim(found, factors), _agnosticism_caption(found))
    bottom = _bottom(found)
    heights = [1, 1.4] if bottom else [1.4, 1]  # where all accuracies are high, the cosines tell layers apart
    panels = figure.subplots(2, len(factors), squeeze=False, sharex=True, sharey="row", height_ratios=heights)
    n_all = int(found.attrs.get("n_groups", 0))
    lowest: list[float] = []
    for column, factor in enumerate(factors):
        of = found["held_out_factor"].values == factor
        part = found.isel(held_out=np.flatnonzero(of))
        top, low = panels[0, column], panels[1, column]
        n = f"{int(of.sum())} levels" + (f", n = {n_all:,} groups" if n_all else "")
        style.axes(top, f"Leave one {factor} out ({n})", "", "held-out accuracy" if column == 0 else "")
        style.axes(low, "", "layer", "cosine" if column == 0 else "")
        _zoomed(top, bottom)
        null = found["null_max"].sel(factor=factor).max("sublayer").values
        if bottom:
            said = (
                f"axis from {style.percent(bottom)}: shuffled labels reach at most {style.percent(float(null.max()))}"
            )
            top.text(0.02, 0.03, said, transform=top.transAxes, fontsize=9, color=INK)
        else:
            step = "mid" if len(layers) > 1 else None
            top.fill_between(layers, 0, null, color="#bbbbbb", alpha=0.45, linewidth=0, step=step)
            style.chance_line(top, chance)
        for i, sub in enumerate(subs):
            look = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5}
            shift = layers + 0.08 * (i - (len(subs) - 1) / 2)
            mean = found["accuracy"].sel(factor=factor, sublayer=sub).values
            top.plot(shift, mean, linewidth=1.8, **look)
            for x, bounds in zip(shift, found["accuracy_ci"].sel(factor=factor, sublayer=sub).values, strict=True):
                style.whisker(top, x, (float(bounds[0]), float(bounds[1])), look["color"])
            worst = part["accuracy_by_level"].sel(sublayer=sub).min("held_out").values
            top.plot(shift, worst, linewidth=1, linestyle=":", color=look["color"])
            lowest.append(_cosine_lines(low, shift, part.sel(sublayer=sub), look))
        every = ["held_out", found.attrs.get("label", "emotion")]
        random = part["cosine_random_context"].mean(every).max("sublayer").values
        low.plot(layers, random, color="#888888", linewidth=2.2, alpha=0.7, zorder=1)
        layer_ticks(low, layers)
    floor = _floor(min(lowest))
    for low in panels[1]:
        low.set_ylim(floor, 1 + 0.05 * (1 - floor))
        if floor <= 0:
            low.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    panels[1, 0].set_title(
        f"Cosine of a level's direction to that of the others (axis from {floor:g})".replace("-", "−"),
        fontsize=10.5,
        loc="left",
    )
    draws = found.attrs.get("n_null")
    null_name = "shuffled labels" + (f", highest of {draws} draws" if draws else "")
    handles: list[Any] = [
        *_sublayer_handles(subs),
        Line2D([], [], color=FAINT, linewidth=1, linestyle=":", label="worst level (below: and emotion)"),
        Line2D([], [], color=FAINT, marker="_", linestyle="none", markersize=8, label="95 % interval"),
        *([] if bottom else [Patch(facecolor="#bbbbbb", alpha=0.45, label=null_name)]),
        Line2D([], [], color="#888888", linewidth=2.2, alpha=0.7, label="random contexts of that size"),
    ]
    if not bottom:
        name = f"chance {style.percent(chance)}"
        handles.append(Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=name))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _bottom(found: xr.Dataset) -> float:
    """Where the axis of accuracy begins: at 0, or, where all of it lies far above what shuffled labels reach, just below it."""
    lowest = min(float(found["accuracy_ci"].min()), float(found["accuracy_by_level"].min()))
    bottom = math.floor(20 * lowest - 1e-9) / 20
    return min(bottom, 0.95) if bottom >= 0.6 and bottom > float(found["null_max"].max()) else 0.0


def _floor(lowest: float) -> float:
    """Where the axis of cosines begins: the next tenth below the lowest, or the next tenth of what is left to 1."""
    digits = 1 if lowest < 0.9 else min(4, math.ceil(-math.log10(max(1 - lowest, 1e-4))) + 1)
    return round(math.floor(10**digits * lowest) / 10**digits, digits)


def _zoomed(ax: Axes, bottom: float) -> None:
    """An axis of shares from ``bottom`` on, with room above."""
    if not bottom:
        style.percent_axis(ax, 1.05)
        return
    ticks = np.linspace(bottom, 1, 6)
    ax.set_yticks(ticks, [f"{100 * t:.0f} %" for t in ticks])
    ax.set_ylim(bottom - 0.12 * (1 - bottom), 1 + 0.06 * (1 - bottom))


@typed
def layer_profile(
    directions: xr.DataArray, found: xr.Dataset | None = None, profile: Sequence[Mapping[str, Any]] | None = None
) -> Picture:
    """By layer: norm of the centred means, that norm relative to the activations (‖c‖ / (σ √d)), held-out accuracy.

    Args:
        directions: with the coordinate ``norm[emotion, layer, sublayer]``.
        found: of `directions.context_agnosticism`, for the accuracy; its panel is left out otherwise.
        profile: ``layer_profile`` of report.json: ``{layer, sublayer, rms}`` per place, rms = σ of `directions.mean_rms`; the
            relative panel is left out otherwise.

    Raises:
        EmotraceError: if the directions carry no norm.
    """
    if "norm" not in directions.coords:
        raise EmotraceError(
            "layer_profile: the directions carry no coordinate 'norm'; take them from directions.centered_mean."
        )
    directions = full(directions)
    layers = directions["layer"].values
    subs = [str(s) for s in directions["sublayer"].values]
    norm = directions["norm"].transpose("emotion", "layer", "sublayer").values.astype(np.float64)
    sigma = _sigma(layers, subs, profile)
    count = 1 + bool(np.isfinite(sigma).any()) + (found is not None)
    relative = norm / (sigma * math.sqrt(directions.sizes["dim"]))
    caption = f"""Norm of the centred mean by layer, mean and range over emotions; the same divided by the length of an
        activation (σ √d, σ being the root mean square of its coordinates), because activations grow with depth; and the
        held-out accuracy of the figure above, with its 95 % intervals. Panels without data are left out. n =
        {counted(directions)}."""
    figure = style.canvas(4.3, _profile_claim(layers, subs, norm, relative), caption)
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    n = groups(directions).removeprefix(" (").removesuffix(")")
    curves = [(norm, "Norm of the centred mean", "‖c‖")]
    if np.isfinite(sigma).any():
        curves.append((relative, "Relative to the activations", "‖c‖ / (σ √d)"))
    for ax, (values, title, y) in zip(panels, curves, strict=False):
        style.axes(ax, title, f"layer ({n})" if n else "layer", y)
        for i, _ in enumerate(subs):
            colour = SERIES[i % len(SERIES)]
            ax.fill_between(
                layers, values[:, :, i].min(0), values[:, :, i].max(0), color=colour, alpha=0.15, linewidth=0
            )
            ax.plot(layers, values[:, :, i].mean(0), color=colour, marker=MARKERS[i % len(MARKERS)], markersize=4.5)
        ax.set_ylim(bottom=0)
        layer_ticks(ax, layers)
    handles: list[Any] = [*_sublayer_handles(subs), Patch(facecolor=FAINT, alpha=0.25, label="range over emotions")]
    if found is not None:
        handles += _accuracy_panel(panels[-1], full(found))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return figure


def layer_ticks(ax: Axes, layers: np.ndarray) -> None:
    """Whole layers as ticks, thinned out for deep models."""
    ax.set_xticks([int(i) for i in layers[:: max(1, math.ceil(len(layers) / 12))]])


def _cosine_lines(ax: Axes, x: np.ndarray, part: xr.Dataset, look: Mapping[str, Any]) -> float:
    """Mean over levels and labels, and the lowest with its interval; returns the lowest bound drawn."""
    flat = part.stack(one=[d for d in part["cosine"].dims if d != "layer"]).transpose("layer", "one", ...)
    values, bounds = flat["cosine"].values, flat["cosine_ci"].values
    worst = values.argmin(1)
    ax.plot(x, values.mean(1), linewidth=1.8, **look)
    ax.plot(x, values.min(1), linewidth=1, linestyle=":", color=look["color"])
    for i, w in enumerate(worst):
        style.whisker(ax, float(x[i]), (float(bounds[i, int(w), 0]), float(bounds[i, int(w), 1])), look["color"])
    return float(min(values.min(), np.take_along_axis(bounds[..., 0], worst[:, None], 1).min()))


def _accuracy_panel(ax: Axes, found: xr.Dataset) -> list[Any]:
    """Held-out accuracy per layer at the best sublayer of each factor."""
    chance = float(found.attrs.get("chance", 1 / 6))
    layers = found["layer"].values
    n = found.attrs.get("n_groups")
    style.axes(ax, "Held-out accuracy", f"layer (n = {n:,} groups)" if n else "layer", "")
    style.percent_axis(ax, 1.05)
    style.chance_line(ax, chance)
    handles: list[Any] = []
    for k, factor in enumerate(str(f) for f in found["factor"].values):
        line = ("-", "--", ":")[k % 3]
        for i in range(found.sizes["sublayer"]):
            part = found.sel(factor=factor).isel(sublayer=i)
            colour = SERIES[i % len(SERIES)]
            ax.plot(
                layers,
                part["accuracy"].values,
                color=colour,
                linestyle=line,
                marker=MARKERS[i % len(MARKERS)],
                markersize=4.5,
            )
            for x, bounds in zip(layers, part["accuracy_ci"].values, strict=True):
                style.whisker(ax, x, (float(bounds[0]), float(bounds[1])), colour, 0.8)
        handles.append(Line2D([], [], color=FAINT, linestyle=line, label=f"{factor} left out"))
    layer_ticks(ax, layers)
    return [
        *handles,
        Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"chance {style.percent(chance)}"),
    ]


def _sublayer_handles(subs: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=SERIES[i % len(SERIES)], marker=MARKERS[i % len(MARKERS)], markersize=5, label=sub)
        for i, sub in enumerate(subs)
    ]


def _sigma(layers: np.ndarray, subs: Sequence[str], profile: Sequence[Mapping[str, Any]] | None) -> np.ndarray:
    """σ ``[layer, sublayer]``, NaN where the profile does not say."""
    known = {(int(p["layer"]), str(p.get("sublayer", subs[0]))): style.number(p.get("rms")) for p in profile or []}
    return np.array([[known.get((int(i), s), math.nan) for s in subs] for i in layers])


def _agnosticism_claim(found: xr.Dataset, factors: Sequence[str]) -> str:
    """From the accuracy where it is best for the worst factor: above what shuffled labels reached, or not."""
    mean = found["accuracy"].min("factor")
    best = mean.where(mean == mean.max(), drop=True)
    place = {"layer": int(best["layer"].values[0]), "sublayer": str(best["sublayer"].values[0])}
    parts, above = [], True
    for factor in factors:
        here = found.sel(place).sel(factor=factor)
        chance = float(here["null_max"])
        above &= float(here["accuracy_ci"][0]) > chance
        value = style.percent(float(here["accuracy"]))
        parts.append(f"{factor} {value} (shuffled labels at most {style.percent(chance)})")
    does = (
        "Directions found without a context classify it" if above else "It is not shown that directions hold elsewhere"
    )
    return f"{does}: held out, at layer {place['layer']}, {place['sublayer']},\n{', '.join(parts)}"


def _agnosticism_caption(found: xr.Dataset) -> str:
    a = found.attrs
    clusters = f" ({a['n_clusters']} of them)" if "n_clusters" in a else ""
    null = float(found["cosine_null_max"].max())
    return f"""Directions were fitted without one theme (or valence) and then had to name the emotion of that theme's
        activations: the answer is the direction with the largest projection of a row less its group's mean. Solid: accuracy
        over all held-out rows, with 95 % intervals from {a.get("n_bootstrap", "the")} bootstrap draws over
        {a.get("cluster", "skeletons")}{clusters}; dotted: the level that does worst. Grey area: up to the highest of
        {a.get("n_null", "several")} runs with the labels shuffled within groups. Below: cosine of the direction fitted without a
        level to that of the level alone, which share no row, mean over levels and emotions; dotted: the lowest of them, with its
        interval; grey line: the mean of random contexts of as many groups. With shuffled labels no such cosine exceeds
        {null:.2f}. n = {counted(found)}."""


def _profile_claim(layers: np.ndarray, subs: Sequence[str], norm: np.ndarray, relative: np.ndarray) -> str:
    values, name = (relative, "relative norm") if np.isfinite(relative).any() else (norm, "norm")
    mean = np.nan_to_num(values.mean(0))
    i, j = np.unravel_index(int(mean.argmax()), mean.shape)
    return f"The {name} of the directions is largest at layer {int(layers[int(i)])} ({subs[int(j)]}): {mean[i, j]:.2g}"
