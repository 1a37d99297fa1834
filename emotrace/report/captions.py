"""Captions: the paragraph under each figure: definition, n, and how the interval was reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from emotrace.report.replies import chance_of
from emotrace.report.style import layer_range, percent


def accuracy(report: Mapping[str, Any]) -> str:
    """Under the bars."""
    text = f"""A reply counts if the blind judge, who does not know what was asked, answers the asked emotion; neutral is a
        seventh answer. Chance ({percent(chance_of(report))}) is the most that replies reach on average which ignore the asked
        emotion. n is the number of judged replies; unjudged ones are left out, and the table states the worst case, in which
        all of them miss. Whiskers are 95 % intervals from a bootstrap over skeletons (Wilson's where every skeleton scores
        the same)."""
    if report.get("accuracy_fluent"):
        text += """ Hatched bars, and the ticks below, count a reply only if it matches and its perplexity, length and
            repetition lie within the 1st to 99th percentile of the same model's prompted replies to the training skeletons."""
    if any("draws" in (part.get("overall") or {}) for part in report["accuracy"].values()):
        text += " Controls were drawn several times: a bar is the highest draw, each dot one draw."
    return _line(text)


def confusion() -> str:
    """Under the matrices."""
    return _line("""Rows are the emotion that was asked for, columns the blind judge's answer; numbers are percentages of the
        replies of a row, without an interval (those of the diagonal are in the figure above). n counts the replies of all rows
        of a method, over all draws where it was drawn several times. The replies of none were asked for no emotion: they
        are the same in every row, and their distribution is what the model says by itself.""")


def dose(report: Mapping[str, Any]) -> str:
    """Under the dose curve."""
    text = """Steering was tried at every dose and layer range on training skeletons that the directions were not fitted on;
        the test file was not touched. Solid: replies read as the asked emotion and fluent; dotted: read as asked, fluent or not.
        Whiskers are 95 % intervals of the solid line, from a bootstrap over skeletons; n counts the judged replies of a
        point. Perplexity is that of the reply under the un-edited model, after the prompt without the emotion sentence."""
    if ((report.get("fluency") or {}).get("bounds") or {}).get("perplexity"):
        text += " The green band holds the 1st to 99th percentile of the prompted replies to the training skeletons."
    chosen = report.get("chosen") or {}
    if "layers" in chosen and "dose" in chosen:
        text += f" The star is the point used on the test file: layers {layer_range(chosen['layers'])}, dose {chosen['dose']:g}."
    return _line(text)


def similarity(directions: xr.DataArray) -> str:
    """Under the heat maps."""
    k = directions.sizes["emotion"]
    apart = f"""; since {k} centred means sum to zero, {k} that differ equally would have a cosine of −1/{k - 1} =
        −{1 / (k - 1):.2f} with each other""" if k > 1 else ""  # fmt: skip
    return _line(f"""A direction is the mean over groups (one scenario and valence) of an emotion's activation less the group's
        mean over emotions, made unit length. Above: cosines between emotions{apart}. Below: cosines of the same emotion's
        directions at different places, averaged over emotions, in the order attn0, mlp0, attn1, … (attn: the residual after
        attention; mlp: after the MLP). They describe one set of directions, without an interval; n = {_n(directions)}.""")


def agnosticism(found: xr.Dataset) -> str:
    """Under the held-out accuracies."""
    a = found.attrs
    clusters = f" ({a['n_clusters']} of them)" if "n_clusters" in a else ""
    return _line(f"""Directions were fitted without one theme (or valence) and then had to name the emotion of that theme's
        activations: the answer is the direction with the largest projection of a row less its group's mean. Solid: accuracy
        over all held-out rows, with 95 % intervals from {a.get("n_bootstrap", "the")} bootstrap draws over
        {a.get("cluster", "skeletons")}{clusters}; dotted: the level that does worst. Grey: up to the highest of
        {a.get("n_null", "several")} runs with the labels shuffled within groups. Below: cosine of the direction fitted without a
        level to the full one, mean over levels and emotions; dotted: the lowest of them, with its interval. n = {_n(found)}.""")


def layers(directions: xr.DataArray) -> str:
    """Under the layer profile."""
    return _line(f"""Norm of the centred mean by layer, mean and range over emotions; the same divided by the length of an
        activation (σ √d, σ being the root mean square of its coordinates), because activations grow with depth; and the
        held-out accuracy of the figure above, with its 95 % intervals. Panels without data are left out. n =
        {_n(directions)}.""")


def _n(found: xr.DataArray | xr.Dataset) -> str:
    n = found.attrs.get("n_groups")
    return f"{int(n):,} groups" if n else "unknown"


def _line(text: str) -> str:
    return " ".join(text.split())
