"""Ask a store: activations are captured once, here or on a server; all that follows is asked of the store, without a model.

1. With ``--model``: prompts are captured at their last token (heads ``z``, neurons, the residual stream), directions are fitted
   on one half of the skeletons, and what these are to heads and neurons (covectors) is computed where the weights are.
2. Always: the other half is asked. Slices by label say where emotions part, and in which themes; then heads, a circuit, and
   the geometry of the emotions layer by layer. No model is loaded for this, and no model library is imported.

```
python experiments/ask_store.py --model data/tiny_model --data data/sev.jsonl --out runs/asked
python experiments/ask_store.py --model ID --remote ndif --data data/sev.jsonl --out runs/asked      # the weights stay there
python experiments/ask_store.py --out runs/asked                                                     # asks again
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
import xarray as xr

import emotrace as et
from emotrace import arguments, attribution, circuits, rsa
from emotrace.cli.groups import LoadingAnywhere, grouped
from emotrace.cli.guard import experiment
from emotrace.cli.options import BatchSize, Folder, Limit, Seed, SevFile
from emotrace.defaults import BATCH_SIZE, HEADS_PER_LAYER, NEURONS_PER_LAYER
from emotrace.disk import write_json
from emotrace.labels import EmotraceError
from emotrace.store import Activations

SITES = ("z", "neuron", "resid_mid", "resid_post")
HALVES = ("fit", "asked")
"""Values of the label ``half``: of prompts that directions are fitted on, and of those that are asked."""
SHOWN = 5
"""Heads shown of each emotion."""


@grouped
def main(
    *,
    out: Folder = Path("runs/asked"),
    model: Annotated[
        str | None, typer.Option(help="hub id, directory or GGUF file; without it what was captured is asked")
    ] = None,
    data: SevFile = Path("data/sev.jsonl"),
    limit: Limit = 32,
    neurons: Annotated[int, typer.Option(help="neurons of each layer of the circuit")] = NEURONS_PER_LAYER,
    heads: Annotated[int, typer.Option(help="heads of each layer of the circuit")] = HEADS_PER_LAYER,
    batch_size: BatchSize = BATCH_SIZE,
    loading: LoadingAnywhere,
    seed: Seed = 0,
) -> None:
    """Capture once, then ask the store: slices, heads, circuit, RSA."""
    if model is not None:
        capture(out, loading.load(model), data, limit, batch_size, seed)
    if not (out / "covectors").is_dir():
        raise EmotraceError(f"{out} holds no captured activations yet: say --model, here or with --remote.")
    ask(out, neurons, heads)


def capture(out: Path, lm: Any, data: Path, limit: int | None, batch_size: arguments.BatchSize, seed: int) -> None:
    """Activations, directions and covectors, into a folder; the same call again continues."""
    prompts = et.datasets.sev(data, limit=limit)
    fit, _ = et.datasets.split(prompts, 0.5, seed)
    halved = [{**p.labels, "half": HALVES[p.labels["skeleton_id"] not in fit]} for p in prompts]
    prompts = et.datasets.Prompts.of(
        [{"key": p.key, "messages": p.messages, **labels} for p, labels in zip(prompts, halved, strict=True)]
    )
    sites = [site for site in SITES if lm.sites.has(site)]
    plan = et.capture.plan(lm, prompts, sites, batch_size=batch_size, components=True)
    print(f"capture of {', '.join(sites)}: {plan}")
    acts = et.capture(
        lm, prompts, sites, batch_size=batch_size, components=True, seed=seed, out=out / "activations.zarr"
    )
    directions = et.directions.centered_mean(acts.where(half="fit"), within=("skeleton_id", "valence"))
    et.directions.save(directions, out / "directions")
    attribution.covectors(lm, directions, out=out / "covectors")


def ask(out: Path, neurons: int, heads: int) -> dict[str, Any]:
    """Everything that is asked of a folder, printed and written; no model takes part."""
    acts = et.open_activations(out / "activations.zarr").where(half="asked")
    directions = et.directions.load(out / "directions")
    covectors = attribution.load_scores(out / "covectors", "covectors")
    print(
        f"{len(acts)} rows of {len(set(acts.column('skeleton_id')))} skeletons that no direction was fitted on, of {acts.path}"
    )

    gap = own_less_others(acts, directions)
    print(
        "\nprojection on the own emotion's direction less that on the others', as a share of the residual's length, by layer:"
    )
    print(gap.mean("emotion").to_pandas().round(3).to_string())
    where = gap.sel(sublayer="resid_post").mean("emotion")
    best = int(where["layer"].values[int(where.values.argmax())])

    themes = by_theme(acts.where(layer=best, sublayer="resid_post"), directions)
    print(f"\nat resid_post of layer {best}, where that is largest, by theme of the scenario:")
    print(themes.round(3).to_string())

    scores = attribution.head_contributions(acts, covectors)
    best_heads = highest(scores)
    print("\nheads that raise the projection on their emotion most beyond the others':")
    print(best_heads.round(3).to_string(index=False))

    circuit = circuits.discover(acts, covectors, neurons_per_layer=neurons, heads_per_layer=heads)
    circuit.save(out / "circuit")
    overlap = circuit.overlap()
    print(f"\ncircuit: {len(circuit.components)} components, kept in {out / 'circuit'}")

    geometry = by_layer(acts)
    print("\ncosine geometry of the emotions in the neurons of each layer: Kendall's τ-b with that of the last")
    print(geometry.to_pandas().round(3).to_string())

    report = {
        "store": str(acts.path), "selection": acts.selection, "plan_digest": acts.attrs["plan_digest"], "rows": len(acts),
        "gap": {str(k): float(v) for k, v in zip(where["layer"].values, where.values, strict=True)}, "layer": best,
        "themes": {str(k): float(v) for k, v in themes.mean(axis=1).items()},
        "heads": best_heads.to_dict("records"), "components": len(circuit.components),
        "overlap": {str(k): float(v) for k, v in zip(overlap["kind"].values, overlap["mean"].values, strict=True)},
        "geometry": {str(k): float(v) for k, v in zip(geometry["layer"].values, geometry.values, strict=True)},
    }  # fmt: skip
    write_json(out / "report.json", report)
    return report


def own_less_others(acts: Activations, directions: xr.DataArray) -> xr.DataArray:
    """``[emotion, layer, sublayer]``: mean projection of the prompts of e on v_e less on the others, as a share of the length."""
    p = et.directions.project(acts, directions)
    mean = p.groupby("emotion").mean()  # by the emotion of the prompts; `direction` is that of the vector
    names = mean["emotion"].values
    own = xr.concat([mean.sel(emotion=e, direction=e, drop=True) for e in names], pd.Index(names, name="emotion"))
    gap = own - (mean.sum("direction") - own) / (len(names) - 1)
    length = et.directions.mean_rms(acts) * directions.sizes["dim"] ** 0.5
    return (gap / length).transpose("emotion", "layer", "sublayer")


def by_theme(acts: Activations, directions: xr.DataArray) -> pd.DataFrame:
    """Theme × emotion: the same, of the prompts of each theme by themselves."""
    found = {}
    for theme in sorted(set(acts.column("theme"))):
        found[theme] = own_less_others(acts.where(theme=theme), directions).squeeze(drop=True).to_pandas()
    return pd.DataFrame(found).T


def highest(scores: xr.Dataset) -> pd.DataFrame:
    """The heads of highest contrast of each emotion."""
    table = scores["contrast"].to_dataframe().reset_index().filter(["emotion", "layer", "head", "contrast"])
    ordered = table.sort_values(["emotion", "contrast"], ascending=[True, False])
    return ordered.groupby("emotion", sort=False).head(SHOWN)


def by_layer(acts: Activations) -> xr.DataArray:
    """``[layer]``: how alike the emotions' geometry in the neurons of a layer is to that in the last."""
    patterns = rsa.patterns(acts, over=None, average=True, variable="neuron")
    rdms = rsa.rdm(patterns, "cosine", features="unit")
    found = rsa.compare(rdms, rdms.isel(layer=-1, drop=True))["correlation"]
    return found.squeeze(drop=True)


if __name__ == "__main__":
    experiment(main)
