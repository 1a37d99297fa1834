"""Mixes: flags by which a command is told of vectors and how they are mixed, and the files they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace.cli.options import finite, layer_list, span
from emotrace.labels import EmotraceError, unknown
from emotrace.sites import LanguageModel

Vectors = Annotated[
    Path, typer.Option(help="folder of vectors, as emotrace saves them or as Emotion Vectors published")
]
MixText = Annotated[str, typer.Option("--mix", help="weights by name: joy=1 or anger=0.5,joy=-0.5")]
Strength = Annotated[float, typer.Option(help="factor of the mixture")]
Scale = Annotated[str, typer.Option(help="raw | unit | rms | share: what a strength of 1 is")]
SiteFlag = Annotated[str | None, typer.Option("--site", help="default: the site that the vectors say")]
Layers = Annotated[str | None, typer.Option(help="e.g. 2-4 or 1,3; default all that the vectors have")]
Positions = Annotated[str, typer.Option(help="last | generated | steer | prompt | all | START:STOP")]


def vectors_of(folder: Path, model: LanguageModel | None = None) -> Any:
    """The vectors in a folder: ``directions.json`` (also in its ``vectors/``), or published ``{prefix}_{emotion}.json``.

    Raises:
        EmotraceError: for a folder that holds neither, vectors without emotions, or ones that do not fit the model.
    """
    from emotrace.directions import load
    from emotrace.interop import read_emotion_vectors

    if not folder.is_dir():
        raise EmotraceError(f"--vectors {folder} is no folder.")
    place = next((p for p in (folder, folder / "vectors") if (p / "directions.json").is_file()), None)
    found = read_emotion_vectors(folder, model=model) if place is None else load(place)
    if "emotion" not in found.dims or "layer" not in found.dims:
        raise EmotraceError(
            f"--vectors {folder} has the dims {', '.join(map(str, found.dims))}; emotion and layer needed."
        )
    return found


def where_of(scale: str, site: str | None, layers: str | None, positions: str) -> dict[str, Any]:
    """Arguments of `emotrace.edits.mixture` that the flags say."""
    from emotrace.edits.mixtures import SIZES

    if scale not in SIZES:
        raise unknown("scale", scale, SIZES, "--scale")
    return {
        "scale": scale,
        "site": site,
        "layers": None if layers is None else layer_list(layers),
        "positions": span(positions),
    }


def strength_of(strength: float) -> float:
    """The factor, unless it is no number."""
    return finite(strength, "--strength")
