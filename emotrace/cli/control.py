"""Control: replies under directions or under a circuit, beside the baseline; and a checkpoint that expresses an emotion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emotrace.cli.app import app
from emotrace.cli.groups import Decoding, Loading, LoadingAnywhere, grouped
from emotrace.cli.options import (
    Directions,
    Model,
    System,
    Texts,
    finite,
    labelled,
    layer_list,
    said,
    span,
    value_of,
)
from emotrace.files import to_folder
from emotrace.labels import EmotraceError, unknown
from emotrace.sites import LanguageModel

if TYPE_CHECKING:
    import xarray as xr


SHARED_DOSE = 0.5
"""Sum over the layers of what `steer` adds by default, as shares of the activation's norm: additions at many layers add up."""
Layers = Annotated[str | None, typer.Option(help="e.g. 2-4 or 1,3; default the middle half")]
Emotion = Annotated[str, typer.Option(help="label of the direction, or of the circuit")]


@dataclass(frozen=True, kw_only=True)
class Prompting(Decoding):
    """What is to be replied to, and how replies are decoded."""

    prompts: Texts
    system: System = None

    def turns(self) -> list[list[dict[str, str]]]:
        """Chat messages of each prompt, none of them blank."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [[*first, {"role": "user", "content": text}] for text in said(self.prompts)]


@app.command()
@grouped
def steer(
    *,
    asked: Prompting,
    model: Model,
    directions: Directions,
    emotion: Emotion,
    layers: Layers = None,
    dose: Annotated[
        float | None,
        typer.Option(
            help=f"size of each addition as a share of the activation's norm; default {SHARED_DOSE} shared out over the layers; "
            "less where replies fall apart"
        ),
    ] = None,
    site: str = "resid_post",
    loading: LoadingAnywhere,
) -> None:
    """Baseline and steered replies, side by side."""
    import emotrace as et

    turns, options = asked.turns(), {**asked.options, "seed": asked.seed}
    if dose is not None:
        finite(dose, "--dose")
    aim, vector, wanted = _direction(directions, emotion, layers, site)
    lm = loading.load(model)
    at = wanted or _middle(lm)
    strength = (SHARED_DOSE / len(at) if dose is None else dose) * math.sqrt(lm.sites.d_model)
    edit = et.Add(site, layers=at, vector=vector, strength=strength, scale="rms")
    _side_by_side(lm, turns, [edit], aim, options)


@app.command()
@grouped
def modulate(
    *,
    asked: Prompting,
    model: Model,
    circuit: Annotated[Path, typer.Option(help="folder that `emotrace circuit` wrote")],
    emotion: Emotion,
    strength: Annotated[float, typer.Option(help="factor of the circuit's difference vectors")] = 1.0,
    neuron_positions: Annotated[
        str, typer.Option(help="as of `emotrace capture`: where neurons are changed")
    ] = "steer",
    head_positions: Annotated[
        str | None, typer.Option(help="where heads are; default steer, or all for a circuit of the published preset")
    ] = None,
    loading: LoadingAnywhere,
) -> None:
    """Baseline replies and those with a circuit added, side by side."""
    import emotrace as et

    turns, options = asked.turns(), {**asked.options, "seed": asked.seed}
    found = et.Circuit.load(circuit)
    positions = {
        "neuron_positions": span(neuron_positions, "--neuron-positions"),
        "head_positions": span(head_positions or ("all" if found.meta.get("preset") else "steer"), "--head-positions"),
    }
    aim, edits = _added(found, circuit, emotion, strength, **positions)
    lm = loading.load(model)
    found.check(lm)
    _side_by_side(lm, turns, edits, aim, options)


@dataclass(frozen=True, kw_only=True)
class Baked:
    """What is added at every token: directions, or a circuit."""

    emotion: Emotion
    directions: Annotated[Path | None, typer.Option(help="folder that `emotrace directions` wrote")] = None
    circuit: Annotated[Path | None, typer.Option(help="or folder that `emotrace circuit` wrote")] = None
    layers: Annotated[
        str | None, typer.Option(help="e.g. 2-4 or 1,3; default the middle half, or all of the circuit")
    ] = None
    site: Annotated[str | None, typer.Option(help="of the directions; default resid_post")] = None
    strength: Annotated[
        float | None, typer.Option(help="factor of the circuit (default 1); of directions the length of each addition")
    ] = None


@app.command()
@grouped
def export(
    *,
    model: Model,
    out: Annotated[Path, typer.Option(help="folder of the checkpoint, not there yet")],
    baked: Baked,
    loading: Loading,
) -> None:
    """A plain Hugging Face checkpoint with an addition at every token, where biases can hold it exactly."""
    import emotrace as et
    from emotrace.interop import bake

    to_folder(out, "--out")
    circuit, site = baked.circuit, baked.site
    if (baked.directions is None) == (circuit is None):
        raise EmotraceError("emotrace export bakes either --directions or a --circuit: give one of them.")
    if circuit is not None:
        if site is not None:
            raise EmotraceError(f"--site {site} is of --directions; a circuit has its own sites.")
        found, times = et.Circuit.load(circuit), 1.0 if baked.strength is None else baked.strength
        aim, edits = _added(found, circuit, baked.emotion, times, neuron_positions="all", head_positions="all")
        edits = edits if baked.layers is None else _only(edits, layer_list(baked.layers), circuit)
        lm = loading.load(model)
        found.check(lm)
    else:
        assert baked.directions is not None
        site = site or "resid_post"
        aim, vector, wanted = _direction(baked.directions, baked.emotion, baked.layers, site)
        length = _length(baked.strength, vector, wanted, site)
        lm = loading.load(model)
        at = wanted or _middle(lm)
        edits = [et.Add(site, layers=at, vector=vector, strength=length, positions="all")]
    bake(lm, edits, out)
    where = ", ".join(f"{e.site} of layers {' '.join(map(str, e.layers or ()))}" for e in edits)
    typer.echo(f"{aim} at {where}: a checkpoint that transformers loads by itself in {out}")


def _direction(folder: Path, emotion: str, layers: str | None, site: str) -> tuple[str, Any, list[int] | None]:
    """The label value, its directions, and the layers asked for, all of which the folder has."""
    wanted = layer_list(layers) if layers is not None else None
    dirs, label = labelled(folder)
    aim = value_of(label, emotion, dirs[label].values.tolist(), folder)
    for dim, asked in (("layer", wanted or []), ("sublayer", [site])):
        held = dirs[dim].values.tolist() if dim in dirs.dims else asked
        for value in asked:
            if value not in held:
                raise unknown(dim, value, held, str(folder))
    return aim, dirs.sel({label: aim}), wanted


def _middle(lm: LanguageModel) -> list[int]:
    """The middle half of the layers."""
    n = lm.sites.n_layers
    return list(range(n // 4, max(n // 4 + 1, (3 * n) // 4)))


def _length(strength: float | None, vector: xr.DataArray, wanted: list[int] | None, site: str) -> float:
    """The length of an addition; without one, the error says how long the differences are that the directions came from."""
    if strength is not None:
        return finite(strength, "--strength")
    hint = ""
    if "norm" in vector.coords:
        norms = vector["norm"].sel(sublayer=site) if "sublayer" in vector["norm"].dims else vector["norm"]
        norms = norms.sel(layer=wanted) if wanted and "layer" in norms.dims else norms
        hint = (
            f"; the differences behind these directions are {float(norms.min()):.3g} to {float(norms.max()):.3g} long"
        )
    raise EmotraceError(f"--strength: say how long each addition to {site} is to be{hint}.")


def _added(circuit: Any, folder: Path, emotion: str, strength: float, **positions: Any) -> tuple[str, list[Any]]:
    """A label value of a circuit, and the edits that add its components."""
    aim = value_of(circuit.label, emotion, circuit.labels, folder)
    if aim not in circuit.components[circuit.label].astype(str).tolist():
        raise EmotraceError(f"{folder}: the circuit of {circuit.label} {aim!r} has no components.")
    edits = circuit.edits(finite(strength, "--strength"), **positions)
    return aim, [replace(e, vector=e.vector.sel({circuit.label: aim})) for e in edits]


def _only(edits: Sequence[Any], layers: list[int], folder: Path) -> list[Any]:
    """The edits in some layers."""
    held = sorted({layer for e in edits for layer in e.layers})
    for layer in layers:
        if layer not in held:
            raise unknown("layer", layer, held, str(folder))
    inside = [(e, [layer for layer in e.layers if layer in layers]) for e in edits]
    return [replace(e, layers=some) for e, some in inside if some]


def _side_by_side(
    lm: LanguageModel,
    turns: Sequence[list[dict[str, str]]],
    edits: Sequence[Any],
    name: str,
    options: dict[str, Any],
) -> None:
    """Print every prompt, the reply to it, and the reply under edits."""
    from emotrace.edits import check
    from emotrace.forwards.generation import generate

    check(edits, lm.sites)
    plain, edited = (generate(lm, turns, some, progress=False, **options) for some in ([], edits))
    for turn, a, b in zip(turns, plain, edited, strict=True):
        typer.echo(f"prompt:   {turn[-1]['content']}\nbaseline: {a['gen_text']}\n{name + ':':<10}{b['gen_text']}\n")
