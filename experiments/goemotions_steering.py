"""Steering from labelled texts: which coordinates tell an emotion from neutral, what adding them does, and what it costs.

The method of the GoEmotions steering pipeline, with what it lacks:

1. Texts with exactly one label; a part of each label is held out.
2. The last token of each text at the end of every block. For every emotion against neutral: mean difference, Welch's t with
   Benjamini–Hochberg over all coordinates, Cohen's d; how well each way of making a vector (difference, first component, pairs,
   probe) tells the held-out texts apart.
3. On trial queries a sweep of doses of the differences; the dose with most fluent replies on target is chosen. Sparse variants
   (the largest coordinates, raw as published and by Cohen's d) and the part that emotions do not share are compared with the
   whole difference at the strength of equal KL.
4. The test queries, once: the published doses, the chosen one, the emotion asked in words, random vectors, those of other
   emotions and those from shuffled labels, all of the same length. Which emotion each vector raises; where the curve collapses.
5. TruthfulQA (MC1, MC2) plain and under each emotion's vector at the chosen dose.

Run it again with the same arguments to continue it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import coordinate_figures as coordinates
import numpy as np
import pandas as pd
import typer
import vector_claims
import vector_figures as figures
import vector_study as study
import xarray as xr

import emotrace as et
from emotrace import directions, disk, dose, extraction, replies, report
from emotrace.cli.groups import Answering, Judging, LoadingAnywhere, grouped
from emotrace.cli.options import CausalModel, Folder, names, numbers
from emotrace.directions.vectors import METHODS
from emotrace.disk import write_json, write_rows
from emotrace.report.figures import Shown
from emotrace.run import Run, records
from emotrace.store import Activations
from emotrace.suite import relabelled, truthful

HELD_OUT = 0.25
"""Share of the texts of each label that vectors are not made from."""
DOSES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Of the sweep; what is added to a residual stream stays there, so the additions of all layers add up."""
RESAMPLES = 1000
"""Bootstrap draws of an AUROC."""


@grouped
def main(
    *,
    model: CausalModel = "data/tiny_model",
    train: Annotated[
        str, typer.Option(help="texts in a form of GoEmotions: file, folder or hub id")
    ] = "data/goemotions_sample.csv",
    trial: Annotated[Path, typer.Option(help="queries to choose the dose on")] = Path("data/emotion_query_sample.json"),
    test: study.TestQueries = Path("data/emotion_query_plus_sample.json"),
    questions: Annotated[
        str, typer.Option(help="TruthfulQA, multiple_choice form; none leaves it out")
    ] = "data/truthfulqa_mc_sample.json",
    judging: Judging,
    out: Folder = Path(
        "runs/goemotions_steering"
    ),
    limit: Annotated[int | None, typer.Option(help="texts of a label, queries of an emotion, questions")] = None,
    text_limit: Annotated[int | None, typer.Option(help="texts of a label, where other than --limit; 0: all")] = None,
    trial_limit: study.TrialLimit = None,
    emotions: Annotated[str, typer.Option(help="labels or groups")] = "anger,disgust,fear,joy,sadness,surprise",
    against: Annotated[str, typer.Option(help="label of the texts on the other side")] = "neutral",
    grouping: Annotated[str | None, typer.Option(help="ekman | sentiment; default the labels themselves")] = None,
    keep: Annotated[int, typer.Option(min=1, help="coordinates a layer of the sparse variants")] = 50,
    scale: study.Scale = "raw",
    layers: Annotated[str | None, typer.Option(help="e.g. 2-4; default all, as published")] = None,
    doses: Annotated[str, typer.Option(help="of the sweep")] = ",".join(f"{d:g}" for d in DOSES),
    system: Annotated[str, typer.Option(help="system message of every query")] = extraction.TEMPLATES["neutral"],
    emotional: Annotated[str, typer.Option(help="of the emotion asked in words")] = extraction.TEMPLATES["emotional"],
    draws: study.Draws = 2,
    answering: Answering,
    loading: LoadingAnywhere,
) -> None:  # fmt: skip
    """Vectors from labelled texts, doses, controls, TruthfulQA and a report."""
    the_judge = judging.make()
    wanted = sorted({*numbers(doses, "--doses")})
    if draws < 1:
        raise et.EmotraceError(f"--draws {draws}: at least 1 draw of each control.")
    batch_size, seed = answering.batch_size, answering.seed

    # 1. Texts, queries and questions.
    most = limit if text_limit is None else text_limit or None  # of texts, which are cheap beside replies
    texts = et.datasets.goemotions(train, emotions=[*names(emotions), against], grouping=grouping, limit=most)
    tried, asked = (et.datasets.read_queries(path) for path in (trial, test))
    held = et.datasets.emotion_query(tried, part="held_out", limit=trial_limit or limit, seed=seed)
    study.say_shared(asked, tried, f"--test {test}", f"--trial {trial}")
    et.datasets.refuse_shared([*tried, *asked], texts, "queries", f"texts of --train {train}")
    final = et.datasets.emotion_query(asked, part="all", exclude=tried)[:limit]
    choices = [] if questions == "none" else et.datasets.read_truthfulqa(questions, "multiple_choice")[:limit]
    fit, unseen = et.datasets.hold_out(texts, HELD_OUT, seed)
    lm = loading.load(model)
    settings = {
        "experiment": "goemotions_steering", "model": lm.sites.identity, "template": lm.sites.encoder.record,
        "train": {"file": Path(train).name, "digest": texts.digest}, "trial": {"file": trial.name, "digest": held.digest},
        "test": {"file": test.name, "digest": final.digest},
        "questions": [Path(questions).name, len(choices), disk.digest([repr(q) for q in choices])],
        "judge": the_judge.name, "label_map": judging.label_map, "emotions": emotions, "against": against, "grouping": grouping,
        "keep": keep, "scale": scale, "layers": layers, "doses": wanted, "system": system, "emotional": emotional,
        "limit": limit, "text_limit": text_limit, "draws": draws, **asdict(answering),
    }  # fmt: skip
    run = Run(out, settings)
    run.keep_jobs(lm)
    it = study.Study(
        lm, the_judge, run.path("parts"), {"max_new_tokens": answering.max_new_tokens}, batch_size, seed,
        templates={"neutral": system, "emotional": emotional},
        where={"scale": scale, "layers": study.layers_of(layers)},
    )  # fmt: skip

    # 2. Vectors, and how well they tell texts apart.
    found = extraction.text_vectors(
        lm, texts, against=against, held_out=HELD_OUT, batch_size=batch_size, seed=seed, out=run.path("extraction")
    )
    vectors = found.vectors
    directions.save(vectors, run.path("vectors"))
    acts = et.open_activations(run.path("extraction", "activations.zarr"))
    aims = [str(e) for e in vectors["emotion"].values]
    apart, by_layer = _apart(acts, aims, against, fit.keys, unseen.keys, seed)
    fakes = [relabelled(run.path("extraction"), seed + 1 + draw, fit.keys) for draw in range(draws)]
    chance = pd.concat([_told(acts, fake, against, unseen.keys, seed)[0] for fake in fakes])
    apart = pd.concat([apart, chance.assign(method="shuffled labels")], ignore_index=True)
    along = {e: _along(acts.where(key=unseen.keys, emotion=[e, against]), vectors, e) for e in aims}
    significant = (found.statistics["q"] < 0.05).mean(("layer", "dim"))
    print(f"vectors of {', '.join(aims)} at {vectors.attrs['site']}, from {vectors['n'].values.tolist()} texts")

    # 3. The dose, and variants at equal cost, on trial queries.
    plain = it.plain(held)
    rows = it.respond("sweep", plain, vectors, wanted)
    own = it.prompted(held, aims, "trial")
    bounds = dose.fluency_of(lm, plain, own, batch_size)
    sweep = replies.dose_table(rows, bounds=bounds, seed=seed)
    chosen = replies.best_dose(sweep)
    k = min(keep, vectors.sizes["dim"])
    variants = {
        f"{k} largest coordinates": directions.top_k(vectors, k),
        f"{k} largest by Cohen's d": directions.top_k(vectors, k, found.statistics["d"]),
        "without what emotions share": directions.orthogonal_to(vectors, directions.base_vector(vectors)),
    }
    equal = it.equal_cost(plain, rows, sweep, variants, chosen, bounds)

    # 4. The test queries, once.
    mixed_up = [replies.norm_matched(fake, vectors) for fake in fakes]
    tested, methods = it.tested(final, vectors, chosen, draws, own, {"shuffled": mixed_up})
    curve = replies.dose_table(tested, bounds=bounds, seed=seed)
    matrix = replies.emotion_matrix(tested, chosen)

    # 5. TruthfulQA.
    truth = _truthful(it, choices, vectors, chosen, run.path("truthfulqa.jsonl")) if choices else {}
    tables: dict[str, tuple[pd.DataFrame, str]] = {
        **study.tables(methods, curve, sweep, equal),
        "texts": (
            apart,
            "Held-out texts, AUROC by way of making the vector: mean over layers, and the highest of them, which is optimistic. "
            "Intervals: bootstrap over texts. Shuffled labels: the difference, one line a draw.",
        ),
        "auroc": (by_layer, "Held-out texts, AUROC of the difference by layer; intervals: bootstrap over texts."),
    }
    if truth:
        tables["truthfulqa"] = (pd.DataFrame(truth["rows"]), truth["note"] or "Questions; intervals: bootstrap.")
    result: dict[str, Any] = {
        "judge": {"name": the_judge.name, "usage": getattr(the_judge, "usage", None)}, "model": lm.sites.identity,
        "queries": {"train": study.counts(tried), "test": study.counts(asked, tried)},
        "n": {
            "texts": len(fit), "texts_held_out": len(unseen), "trial": len(held), "test": len(final),
            "questions": len(choices),
        },
        "texts_of": dict(zip(aims, vectors["n"].values.tolist(), strict=True)),
        "along": along, "share_significant": {e: float(significant.sel(emotion=e)) for e in aims},
        "chosen": {"dose": chosen, "kl": equal[0]["kl"]}, "fluency": {"bounds": bounds}, "collapse": replies.collapse(curve),
        "diagonal": replies.diagonal(matrix), "matrix": matrix.to_dict("index"), "note": truth.get("note"),
        **{name: records(table) for name, (table, _) in tables.items()},
        **vector_claims.claimed(methods, the_judge, lm, seed),
    }  # fmt: skip
    result["warnings"] = study.warnings(lm, the_judge, result) + ([truth["note"]] if truth.get("note") else [])
    write_json(run.path("report.json"), result)
    answered = study.generations(tested, methods, chosen)
    write_rows(run.path("generations.jsonl"), answered)
    run.finish()
    differences = found.statistics["difference"]
    facts = [*study.facts(result), *_facts(apart, result)]
    shown = {
        "auroc": coordinates.told_by_layer(by_layer, against),
        "doses": figures.doses(
            curve, chosen, f"Test queries ({test.name})", f"{study.BOUNDS} Intervals: over queries."
        ),
        "sweep": figures.doses(sweep, chosen, "Trial queries", "The sweep on which the dose was chosen."),
        "matrix": figures.matrix(matrix, len(final), chosen),
        "differences": coordinates.sorted_differences(differences, against),
        "largest": coordinates.largest(differences, k),
        "geometry": figures.geometry(vectors),
        "neighbours": coordinates.neighbours(vectors, seed),
    }  # fmt: skip
    page = report.publish(
        run.out, result, [Shown(name, "", figure) for name, figure in shown.items()], tables, run.manifest,
        report.Page(title="Steering from labelled texts", facts=facts, replies=answered, seed=seed),
    )  # fmt: skip
    print("\n".join(facts))
    print(f"report: {page}")


def _along(acts: Activations, vectors: xr.DataArray, emotion: str) -> dict[str, float]:
    """How much further held-out texts of an emotion lie along its vector than the neutral ones, by layer of what is stored."""
    p = directions.project(acts, vectors.sel(emotion=[emotion]))
    mine = p["emotion"] == emotion
    gap = (p.where(mine).mean("token") - p.where(~mine).mean("token")).mean(("direction", "sublayer"))
    return {str(layer): float(value) for layer, value in zip(gap["layer"].values, gap.values, strict=True)}


def _apart(
    acts: Activations, aims: list[str], against: str, fit: Any, unseen: Any, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUROC on held-out texts by way of making the vector and emotion; that of the difference by layer."""
    found = {
        method: _told(
            acts, directions.vectors(acts, method, against=against, values=aims, accepted=fit, seed=seed), against,
            unseen, seed,
        )
        for method in METHODS
    }  # fmt: skip
    return pd.concat([table.assign(method=m) for m, (table, _) in found.items()]), found["difference"][1]


def _told(
    acts: Activations, made: xr.DataArray, against: str, unseen: Any, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUROC of each emotion on held-out texts, with intervals over both sides' texts: mean over layers, and by layer."""
    scores = directions.auroc(acts, made, against=against, accepted=unseen).squeeze("sublayer", drop=True)
    layers, lines, by_layer = scores["layer"].values.tolist(), [], []
    for e in scores["emotion"].values.tolist():
        mine = scores.sel(emotion=e).values
        low, high = _interval(acts.where(key=unseen, emotion=[e, against]), made.sel(emotion=[e]), e, seed)
        n = {"n": int(scores.sel(emotion=e)["n"]), "n_against": int(scores.attrs["n_against"])}
        lines.append({
            "emotion": e, "auroc": float(mine.mean()), "lo": low[-1], "hi": high[-1], "highest": float(mine.max()),
            "highest_layer": layers[int(np.argmax(mine))], **n,
        })  # fmt: skip
        by_layer += [
            {"emotion": e, "layer": layer, "auroc": float(value), "lo": lo, "hi": hi, **n}
            for layer, value, lo, hi in zip(layers, mine, low, high, strict=False)
        ]
    return pd.DataFrame(lines), pd.DataFrame(by_layer)


def _interval(acts: Activations, vector: xr.DataArray, emotion: str, seed: int) -> tuple[list[float], list[float]]:
    """The 95 % interval of the AUROC of every layer, and last of their mean: texts of both sides are drawn anew."""
    p = directions.project(acts, vector).squeeze(("direction", "sublayer"), drop=True).transpose("token", "layer")
    mine = p["emotion"].values == emotion
    one, other = p.values[mine], p.values[~mine]
    rng = np.random.default_rng(seed)
    first, second = (rng.multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES) / len(x) for x in (one, other))
    found = []
    for a, b in zip(one.T, other.T, strict=True):
        wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
        found.append(((first @ wins) * second).sum(1))
    drawn = np.array([*found, np.mean(found, 0)])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=1)
    return low.tolist(), high.tolist()


def _truthful(it: study.Study, choices: list[Any], vectors: xr.DataArray, at: float, out: Path) -> dict[str, Any]:
    """MC1 and MC2 plain and under each emotion's vector, with intervals over questions."""
    options: dict[str, Any] = {"batch_size": it.batch_size, "progress": False}
    rows = truthful.multiple_choice(it.model, choices, method="none", **options)
    for e in (str(e) for e in vectors["emotion"].values):
        edits = et.edits.mixture(vectors, {e: 1.0}, strength=at, **it.where)
        rows += truthful.multiple_choice(it.model, choices, edits, method=e, **options)
    write_rows(out, rows)
    found = truthful.summary(rows, it.model, seed=it.seed)
    note = found.pop("note")
    lines = [
        {"vector": method, **{key: value for m in ("mc1", "mc2") for key, value in _line(m, scores[m]).items()}}
        for method, scores in found.items()
    ]
    return {"rows": lines, "note": note}


def _line(name: str, score: dict[str, Any]) -> dict[str, Any]:
    return {name: score["value"], f"{name}_lo": score["ci95"][0], f"{name}_hi": score["ci95"][1], "n": score["n"]}


def _facts(apart: pd.DataFrame, result: dict[str, Any]) -> list[str]:
    mine, noise = (apart.loc[apart["method"] == name] for name in ("difference", "shuffled labels"))
    said = [
        f"Held-out texts told from the others by the difference: AUROC {mine['auroc'].min():.2f} to "
        f"{mine['auroc'].max():.2f} as mean over layers ({mine['n'].min()} to {mine['n'].max()} texts an emotion): "
        + ", ".join(f"{r.emotion} {r.auroc:.2f} [{r.lo:.2f}, {r.hi:.2f}]" for r in mine.itertuples())
        + f"; by vectors from shuffled labels {noise['auroc'].min():.2f} to {noise['auroc'].max():.2f}.",
        "Vectors from texts with shuffled labels, of equal length: at most "
        f"{max(r['on_target'] or 0.0 for r in result['methods'] if r['method'].startswith('shuffled')):.1%} on target.",
    ]
    if "truthfulqa" in result:
        plain, *steered = result["truthfulqa"]
        lo, hi = min(r["mc2"] for r in steered), max(r["mc2"] for r in steered)
        said.append(
            f"TruthfulQA MC2 {plain['mc2']:.3f} plain, {lo:.3f} to {hi:.3f} under the vectors "
            f"({plain['n']} questions, zero-shot, without the usual primer)."
        )
    return said


if __name__ == "__main__":
    et.cli.experiment(main)
