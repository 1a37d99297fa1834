"""Attention: the figure of where the top heads look on one prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator

from emotrace.report import style
from emotrace.report.heat import heat, scale
from emotrace.report.style import COLOURS, INK, Picture
from emotrace.signatures import typed

LOOKED_AT = 7
"""Tokens named beside each pattern."""
EMOTION = "emotion"
MOST = 6
"""Most heads that are drawn."""


@typed
def attention_patterns(patterns: Sequence[xr.DataArray]) -> Picture:
    """Attention of each head on a prompt: the whole pattern, and beside it what the last token looks at most.

    Args:
        patterns: ``[query, key]``, rows summing to 1, with the attrs ``layer``, ``head`` and, if known, ``emotion``; the first
            six are drawn, a head of several emotions once.
    """
    drawn = distinct(patterns)[:MOST]
    across = min(2, len(drawn))
    down = math.ceil(len(drawn) / across)
    caption = """Left: how much each token (query, downwards) takes from each earlier one (key, across); rows sum to 1.
        Right: the tokens that the last prompt token, at which emotions are read and steered, takes most from, with their
        positions. One prompt, n = 1, without an interval: an illustration, not a measurement. ␣ is a blank, ↵ the
        end of a line."""
    figure = style.canvas(1.0 + 2.55 * down, _claim(drawn), caption)
    panels = figure.subplots(down, 2 * across, squeeze=False, width_ratios=[1.25, 1] * across)
    for ax in panels.ravel()[2 * len(drawn) :]:
        ax.set_axis_off()
    widest = max(float(p.isel(query=-1).max()) for p in drawn)
    image = None
    for i, pattern in enumerate(drawn):
        whole, last = panels[i // across, 2 * (i % across) : 2 * (i % across) + 2]
        matrix = np.asarray(pattern.transpose("query", "key").values, dtype=np.float64)
        image = heat(whole, matrix, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        style.titled(
            whole, title(pattern), "key (position)" if i + across >= len(drawn) else "",
            "query (position)" if i % across == 0 else "", size=10,
        )  # fmt: skip
        whole.tick_params(labelsize=9, colors=INK, length=2)
        for axis, size in ((whole.xaxis, matrix.shape[1]), (whole.yaxis, matrix.shape[0])):
            axis.set_ticks(range(0, size, max(1, math.ceil(size / 6))))
        _last(last, matrix[-1], tokens_of(pattern), widest)
        last.set_xlabel("of the last token" if i + across >= len(drawn) else "", fontsize=10, color=INK)
    if image is not None:
        label = "attention (colours by its square root)"
        bar = scale(figure, image, label, ax=panels, location="bottom", shrink=0.4, aspect=40, pad=0.02)
        bar.set_ticks([0, 0.05, 0.25, 0.5, 1], labels=["0", "0.05", "0.25", "0.5", "1"])
    return figure


def distinct(patterns: Sequence[xr.DataArray]) -> list[xr.DataArray]:
    """Each head and prompt once, with all its emotions in the attr ``emotion``."""
    found: list[xr.DataArray] = []
    for pattern in patterns:
        same = next((i for i, p in enumerate(found) if _place(p) == _place(pattern) and p.equals(pattern)), None)
        if same is None:
            found.append(pattern)
        else:
            names = [p.attrs[EMOTION] for p in (found[same], pattern) if p.attrs.get(EMOTION)]
            found[same] = found[same].assign_attrs({EMOTION: ", ".join(dict.fromkeys(names))})
    return found


def tokens_of(pattern: xr.DataArray) -> list[str]:
    """Texts of the keys: the coordinate of texts that the dim ``key`` has (``key_token``); else positions."""
    found = [c for c in pattern.coords.values() if c.dims == ("key",) and c.dtype.kind in "UO"]
    return [str(t) for t in found[0].values] if found else [str(i) for i in range(pattern.sizes["key"])]


def title(pattern: xr.DataArray) -> str:
    """``anger: layer 4, head 2``; more than two emotions are counted."""
    names = str(pattern.attrs.get(EMOTION) or "").split(", ")
    name = ", ".join(names) if len(names) <= 2 else f"{len(names)} emotions"
    return f"{name}{': ' if name else ''}layer {pattern.attrs['layer']}, head {pattern.attrs['head']}"


def _place(pattern: xr.DataArray) -> tuple:
    return tuple(pattern.attrs.get(name) for name in ("layer", "head", "prompt"))


def _last(ax: Axes, weights: np.ndarray, tokens: Sequence[str], widest: float) -> None:
    order = np.argsort(-weights, kind="stable")[:LOOKED_AT]
    style.axes(ax)
    ax.grid(visible=False)
    ax.barh(range(len(order)), weights[order], height=0.7, color=COLOURS["prompt"])
    names = [f"{style.printed(tokens[i], 12)} {i}" for i in order]
    ax.set_yticks(range(len(order)), names, fontsize=9)
    ax.invert_yaxis()
    for y, i in enumerate(order):
        text = f"{weights[i]:.2f}".replace("0.", ".", 1) if weights[i] >= 0.005 else "<.01"
        ax.text(float(weights[i]) + 0.02 * widest, y, text, ha="left", va="center", fontsize=8.5, color=INK)
    ax.set_xlim(0, 1.25 * widest)
    ax.xaxis.set_major_locator(MaxNLocator(2))
    ax.tick_params(axis="y", length=0)


def _claim(drawn: Sequence[xr.DataArray]) -> str:
    best = max(drawn, key=lambda p: float(p.isel(query=-1).max()))
    weights = best.transpose("query", "key").values[-1]
    at = int(np.argmax(weights))
    token = style.printed(tokens_of(best)[at], 20)
    heads = f"{len(drawn)} top head{'' if len(drawn) == 1 else 's'}"
    return (
        f"What the last token looks at through {heads}: most of all at\n“{token}” (position {at}), "
        f"{style.percent(float(weights[at]))} of the attention of layer {best.attrs['layer']}, head {best.attrs['head']}"
    )
