"""Saved: a figure as PNG, SVG and PDF, the same bytes for the same figure; and as a picture that a page holds itself."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from emotrace import disk
from emotrace.labels import EmotraceError
from emotrace.report import style
from emotrace.signatures import typed

FORMATS: Final = ("png", "svg", "pdf")
"""Endings of the files of a figure of a run. In PDF text is text; in SVG it is drawn, so that no font is needed."""
_SAME: Final[dict[str, dict[str, Any]]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""What would differ from day to day, or between versions, is left out."""
_DRAWING: Final[dict[Any, Any]] = {"svg.fonttype": "path", "svg.hashsalt": "emotrace", "pdf.fonttype": 42}


@typed
def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure as PNG (150 dpi), SVG or PDF, whole or not at all; parents are created.

    Args:
        figure: from a function of this room.
        path: its ending says which.

    Returns:
        The path.

    Raises:
        EmotraceError: for another ending.
    """
    path = Path(path)
    if path.suffix[1:] not in _SAME:
        raise EmotraceError(
            f"save_figure(path={str(path)!r}): figures are written as {', '.join(f'.{ending}' for ending in _SAME)}."
        )
    disk.replace_file(path, drawn(figure, path.suffix[1:]))
    return path


def every(figure: Figure) -> dict[str, bytes]:
    """Ending → bytes of the file, in every format, laid out once."""
    settled(figure)
    return {ending: drawn(figure, ending) for ending in FORMATS}


def drawn(figure: Figure, ending: str) -> bytes:
    """The bytes of a figure's file."""
    out = io.BytesIO()
    with matplotlib.rc_context(_DRAWING):
        figure.savefig(out, format=ending, dpi=style.DPI, metadata={**_SAME[ending], "Title": style.claim(figure)})
    return out.getvalue()


def inside(svg: bytes) -> str:
    """An SVG as the address of a picture that is its own file: nothing has to lie beside the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def settled(figure: Figure) -> None:
    """Lay a figure out once for all formats: that is most of the work of drawing it.

    Without any engine, for one that does nothing would have each format drawn twice.
    """
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
    with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
