"""Circuits: what neurons, heads and sublayers contribute, the circuit they make, and what it does – from file to file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emotrace.cli.app import app
from emotrace.cli.contributions import By, Readout, Scoring, one_of
from emotrace.cli.groups import LoadingAnywhere, PromptFile, grouped
from emotrace.cli.options import (
    BatchSize,
    Data,
    Directions,
    Folder,
    Limit,
    MessagesColumn,
    Model,
    PerLayerOrNone,
    Rows,
    Seed,
    TextColumn,
    Within,
    accepted_keys,
    labelled,
    names,
    numbers,
)
from emotrace.defaults import BATCH_SIZE
from emotrace.files import to_folder
from emotrace.labels import EmotraceError
from emotrace.texts import as_bytes

if TYPE_CHECKING:
    import xarray as xr

Draws = Annotated[int, typer.Option(min=0, max=10_000, help="random sets of each size")]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What components are scored on, and where the scores go."""

    data: Data
    text_column: TextColumn = None
    messages_column: MessagesColumn = None
    directions: Directions
    out: Folder
    rows: Rows = None
    limit: Limit = None
    batch_size: BatchSize = BATCH_SIZE

    def read(self, asked: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        """Prompts, directions, and what every room takes besides, read before a model is loaded.

        Args:
            asked: whether the prompts ask for an emotion.
        """
        to_folder(self.out, "--out")
        dirs, label = labelled(self.directions)
        file = PromptFile(
            data=self.data, text_column=self.text_column, messages_column=self.messages_column, limit=self.limit
        )
        prompts = (replace(file, instruction=False) if file.is_sev and not asked else file).told_apart(dirs, label)
        accepted = accepted_keys(self.rows, prompts.table)
        return prompts, dirs, {"label": label, "accepted": accepted, "batch_size": self.batch_size, "out": self.out}


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Which sets of components a curve is drawn from."""

    ks: Annotated[str | None, typer.Option(help="components per layer; default those of 1,2,4,8,16 that exist")] = None
    draws: Draws = 5
    by: By = "contrast"
    cluster: Annotated[
        str, typer.Option(help="label of prompts that the intervals draw as a whole; key: each prompt")
    ] = "skeleton_id"
    seed: Seed = 0

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the curves in `emotrace.attribution`."""
        ks = None if self.ks is None else numbers(self.ks, "--ks", int)
        return {"ks": ks, "draws": self.draws, "by": self.by, "cluster": self.cluster, "seed": self.seed}


@app.command()
@grouped
def influence(
    *,
    model: Model,
    inputs: Inputs,
    doses: Annotated[str, typer.Option(help="finite doses too, in units of σ, e.g. 0.1,0.3,0.5,0.7")] = "",
    readout_site: Annotated[str, typer.Option(help="resid_post of the last layer, or final_norm")] = "resid_post",
    loading: LoadingAnywhere,
) -> None:
    """How much each attention and MLP output moves what the stack ends in, on prompts that name no emotion."""
    import emotrace as et
    from emotrace.attribution.sublayers import READOUTS

    one_of(readout_site, READOUTS, "--readout-site")
    sizes = numbers(doses, "--doses")
    plain, dirs, common = inputs.read(asked=False)
    found = et.attribution.sublayer_influence(
        loading.load(model), plain, dirs, doses=sizes, readout_site=readout_site, **common
    )
    label, block = common["label"], [f"{site} {layer}" for layer, site in json.loads(found.attrs["reference_block"])]
    typer.echo(f"influence on {found.attrs['readout']}, along the mean direction of {block[0]} to {block[-1]}")
    typer.echo(_table(found["influence"].transpose("layer", "sublayer", label), label))
    typer.echo(f"{dict(found.sizes)} in {inputs.out}")


@app.command()
@grouped
def circuit(
    *,
    asked: Scoring,
    head_readout: Readout = None,
    neurons_per_layer: PerLayerOrNone = None,
    heads_per_layer: PerLayerOrNone = None,
    preset: Annotated[
        str | None, typer.Option(help="emotion_circuits: ranked and shared out as published; needs --influence")
    ] = None,
    influence: Annotated[Path | None, typer.Option(help="folder that `emotrace influence` wrote")] = None,
    within: Within = "skeleton_id,valence",
    loading: LoadingAnywhere,
) -> None:
    """The best neurons and heads of each layer, with what is added there: the circuit of every emotion."""
    import emotrace as et
    from emotrace.report.overlap import by_chance

    if preset is not None:
        one_of(preset, et.circuits.PRESETS, "--preset")
    if (preset is None) != (influence is None):
        raise EmotraceError(
            "--preset shares out components by --influence, a folder that `emotrace influence` wrote: give both or neither."
        )
    sizes = {"neurons_per_layer": neurons_per_layer, "heads_per_layer": heads_per_layer}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    if preset is not None and sizes:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sizes)
        raise EmotraceError(
            f"--preset {preset} decides itself how many components each layer gives; leave out {flags}."
        )
    table = None if influence is None else et.attribution.load_scores(influence, "influence")
    options: dict[str, Any] = {"preset": preset, "influence": table, "within": tuple(names(within)), **sizes}
    found = asked.ask(et.circuits.discover, loading, options, head_readout)
    typer.echo(str(found))
    overlap = found.overlap()
    for kind in overlap["kind"].values.tolist():
        mean, sd = (float(overlap[name].sel(kind=kind)) for name in ("mean", "sd"))
        typer.echo(
            f"overlap of {kind}s: Jaccard {mean:.3f} ± {sd:.3f} over {overlap.attrs['n_pairs']} pairs "
            f"({by_chance(found, kind):.3f} by chance)"
        )
    typer.echo(f"{len(found.components)} components in {asked.out}")


@app.command()
@grouped
def curves(
    *,
    contributions: Annotated[
        Path, typer.Argument(help="folder of `emotrace neurons` or `heads`, or CIRCUIT/neuron, CIRCUIT/head")
    ],
    model: Model,
    inputs: Inputs,
    what: Annotated[str, typer.Option(help="ablate the components, or add their difference vectors")] = "ablate",
    how: Annotated[str | None, typer.Option(help="of ablate: zero (default), mean or resample")] = None,
    circuit: Annotated[Path | None, typer.Option(help="of add: folder of `emotrace circuit`, for its vectors")] = None,
    sets: Sets,
    loading: LoadingAnywhere,
) -> None:
    """Does ablating or adding the best k components move the projection, and do others not? As files and curve.csv."""
    import emotrace as et
    from emotrace import provenance
    from emotrace.attribution.curves import HOW
    from emotrace.bundles import replace_file
    from emotrace.report.components import curves as csv

    one_of(what, ("ablate", "add"), "--what")
    one_of(sets.by, ("contrast", "mean"), "--by")
    if how is not None:
        one_of(how, HOW, "--how")
    if what == "add" and (how is not None or inputs.rows is not None):
        raise EmotraceError(
            "--how and --rows are of --what ablate; difference vectors are added to prompts without emotion."
        )
    if (what == "add") != (circuit is not None):
        raise EmotraceError("--what add takes its difference vectors from --circuit FOLDER, and nothing else does.")
    options = sets.options
    name, scores = _contributions(contributions)
    prompts, dirs, common = inputs.read(asked=what == "ablate")
    if what == "ablate":
        options["how"] = how or "zero"
        lm = loading.load(model)
        found = et.attribution.ablation_curve(lm, prompts, dirs, scores, **options, **common)
    else:
        assert circuit is not None
        del common["accepted"]
        added = et.Circuit.load(circuit)
        payload = added.payload.assign_attrs(provenance.of(added))
        lm = loading.load(model)
        found = et.attribution.enhancement_curve(lm, prompts, dirs, scores, payload, **options, **common)
    table = csv({f"{name} {'ablated' if what == 'ablate' else 'added'}": found})
    replace_file(inputs.out / "curve.csv", as_bytes(table.to_csv(index=False, lineterminator="\n")))
    typer.echo("change of the projection, for the best, the least telling and random components (mean of the draws)")
    typer.echo(_table(found["delta"], "k"))
    typer.echo(f"{dict(found.sizes)} in {inputs.out}, and curve.csv")


def _contributions(folder: Path) -> tuple[str, Any]:
    """``neurons`` or ``heads``, and the Dataset of that name in a folder."""
    from emotrace.attribution import load_scores

    for name in ("neurons", "heads"):
        if (folder / f"{name}.json").is_file():
            return name, load_scores(folder, name)
    raise EmotraceError(
        f"{folder} has neither neurons.json nor heads.json: give a folder that `emotrace neurons` or `emotrace heads` wrote, "
        "or neuron/ or head/ of a circuit."
    )


def _table(array: xr.DataArray, columns: str) -> str:
    """An array as text, one dim across, the others down."""
    from pandas import DataFrame

    plain = array.reset_coords(drop=True)
    down = [d for d in plain.dims if d != columns]
    table = plain.stack(row=down).transpose("row", columns).to_pandas()  # noqa: PD013 - xarray's
    assert isinstance(table, DataFrame)
    return table.to_string(float_format="{:+.4g}".format)
