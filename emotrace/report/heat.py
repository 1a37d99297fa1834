"""Heat: a matrix in colours, with its names and numbers, and the scale of its colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

from emotrace.report.style import AMOUNTS, EMPTY, INK, text_on


def heat(
    ax: Axes, values: ArrayLike, across: Sequence[str] = (), down: Sequence[str] = (), *, turn: float = 0, size: float = 9,
    text: Callable[[float], str] | None = None, **image: Any,
) -> AxesImage:  # fmt: skip
    """Draw a matrix.

    Args:
        ax: where.
        values: ``[row, column]``; NaN is left empty.
        across: names of the columns; without names the ticks are the caller's.
        down: names of the rows.
        turn: degrees by which the names of the columns are turned.
        size: of the names, in points; numbers are half a point smaller.
        text: what stands in the cell of a value, NaN too, white on dark cells; None for no numbers.
        image: of `Axes.imshow`; by default `style.AMOUNTS`, as wide and high as there is room.

    Returns:
        The image, for `scale`.
    """
    shown = ax.imshow(np.ma.masked_invalid(values), **{"cmap": AMOUNTS, "aspect": "auto", **image})
    ax.set_facecolor(EMPTY)
    if across:
        slanted: Any = {"ha": "right", "rotation_mode": "anchor"} if 0 < turn < 90 else {}
        ax.set_xticks(range(len(across)), across, rotation=turn, fontsize=size, **slanted)
        ax.set_yticks(range(len(down)), down, fontsize=size)
        ax.tick_params(length=0, colors=INK)
    if text is not None:
        for (i, j), value in np.ndenumerate(values):
            colour = text_on(shown.to_rgba(np.ma.masked_invalid([value]))[0])
            ax.text(j, i, text(float(value)), ha="center", va="center", fontsize=size - 0.5, color=colour)
    return shown


def scale(figure: Figure, image: AxesImage, label: str = "", **where: Any) -> Colorbar:
    """The colours' scale, with what they mean beside it.

    Args:
        figure: that the image is in.
        image: of `heat`.
        label: what the colours are.
        where: of `Figure.colorbar`.
    """
    bar = figure.colorbar(image, **where)
    bar.ax.tick_params(labelsize=9)
    bar.set_label(label, fontsize=10)
    return bar
