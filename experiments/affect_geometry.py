"""Affect geometry: do the states of a model hold how people rate words (valence, arousal, dominance), and at which layers?

1. Words of a file of norms, in a short text (``Feeling: WORD``); states of the last token, every layer, into a labelled store.
2. Cross-validated ridge regression from the states of each layer to each dimension: r with people's ratings, of words that the
   fit has not seen, with an interval over words. The penalty is chosen inside each training part.
3. What of it is no finding about layers: the embedding of the last token alone, and what a word looks like (letters, tokens,
   runs of letters, frequency where the file has it). Differences are paired over words.
4. How well it could be predicted at all: groups of raters against each other.
5. Principal components of each layer, in which no rating took part: is the first valence, the second arousal?
6. The circumplex: words of emotions placed by predictions of fits that have not seen them; with ``--directions``, where emotion
   directions point. With ``--steer N``: replies to N plain prompts, the states moved along each axis, read by a judge.

The norms are read from your own copy (Warriner, Kuperman & Brysbaert 2013, or any CSV of words, dimensions and groups); none
are shipped. Run it again with the same arguments to continue it.

```
python experiments/affect_geometry.py --model smollm2 --norms warriner.csv --out runs/affect
```
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import affect_norms as study
import numpy as np
import pandas as pd
import typer
import xarray as xr

import emotrace as et
from emotrace import report
from emotrace.cli.groups import Loading, grouped
from emotrace.cli.guard import experiment
from emotrace.cli.options import BatchSize, Count, Folder, Model, Seed, names
from emotrace.disk import write_json
from emotrace.labels import EMOTIONS, EMOTIONS_EV, EmotraceError
from emotrace.report import style
from emotrace.report.figures import Shown
from emotrace.report.style import INK, MARKERS, SERIES, Picture
from emotrace.run import Run, records
from emotrace.sites import LanguageModel

SITE = "resid_post"
STEERED = 6
"""Layers at which states are moved."""
START = "resid_pre"
"""Of layer 0: the embedding."""
PLACED = tuple(
    dict.fromkeys((*EMOTIONS, *EMOTIONS_EV, "calm", "relaxed", "excited", "bored", "angry", "sad", "happy", "afraid"))
)
"""Words that are always among those asked, where the norms have them, and drawn by name."""


@grouped
def main(
    *,
    model: Model,
    norms: Annotated[Path, typer.Option(help="CSV: Warriner's, or word, dimensions, DIMENSION.GROUP")],
    out: Folder = Path("runs/affect_geometry"),
    dimensions: Annotated[str | None, typer.Option(help="comma-separated columns; default all of the file's")] = None,
    words: Annotated[int, typer.Option(min=50, help="drawn by seed")] = 2000,
    template: Annotated[str, typer.Option(help="text with {word} at its end")] = "Feeling: {word}",
    folds: Annotated[int, typer.Option(min=2)] = 5,
    batch_size: BatchSize = 64,
    directions: Annotated[
        Path | None, typer.Option(help="folder of `emotrace directions`, placed on the circumplex")
    ] = None,
    steer: Annotated[
        int, typer.Option(min=0, help="plain prompts that are answered with the states moved along each axis")
    ] = 0,
    steer_data: Annotated[Path, typer.Option(help="SEV file of these prompts")] = Path("data/sev.jsonl"),
    strength: Annotated[float, typer.Option(help="of steering, rms, at each of six layers up to the best")] = 1.9,
    new_tokens: Count = 24,
    loading: Loading,
    seed: Seed = 0,
) -> None:
    """Ridge, baselines, ceiling and principal components by layer, and the circumplex."""
    if template.count("{word}") != 1 or not template.endswith("{word}"):
        raise EmotraceError(f"--template {template!r}: say {{word}} once, at its end: its last token is what is read.")
    whole = study.read(norms, None if dimensions is None else names(dimensions))
    asked = study.some(whole, words, seed, list(PLACED))
    settings = {
        "experiment": "affect_geometry", "model": model, "norms": norms.name, "norms_digest": _content(norms),
        "dimensions": asked.dimensions, "words": len(asked.words), "template": template, "folds": folds, "dtype": loading.dtype,
        "bos": loading.bos, "directions": directions and directions.name, "steer": steer, "strength": strength,
        "new_tokens": new_tokens, "seed": seed,
    }  # fmt: skip
    run = Run(out, settings)
    lm = loading.load(model)
    print(lm.sites.describe())
    prompts = [template.format(word=w) for w in asked.words]
    acts = et.capture(lm, prompts, (START, SITE), batch_size=batch_size, out=run.path("activations.zarr"))
    lengths = np.array([len(ids) for ids in lm.sites.encoder.ids(prompts)])

    fold = study.folds(len(asked.words), folds, seed)
    first, layers = min(lm.sites.layers(SITE)), list(lm.sites.layers(SITE))
    x = {"embedding": states(acts, START, first), "lexical": study.lexical(asked, lengths - lengths.min() + 1)}
    base = {name: study.predicted(each, asked.values, fold) for name, each in x.items()}
    fits = {layer: study.predicted(states(acts, SITE, layer), asked.values, fold) for layer in layers}
    by_layer, baselines = scored(asked, fits, base, seed)
    ceilings = study.ceiling(asked)
    pca = pd.DataFrame([
        {"layer": layer, "component": c + 1, "dimension": d, "r": float(r[c, i])}
        for layer in layers
        for r in [study.components(states(acts, SITE, layer), asked.values)]
        for c in range(len(r)) for i, d in enumerate(asked.dimensions)
    ])  # fmt: skip

    best = {str(d): int(part.loc[part["r"].idxmax(), "layer"]) for d, part in by_layer.groupby("dimension", sort=False)}
    at = best[asked.dimensions[0]]
    axes = ridge_axes(acts, asked, [i for i in layers if at - STEERED < i <= at])
    placed = emotion_words(asked, fits[at])
    pointing = None if directions is None else directions_on(et.directions.load(directions), axes.sel(layer=at))
    steered = steer_along(lm, axes, run, steer_data, steer, strength, new_tokens) if steer else None
    result = {
        "model": {"name": lm.sites.identity["model_id"]}, "n": len(asked.words), "best_layer": best,
        "by_layer": records(by_layer), "baselines": records(baselines), "ceiling": records(ceilings),
        "words": records(placed), "directions": None if pointing is None else records(pointing),
        "steering": None if steered is None else records(steered),
    }  # fmt: skip
    write_json(run.path("report.json"), result)
    run.finish()
    said = facts(by_layer, baselines, ceilings, pca, best)
    shown = [Shown("by_layer", "By layer", by_layer_figure(by_layer, baselines, ceilings, len(asked.words)))]
    if len(asked.dimensions) > 1 and len(placed) > 2:
        shown.append(Shown("circumplex", "Circumplex", circumplex(placed, asked.dimensions, at)))
    tables: dict[str, Any] = {"by_layer": by_layer, "pca": pca, "words": placed,
                              "baselines": (baselines, "What the embedding and the look of a word predict."),
                              "ceiling": (ceilings, "Groups of raters against each other.")}  # fmt: skip
    tables |= (
        {} if pointing is None else {"directions": (pointing, "Cosines of emotion directions with the axes of ridge.")}
    )
    tables |= {} if steered is None else {"steering": (steered, "What a judge read in replies moved along an axis.")}
    page = report.publish(
        run.out, result, shown, tables, run.manifest, report.Page(title="Affect geometry", facts=said)
    )
    print("\n".join(said))
    print(f"report: {page}")


def states(acts: et.Activations, site: str, layer: int) -> np.ndarray:
    """``[word, dim]`` of one place, float64."""
    return np.asarray(acts.sel(layer=layer, sublayer=site).transpose("token", "dim").values, np.float64)


def scored(
    asked: study.Norms, fits: dict[int, np.ndarray], base: dict[str, np.ndarray], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """r by layer and dimension with its interval, and less each baseline's, paired over words; and the baselines' own."""
    below = {name: study.correlations(asked.values, found, seed) for name, found in base.items()}
    rows, own = [], []
    for layer, found in fits.items():
        draws = study.correlations(asked.values, found, seed)
        for i, dimension in enumerate(asked.dimensions):
            row: dict[str, Any] = {"layer": layer, "dimension": dimension}
            row |= dict(zip(("r", "r_lo", "r_hi"), study.interval(draws[:, i]), strict=True))
            for name, other in below.items():
                less = study.interval(draws[:, i] - other[:, i])
                row |= dict(zip((f"over_{name}", f"over_{name}_lo", f"over_{name}_hi"), less, strict=True))
            rows.append(row)
    for name, draws in below.items():
        for i, dimension in enumerate(asked.dimensions):
            found = dict(zip(("r", "r_lo", "r_hi"), study.interval(draws[:, i]), strict=True))
            own.append({"baseline": name, "dimension": dimension, **found})
    return pd.DataFrame(rows), pd.DataFrame(own)


def emotion_words(asked: study.Norms, found: np.ndarray) -> pd.DataFrame:
    """Ratings of the words of emotions, and their predictions by fits that have not seen them."""
    rows = []
    for i, word in enumerate(asked.words):
        if word in PLACED:
            people = {f"{d}_people": float(v) for d, v in zip(asked.dimensions, asked.values[i], strict=True)}
            model = {f"{d}_model": float(v) for d, v in zip(asked.dimensions, found[i], strict=True)}
            rows.append({"word": word, **people, **model})
    return pd.DataFrame(rows)


def ridge_axes(acts: et.Activations, asked: study.Norms, layers: list[int]) -> xr.DataArray:
    """``[dimension, layer, dim]``: the unit vector along which ridge, fitted on all words, reads each dimension."""
    found = np.stack([study.fitted(states(acts, SITE, layer), asked.values)[0].T for layer in layers], axis=1)
    unit = (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)
    return xr.DataArray(
        unit, dims=("dimension", "layer", "dim"), coords={"dimension": asked.dimensions, "layer": layers}
    )


def directions_on(directions: xr.DataArray, axes: xr.DataArray) -> pd.DataFrame:
    """Cosines of emotion directions at a layer with the axes that ridge found there."""
    label = str(directions.attrs.get("label", "emotion"))
    one = directions.sel(layer=int(axes["layer"]))
    one = one.sel(sublayer=SITE) if "sublayer" in one.dims else one
    vectors = one.transpose(label, "dim").values.astype(float)
    cosines = vectors @ axes.values.T / np.linalg.norm(vectors, axis=1, keepdims=True)
    return pd.DataFrame(cosines, columns=axes["dimension"].values).assign(direction=[str(v) for v in one[label].values])


def steer_along(
    lm: LanguageModel, axes: xr.DataArray, run: Run, data: Path, count: int, strength: float, new_tokens: int
) -> pd.DataFrame:
    """What a blind judge reads in replies to plain prompts, the states moved up and down each axis."""
    prompts = et.datasets.sev(data, instruction=False, emotions=("anger",))[:count]
    layers = [int(i) for i in axes["layer"].values]
    arms: dict[str, list[Any]] = {"none": []}
    for dimension in axes["dimension"].values.tolist():
        for sign, name in ((1, "up"), (-1, "down")):
            vector = axes.sel(dimension=dimension, drop=True)
            edit = et.Add(SITE, layers=layers, vector=vector, strength=sign * strength, scale="rms")
            arms[f"{dimension}_{name}"] = [edit]
    rows, judge = [], et.judges.make("lexicon")
    for arm, edits in arms.items():
        replies = et.generate(
            lm, prompts, edits, max_new_tokens=new_tokens, method=arm, out=run.path("replies", f"{arm}.jsonl")
        )
        read = pd.Series([v["predicted"] for v in judge.judge([str(r["gen_text"]) for r in replies])])
        rows.append({"arm": arm, "n": len(read), **{e: float((read == e).mean()) for e in (*EMOTIONS, "neutral")}})
    return pd.DataFrame(rows)


def facts(
    by_layer: pd.DataFrame, baselines: pd.DataFrame, ceilings: pd.DataFrame, pca: pd.DataFrame, best: dict[str, int]
) -> list[str]:
    """What was found, one sentence a dimension."""
    said, n_layers = [], by_layer["layer"].nunique()
    for dimension, layer in best.items():
        row = _of(by_layer, dimension=dimension, layer=layer).iloc[0]
        low = _of(baselines, dimension=dimension).set_index("baseline")["r"]
        top = _of(ceilings, dimension=dimension)["ceiling"]
        first = _of(pca, dimension=dimension).query("component <= 2").sort_values(by="r").iloc[-1]
        over = f"{row['over_embedding']:+.3f} [{row['over_embedding_lo']:+.3f}, {row['over_embedding_hi']:+.3f}]"
        said.append(
            f"{dimension}: r {row['r']:.3f} [{row['r_lo']:.3f}, {row['r_hi']:.3f}] at layer {layer}, the best of {n_layers}; "
            f"{over} over the embedding ({low['embedding']:.3f}); look of the word {low['lexical']:.3f}; "
            + (f"ceiling {top.min():.3f} to {top.max():.3f}; " if len(top) else "")
            + f"of the first two components PC{int(first['component'])} of layer {int(first['layer'])} is nearest "
            f"(|r| {first['r']:.3f})"
        )
    return said


def _of(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """The rows with these values."""
    return table.loc[np.logical_and.reduce([table[name] == value for name, value in wanted.items()])]


def by_layer_figure(by_layer: pd.DataFrame, baselines: pd.DataFrame, ceilings: pd.DataFrame, n: int) -> Picture:
    """r of each dimension by layer, with intervals, the baselines and the ceiling."""
    top = by_layer.loc[by_layer["r"].idxmax()]
    caption = (
        f"r of cross-validated ridge predictions with people's ratings, {n} words; bands: 95 % bootstrap intervals over words. "
        "Dotted: the embedding of the last token alone; dashed: the look of the word; grey: ceiling by groups (largest)."
    )
    dimensions = list(dict.fromkeys(by_layer["dimension"]))
    claim = f"{str(top['dimension']).capitalize()} is predicted best, r {top['r']:.2f} at layer {int(top['layer'])}"
    figure = style.canvas(3.6, claim, caption)
    panels = np.atleast_1d(figure.subplots(1, len(dimensions), sharey=True))
    for i, (ax, dimension) in enumerate(zip(panels, dimensions, strict=True)):
        part, colour = _of(by_layer, dimension=dimension), SERIES[i % len(SERIES)]
        style.axes(ax, dimension, "layer", "r" if i == 0 else "")
        ax.fill_between(part["layer"], part["r_lo"], part["r_hi"], color=colour, alpha=0.2, linewidth=0)
        ax.plot(part["layer"], part["r"], color=colour, marker=MARKERS[i % len(MARKERS)], markersize=3, linewidth=1.6)
        for name, look in (("embedding", ":"), ("lexical", "--")):
            value = _of(baselines, dimension=dimension, baseline=name)["r"].iloc[0]
            ax.axhline(value, color=INK, linestyle=look, linewidth=1)
        most = _of(ceilings, dimension=dimension)["ceiling"]
        if len(most):
            ax.axhline(most.max(), color="#999999", linewidth=1.4)
        ax.set_ylim(0, 1)
    return figure


def circumplex(placed: pd.DataFrame, dimensions: list[str], layer: int) -> Picture:
    """Words of emotions by their first two dimensions: people's ratings, and the model's predictions."""
    a, b = dimensions[:2]
    r = [
        float(np.corrcoef(placed[f"{d}_people"], placed[f"{d}_model"])[0, 1]) if len(placed) > 2 else float("nan")
        for d in (a, b)
    ]
    claim = f"Words of emotions by {a} and {b}"
    caption = f"{len(placed)} words; model: predictions of layer {layer} by fits without the word; r {r[0]:.2f} and {r[1]:.2f}."
    figure = style.canvas(4.8, claim, caption)
    for i, (ax, who) in enumerate(zip(figure.subplots(1, 2), ("people", "model"), strict=True)):
        style.axes(ax, who, a, b if i == 0 else "")
        ax.scatter(placed[f"{a}_{who}"], placed[f"{b}_{who}"], color=SERIES[i], s=14)
    for ax, who in zip(figure.axes, ("people", "model"), strict=True):
        style.names(
            figure, ax, [(str(p["word"]), p[f"{a}_{who}"], p[f"{b}_{who}"]) for p in placed.to_dict("records")], 7
        )
    return figure


def _content(file: Path) -> str | None:
    """Hash of a file; None where there is none, which its reader says."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None


if __name__ == "__main__":
    experiment(main)
