"""Mixes: flags by which a command is told of vectors and how they are mixed, and the files they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emotrace.cli.options import Positions, finite, layer_list, span
from emotrace.labels import EmotraceError, unknown
from emotrace.sites import LanguageModel

if TYPE_CHECKING:
    import xarray as xr

Vectors = Annotated[
    Path, typer.Option(help="folder of vectors, as emotrace saves them or as Emotion Vectors published")
]


def vectors_of(folder: Path, model: LanguageModel | None = None) -> xr.DataArray:
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


@dataclass(frozen=True, kw_only=True)
class Addition:
    """How a mixture of vectors is added, and where."""

    strength: Annotated[float, typer.Option(help="factor of the mixture")] = 1.0
    scale: Annotated[str, typer.Option(help="raw | unit | rms | share: what a strength of 1 is")] = "raw"
    site: Annotated[str | None, typer.Option(help="default: the site that the vectors say")] = None
    layers: Annotated[str | None, typer.Option(help="e.g. 2-4 or 1,3; default all that the vectors have")] = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `emotrace.edits.mixture`.

        Raises:
            EmotraceError: for an unknown scale, layers that are none, and a strength that is no number.
        """
        from emotrace.edits.mixtures import SIZES

        if self.scale not in SIZES:
            raise unknown("scale", self.scale, SIZES, "--scale")
        layers = None if self.layers is None else layer_list(self.layers)
        strength = finite(self.strength, "--strength")
        return {"strength": strength, "scale": self.scale, "site": self.site, "layers": layers}


@dataclass(frozen=True, kw_only=True)
class PlacedAddition(Addition):
    """How a mixture of vectors is added, where, and at which positions."""

    positions: Positions = "steer"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `emotrace.edits.mixture`."""
        return {**super().options, "positions": span(self.positions)}
