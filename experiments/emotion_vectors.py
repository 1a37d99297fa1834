"""Emotion vectors: make them from a model's own answers, add mixtures of them, and see what each dose does.

The method of Emotion Vectors (arXiv 2502.04075), with the controls that it lacks:

1. The queries are read; repeats and what the two files share are counted, repeats dropped, a part of each emotion held out.
2. The model answers every query of the first part twice, neutrally and in the query's emotion. Both answers are fed back,
   and the output of the attention's projection is averaged over the steps of the answer; the mean difference over queries is
   the emotion's vector, their mean the base vector. Whether asking made answers emotional is judged and said first.
3. On the held-out queries a fine sweep of doses: which share of replies a blind judge reads as the emotion aimed at, how many
   drift to another one, how fluent they are, what KL from the un-edited model they cost. The dose with most fluent replies on
   target is chosen. Vectors without all but their largest coordinates, and without the base vector, are compared with whole
   ones at the strength of equal KL.
4. The test queries, once: the published doses, the chosen one, the emotion asked in words, random vectors and those of other
   emotions of the same length; which emotion each vector raises (emotion × emotion); where the curve collapses; what replies
   look like under multiples of the base vector.

Run it again with the same arguments to continue it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import coordinate_figures as coordinates
import pandas as pd
import typer
import vector_claims
import vector_figures as figures
import vector_study as study
import xarray as xr

import emotrace as et
from emotrace import directions, dose, extraction, interop, replies, report
from emotrace.cli.groups import Answering, Judging, LoadingAnywhere, grouped
from emotrace.cli.options import CausalModel, Folder, numbers
from emotrace.disk import write_json, write_rows
from emotrace.report.figures import Shown
from emotrace.run import Run, records
from emotrace.store import Activations

TOP = 0.1
"""Share of the coordinates that the sparse variant keeps."""
FIRST = 5
"""Tokens of an answer that are its opening."""


@grouped
def main(
    *,
    model: CausalModel = "data/tiny_model",
    train: Annotated[Path, typer.Option(help="queries by emotion, to make vectors from")] = Path(
        "data/emotion_query_sample.json"
    ),
    test: study.TestQueries = Path("data/emotion_query_plus_sample.json"),
    judging: Judging,
    out: Folder = Path("runs/emotion_vectors"),
    limit: Annotated[int | None, typer.Option(help="queries of each emotion, and of the test file")] = None,
    trial_limit: study.TrialLimit = None,
    site: Annotated[str, typer.Option(help="where vectors are taken and added")] = "o_proj_out",
    over: Annotated[str, typer.Option(help="mean_generated | last | mean_all")] = "mean_generated",
    scale: study.Scale = "raw",
    doses: Annotated[str, typer.Option(help="of the fine sweep")] = ",".join(f"{d:g}" for d in dose.FINE),
    neutral: Annotated[str, typer.Option(help="system message of the neutral answer")] = extraction.TEMPLATES[
        "neutral"
    ],
    emotional: Annotated[str, typer.Option(help="of the emotional one, with {emotion}")] = extraction.TEMPLATES[
        "emotional"
    ],
    draws: study.Draws = 2,
    answering: Answering,
    loading: LoadingAnywhere,
) -> None:
    """Emotion vectors from answers, doses, controls and a report."""
    the_judge = judging.make()
    wanted, batch_size, seed = sorted(numbers(doses, "--doses", some=True)), answering.batch_size, answering.seed
    decoding = {"max_new_tokens": answering.max_new_tokens}
    if draws < 1:
        raise et.EmotraceError(f"--draws {draws}: at least 1 draw of each control.")

    # 1. Queries.
    queries, others = et.datasets.read_queries(train), et.datasets.read_queries(test)
    fit = et.datasets.emotion_query(queries, part="fit", limit=limit, seed=seed)
    held = et.datasets.emotion_query(queries, part="held_out", limit=trial_limit or limit, seed=seed)
    study.say_shared(others, queries, f"--test {test}", f"--train {train}")
    asked = et.datasets.emotion_query(others, part="all", exclude=queries)[:limit]
    lm = loading.load(model)
    templates = {"neutral": neutral, "emotional": emotional}
    settings = {
        "experiment": "emotion_vectors", "model": lm.sites.identity, "template": lm.sites.encoder.record,
        "train": {"file": train.name, "fit": fit.digest, "held_out": held.digest},
        "test": {"file": test.name, "digest": asked.digest}, "judge": the_judge.name, "label_map": judging.label_map,
        "site": site,
        "over": over, "scale": scale, "templates": templates, "doses": wanted, "limit": limit,
        "draws": draws,
        **asdict(answering),
    }  # fmt: skip
    run = Run(out, settings)
    run.keep_jobs(lm)
    it = study.Study(
        lm, the_judge, run.path("parts"), decoding, batch_size, seed,
        templates=templates, where={"site": site, "scale": scale},
    )  # fmt: skip

    # 2. Vectors, and what they share.
    vectors = extraction.answer_vectors(
        lm, fit, site=site, over=over, templates=templates, decoding=decoding,  # type: ignore[arg-type]
        batch_size=batch_size, seed=seed, out=run.path("extraction"),
    )  # fmt: skip
    elicited = it.elicited(run.path("extraction", "answers.jsonl"))
    print(study.elicitation(elicited)[0])
    base = directions.base_vector(vectors)
    directions.save(vectors, run.path("vectors"))
    directions.save(base, run.path("vectors"), "base")
    if vectors["layer"].values.tolist() == list(range(vectors.sizes["layer"])):
        interop.write_emotion_vectors(vectors, run.path("published"), Path(lm.sites.identity["model_id"]).name)
    emotions = [str(e) for e in vectors["emotion"].values]
    acts = et.open_activations(run.path("extraction", "activations.zarr"))
    within = _within(acts, vectors)
    print(f"vectors of {', '.join(emotions)} at {site}, from {vectors['n'].values.tolist()} pairs of answers")

    # 3. The dose, and variants at equal cost, on held-out queries.
    trial = it.plain(held)
    rows = it.respond("sweep", trial, vectors, wanted)
    bounds = it.bounds(fit, run.path("extraction", "answers.jsonl"))
    sweep = replies.dose_table(rows, bounds=bounds, seed=seed)
    chosen = replies.best_dose(sweep)
    few = max(1, round(TOP * vectors.sizes["dim"]))
    variants = {
        f"{few} largest coordinates": directions.top_k(vectors, few),
        "without the base vector": directions.orthogonal_to(vectors, base),
    }
    equal = it.equal_cost(trial, rows, sweep, variants, chosen, bounds)

    # 4. The test queries, once.
    own = study.emotional(run.path("extraction", "answers.jsonl"))
    tested, methods = it.tested(asked, vectors, chosen, draws, own)
    curve = replies.dose_table(tested, bounds=bounds, seed=seed)
    matrix = replies.emotion_matrix(tested, chosen)
    under_base = pd.DataFrame([it.under_base(it.plain(asked), base, k) for k in dose.DOSES])
    tables: dict[str, tuple[pd.DataFrame, str]] = {
        "within": (within, "Where in an answer the vector is: how much further the tokens of emotional answers lie along it than "
                           "those of neutral ones, in lengths of the vector, mean over answers and layers."),
        **study.tables(methods, curve, sweep, equal), "base": (under_base, "Replies under the base vector."),
    }  # fmt: skip
    result: dict[str, Any] = {
        "judge": {"name": the_judge.name, "usage": getattr(the_judge, "usage", None)}, "model": lm.sites.identity,
        "queries": {"train": study.counts(queries), "test": study.counts(others, queries)},
        "n": {"fit": len(fit), "held_out": len(held), "test": len(asked)},
        "pairs": dict(zip(emotions, vectors["n"].values.tolist(), strict=True)), "elicited": elicited,
        "chosen": {"dose": chosen, "kl": equal[0]["kl"]}, "fluency": {"bounds": bounds}, "collapse": replies.collapse(curve),
        "diagonal": replies.diagonal(matrix), "matrix": matrix.to_dict("index"),
        **{name: records(table) for name, (table, _) in tables.items()},
        **vector_claims.claimed(methods, the_judge, lm, seed),
    }  # fmt: skip
    result["warnings"] = study.warnings(lm, the_judge, result)
    write_json(run.path("report.json"), result)
    answered = study.generations(tested, methods, chosen)
    write_rows(run.path("generations.jsonl"), answered)
    run.finish()
    shown = {
        "doses": figures.doses(
            curve, chosen, f"Test queries ({test.name})", f"{study.BOUNDS} Intervals: over queries."
        ),
        "sweep": figures.doses(sweep, chosen, "Held-out queries", "The sweep on which the dose was chosen."),
        "matrix": figures.matrix(matrix, len(asked), chosen),
        "geometry": figures.geometry(vectors),
        "neighbours": coordinates.neighbours(vectors, seed),
    }  # fmt: skip
    page = report.publish(
        run.out, result, [Shown(name, "", figure) for name, figure in shown.items()], tables, run.manifest,
        report.Page(title="Emotion vectors", facts=study.facts(result), replies=answered, seed=seed),
    )  # fmt: skip
    print("\n".join(study.facts(result)))
    if lm.sites.remote is not None:
        print(f"{lm.sites.identity['backend']}: {lm.sites.remote.traffic}")
    print(f"report: {page}")


def _within(acts: Activations, vectors: xr.DataArray) -> pd.DataFrame:
    """By emotion and part of the answer, out of the store: projection of emotional answers less that of neutral ones."""
    site = vectors.attrs["site"]
    at = acts.column("position_from_end")
    parts = {"all stored": at >= at.min(), f"first {FIRST}": (at >= 0) & (at < FIRST), "later": at >= FIRST}
    lines = []
    for emotion in vectors["emotion"].values.tolist():
        v = vectors.sel(emotion=[emotion])
        for part, rows in parts.items():
            mine = rows & (acts.column("emotion") == emotion)
            if set(acts.column("condition")[mine]) != {"neutral", "emotional"}:
                continue  # no answer is that long
            some = acts.where(emotion=emotion, position_from_end=slice(int(at[rows].min()), int(at[rows].max())))
            p = directions.project(some, v / v["norm"] ** 2, variable=site if site in acts.variables else "residual")
            means: Any = p.to_dataframe("p").groupby(["condition", "key"])[["p"]].mean()
            means = means.groupby("condition")["p"].mean()
            answers = len(set(some.column("key")))
            lines.append(
                {
                    "emotion": emotion,
                    "tokens": part,
                    "answers": answers,
                    "shift": float(means["emotional"] - means["neutral"]),
                }
            )
    return pd.DataFrame(lines)


if __name__ == "__main__":
    et.cli.experiment(main)
