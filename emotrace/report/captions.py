"""Captions: the paragraph under each figure: definition, n, and how the interval was reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from emotrace.report.circuits import COUNTED
from emotrace.report.effects import WIDE, deviation
from emotrace.report.parts import CircuitParts, label_of
from emotrace.report.replies import chance_of
from emotrace.report.style import layer_range, percent, span


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
        text += " Controls were drawn several times: a bar is the draw that its label names, each dot one draw."
    return _line(text)


def ablation() -> str:
    """Under the bars of the ablated models."""
    return _line("""The emotion is asked for in words, while the components of its circuit (ablate), or as many others of the same
        layers drawn at random (random_ablate), are set to zero from the last prompt token on. If the
        circuit is needed, its ablation takes the emotion away and that of random components does not. Of several random
        draws the bar shows the lowest, each dot one draw. Whiskers are 95 % intervals as above.""")


def confusion() -> str:
    """Under the matrices."""
    return _line("""Rows are the emotion that was asked for, columns the blind judge's answer; numbers are percentages of the
        replies of a row, without an interval (those of the diagonal are in the figure above). n counts the replies of all rows
        of a method, over all draws where it was drawn several times. The replies of none were asked for no emotion: they
        are the same in every row, and their distribution is what the model says by itself.""")


def dose(report: Mapping[str, Any]) -> str:
    """Under the dose curve."""
    text = """Steering was tried at growing doses and several layer ranges on training skeletons that the directions were not
        fitted on, the best settings on more of them than the others; the test file was not touched.
        Solid: replies read as the asked emotion and fluent; dotted: read as asked, fluent or not. Whiskers are 95 % intervals
        of the solid line, from a bootstrap over skeletons; n counts the judged replies of a point. Perplexity is that of the
        reply under the un-edited model, after the prompt without the emotion sentence."""
    if ((report.get("fluency") or {}).get("bounds") or {}).get("perplexity"):
        text += " The green band holds the 1st to 99th percentile of the prompted replies to the training skeletons."
    chosen = report.get("chosen") or {}
    if "layers" in chosen and "dose" in chosen:
        text += f" The star is the point used on the test file: layers {layer_range(chosen['layers'])}, dose {chosen['dose']:g}."
    if "positions" in chosen:
        text += f" All at positions {chosen['positions']!r}; the table has the others."
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


def comparison(report: Mapping[str, Any]) -> str:
    """Under the comparison at equal KL."""
    text = """KL is the mean over the tokens of the un-edited model's own replies of Σ p ln(p / p′), p being its probabilities of
        the next token and p′ those of the edited model: how far a method moves the model, whatever it says. The title compares
        the methods at that KL, of all that both reach, at which the better one is best, interpolating between points. Solid:
        replies read as the asked emotion and fluent; dotted: read as asked, fluent or not. Whiskers are 95 % intervals of the
        solid line, from a bootstrap over skeletons; n counts the judged replies of a point. All on training skeletons that
        neither directions nor circuits were fitted on; the test file was not touched"""
    if ((report.get("accuracy_fluent") or {}).get("prompt") or {}).get("overall"):
        text += ", but for the dashed line: what asking in words reaches there"
    return _line(text + ".")


def circuit(parts: CircuitParts) -> str:
    """Under the map of the circuit."""
    by = str(parts.circuit.meta.get("by", "contrast")) if parts.circuit is not None else "contrast"
    score = {
        "contrast": "the mean over prompts of the emotion less that over prompts of the others",
        "mean": "the mean over prompts of the emotion",
    }.get(by, f"the score {by}")
    normed = parts.heads is not None and parts.heads.attrs.get("readout") == "normed"
    where = "its own layer" + (", after the norm that the MLP reads through," if normed else "")
    text = f"""A head contributes what the projection on the emotion's direction loses in {where} when the head is set
        to zero, a neuron its activation times the projection of its output weights, at the last prompt token: {score}.
        Positive (red): removing it lowers the emotion. Layer 0 is at the bottom; colours, by the square root of
        the contribution, and bars have one scale for all emotions."""
    if parts.circuit is not None:
        text += " Outlined: heads in the circuit."
        if "neuron" in set(parts.circuit.components["kind"]):
            text += " Bars: contributions of the circuit's neurons, summed per layer"
            text += "; the numbers beside them count them." if len(parts.circuit.layers) <= COUNTED else "."
    counts = [x for part in (parts.heads, parts.neurons) if part is not None and "n" in part for x in part["n"].values]
    n = f"n = {span([int(x) for x in counts])} prompts per emotion" if counts else "n unknown"
    return _line(f"{text} Means without an interval, {n}.")


def overlap(circuit: Any) -> str:
    """Under the Jaccard matrices."""
    pairs = len(circuit.labels) * (len(circuit.labels) - 1) // 2
    return _line(f"""Jaccard index: components in both circuits over components in either, a component being one neuron or
        head of one layer. Mean and standard deviation (ddof 1) over {pairs} pairs of {circuit.label}s, n = number of
        components; they describe one circuit each, without an interval. By chance: random circuits with as many components
        in every layer.""")


def curves(found: Mapping[str, xr.Dataset]) -> str:
    """Under the curves."""
    one = next(iter(found.values())).attrs
    where = f" in layer {one['readout_layer']}" if "readout_layer" in one else ""
    hows = sorted({str(c.attrs["how"]) for c in found.values() if "how" in c.attrs})
    how = f" ({', '.join(hows)} ablation)" if hows else ""
    return _line(f"""Mean over prompts of the change of the projection on the emotion's direction{where}, at the last prompt
        token. Ablated{how}: components are taken from the prompts that ask for the emotion, so a fall means that they carried
        it. Added: the emotion's difference vectors are put in at the components, in prompts that name no emotion, so a rise
        means more of it. Random and low-scoring sets have as many components in every layer as the best. Whiskers are
        95 % intervals from a bootstrap over skeletons (grey: of the mean over draws); n counts prompts. The title is
        about the largest k of each row. Scales differ between rows.""")


def influence(found: xr.Dataset) -> str:
    """Under the influence profile."""
    label = label_of(found["influence"])
    text = f"""The residual after a sublayer is shifted along that sublayer's own direction of the {label}, at the last prompt
        token of prompts that name none; influence is how fast the projection of the last layer on the {label}'s reference
        direction changes. Solid: the exact derivative at no shift, mean over n prompts; shaded: ± one standard deviation over
        prompts (their spread, not an interval of the mean). 1 would be a shift that arrives as it was made; positive means
        more of the {label}."""
    if float(abs(found["influence"]).max()) > WIDE:
        text += " The axis is logarithmic beyond ±1."
    off = deviation(found)
    if off:
        parts = ", ".join(f"{percent(v, 1)} at {d:g} σ" for d, v in off.items())
        text += f""" Broken lines: the same from finite doses in units of the residual's root mean square σ, which depart
            from the exact limit by at most (as a share of its largest value) {parts}."""
    return _line(text)


def attention() -> str:
    """Under the attention patterns."""
    return _line("""Left: how much each token (query, downwards) takes from each earlier one (key, across); rows sum to 1.
        Right: the tokens that the last prompt token, at which emotions are read and steered, takes most from, with their
        positions. One prompt, n = 1, without an interval: an illustration, not a measurement. ␣ is a blank, ↵ the
        end of a line.""")


def _n(found: xr.DataArray | xr.Dataset) -> str:
    n = found.attrs.get("n_groups")
    return f"{int(n):,} groups" if n else "unknown"


def _line(text: str) -> str:
    return " ".join(text.split())
