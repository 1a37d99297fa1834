"""Adopt: files of one model, declared fit for another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emotrace.cli.app import app
from emotrace.cli.groups import LoadingAnywhere, grouped
from emotrace.cli.options import Model
from emotrace.files import to_folder
from emotrace.labels import EmotraceError

if TYPE_CHECKING:
    import xarray as xr

    from emotrace.circuits import Circuit
    from emotrace.edits import Edit
    from emotrace.prompt_tuning import SoftPrompt
    from emotrace.rsa import Masks

    Thing = xr.DataArray | xr.Dataset | list[Edit] | Masks | Circuit | SoftPrompt


@app.command()
@grouped
def adopt(
    *,
    folder: Annotated[
        Path, typer.Argument(help="directions, vectors, circuit, scores, masks, soft prompt or edits of another model")
    ],
    model: Model,
    out: Annotated[Path, typer.Option(help="folder of the copies")],
    loading: LoadingAnywhere,
) -> None:
    """Copy what was made with another model, declared fit for this one: the deliberate way to use it there."""
    import emotrace as et

    if out.resolve().is_relative_to(folder.resolve()):
        raise EmotraceError(f"--out {out} is {folder} or lies in it: adopted copies lie beside what they were made of.")
    to_folder(out, "--out")
    found = [file for file in sorted(folder.rglob("*.json")) if file.with_suffix(".safetensors").is_file()]
    if not found:
        raise EmotraceError(f"{folder} holds nothing of emotrace: no NAME.json with its NAME.safetensors.")
    loaded = [(file, _load(file)) for file in found]
    lm = loading.load(model)
    for file, thing in loaded:
        _save(et.adopt(thing, lm), out / file.parent.relative_to(folder), file.stem)
        typer.echo(f"{file} → {out / file.relative_to(folder)}")


def _load(file: Path) -> Thing:
    from emotrace import attribution, circuits, directions, edits
    from emotrace.bundles import read
    from emotrace.prompt_tuning import SoftPrompt
    from emotrace.rsa import Masks

    own = {"circuit": circuits.Circuit.load, "prompt": SoftPrompt.load, "edits": edits.load_edits}
    about, _ = read(file.parent, file.stem, "a result of emotrace")
    if "shape" in about:
        return Masks.load(file.parent, file.stem)
    if "variables" not in about:
        return own[file.stem](file.parent) if file.stem in own else directions.load(file.parent, file.stem)
    is_circuit = str(about.get("attrs", {}).get("content", "")).startswith("emotrace circuit")
    return circuits.Circuit.load(file.parent) if is_circuit else attribution.load_scores(file.parent, file.stem)


def _save(thing: Thing, folder: Path, name: str) -> None:
    import xarray as xr

    from emotrace import attribution, directions, edits
    from emotrace.rsa import Masks

    if isinstance(thing, xr.DataArray):
        directions.save(thing, folder, name)
    elif isinstance(thing, xr.Dataset):
        attribution.save_scores(thing, folder, name)
    elif isinstance(thing, list):
        edits.save_edits(thing, folder)
    elif isinstance(thing, Masks):
        thing.save(folder, name)
    else:
        thing.save(folder)
