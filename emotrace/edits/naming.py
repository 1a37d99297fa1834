"""Naming: what a list of edits does, in a few words: the label of replies that are given none."""

from __future__ import annotations

from collections.abc import Iterable

from emotrace.edits.kinds import Edit

NONE = "none"
"""Label of replies of the un-edited model."""


def edits_label(edits: Iterable[Edit]) -> str:
    """``add resid_post 2-4 x1.5``: kinds, sites, layers and strengths; edits that differ in their layer only are one.

    Args:
        edits: of any kind; none of them gives ``none``.
    """
    layers: dict[tuple[str, str], list[int]] = {}
    for edit in edits:
        strength = getattr(edit, "strength", 1.0)
        site = edit.site if isinstance(edit.site, str) else edit.site.path
        name = (edit.kind or type(edit).__name__) + f" {site}", "" if strength == 1 else f" x{strength:.3g}"
        layers.setdefault(name, []).extend(edit.layers or ())
    return " + ".join(f"{what}{_spans(sorted(set(at)))}{size}" for (what, size), at in layers.items()) or NONE


def _spans(layers: list[int]) -> str:
    """`` 2-4,7``; empty without layers."""
    starts = [i for i in layers if i - 1 not in layers]
    ends = [i for i in layers if i + 1 not in layers]
    spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return f" {','.join(spans)}" if spans else ""
