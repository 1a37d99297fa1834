"""Suite: paired arms and their controls, every measure of their replies, and TruthfulQA – from file to file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace.cli.app import app
from emotrace.cli.mixes import Layers, Positions, Scale, SiteFlag, Strength, Vectors, strength_of, vectors_of, where_of
from emotrace.cli.options import Bos, Count, Device, Dtype, Few, Folder, Model, Sample, Seed, TopK, decoding, names
from emotrace.files import to_folder
from emotrace.labels import EmotraceError

Draws = Annotated[int, typer.Option(min=1, max=1000, help="of each random control")]
Mix = Annotated[str | None, typer.Option(help="a mixture, aimed at its largest emotion; default each emotion alone")]
Template = Annotated[str | None, typer.Option(help="plain text with {question}; default the GoEmotions pipeline's")]


@app.command()
def arms(
    model: Model,
    queries: Annotated[Path, typer.Option(help="EmotionQuery, a list of texts, or rows with 'query'")],
    vectors: Vectors,
    out: Folder,
    mix: Mix = None,
    strength: Strength = 1.0,
    scale: Scale = "raw",
    site: SiteFlag = None,
    layers: Layers = None,
    positions: Positions = "steer",
    part: Annotated[str, typer.Option(help="fit | held_out | all of the queries")] = "held_out",
    controls: Annotated[
        str, typer.Option(help="of random, wrong_emotion, shuffled (labels); or none")
    ] = "random,wrong_emotion",
    draws: Draws = 3,
    limit: Few = None,
    max_new_tokens: Count = 60,
    sample: Sample = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    batch_size: Count = 32,
    device: Device = "auto",
    dtype: Dtype = None,
    bos: Bos = None,
) -> None:
    """The same queries answered plain, steered and under controls, from the same seeds."""
    import emotrace as et
    from emotrace.datasets import emotion_query
    from emotrace.disk import write_rows
    from emotrace.suite import arms as run
    from emotrace.suite import relabelled

    to_folder(out, "--out")
    against = [] if controls == "none" else names(controls)
    options = decoding(sample, temperature, top_p, top_k, seed, max_new_tokens)
    options.pop("seed")
    where = where_of(scale, site, layers, positions)
    wanted: Any = part
    prompts = emotion_query(queries, part=wanted, limit=limit, seed=seed)
    found = vectors_of(vectors)
    shuffled = [relabelled(vectors, seed + draw) for draw in range(draws)] if "shuffled" in against else []
    rows = run(
        et.load(model, device=device, dtype=dtype, bos=bos), prompts, found, mix, strength=strength_of(strength), draws=draws,
        controls=against, shuffled=shuffled, decoding=options, seed=seed, batch_size=batch_size,
        out=out / "arms", **where,
    )  # fmt: skip
    write_rows(out / "rows.jsonl", rows)
    typer.echo(f"{len(rows)} replies in {out / 'rows.jsonl'}")


@app.command()
def evaluate(
    rows: Annotated[Path, typer.Argument(help="JSON-lines file of replies, of one or more methods")],
    out: Folder,
    model: Annotated[str | None, typer.Option(help="un-edited model of the perplexity; default none")] = None,
    judge: Annotated[str, typer.Option(help="lexicon | classifier:ID | openai[:MODEL] | none")] = "lexicon",
    topic: Annotated[str, typer.Option(help="proxy (content words) | openai[:MODEL] | none")] = "proxy",
    intensity: Annotated[str, typer.Option(help="proxy (lexicon) | openai[:MODEL] | none")] = "proxy",
    classifier: Annotated[
        str | None, typer.Option(help="text classifier of emotion probabilities; hub id or folder")
    ] = None,
    label_map: Annotated[str | None, typer.Option(help="of that classifier: LABEL_0=anger,LABEL_1=none")] = None,
    baseline: Annotated[str, typer.Option(help="method that differences are taken from")] = "none",
    cluster: Annotated[str | None, typer.Option(help="label that the bootstrap draws as a whole")] = None,
    seed: Seed = 0,
    batch_size: Count = 32,
    device: Device = "auto",
    dtype: Dtype = None,
    bos: Bos = None,
) -> None:
    """Every measure of replies, by method, with intervals and paired differences from the baseline."""
    import emotrace as et
    from emotrace import disk, judges
    from emotrace.disk import write_json, write_rows
    from emotrace.replies.row import read_rows
    from emotrace.suite import EmotionClassifier, measure, raters, summarise
    from emotrace.suite.summary import check_rows
    from emotrace.texts import as_bytes

    to_folder(out, "--out")
    replies = read_rows(rows, "key", "gen_text", what="a reply to measure")
    settings = {
        "rows": str(rows), "model": model, "judge": judge, "topic": topic, "intensity": intensity,
        "classifier": classifier, "baseline": baseline, "cluster": cluster, "seed": seed,
    }  # fmt: skip
    check_rows(replies, cluster, baseline)
    if label_map is not None and classifier is None:
        raise EmotraceError(f"--label-map {label_map} is of --classifier, which is not given.")
    for flag, given in (("--dtype", dtype), ("--bos", bos)):
        if model is None and given is not None:
            raise EmotraceError(f"{flag} {given} is of --model, which is not given.")
    if model is None and classifier is None and device != "auto":
        raise EmotraceError(f"--device {device} is of --model or --classifier, and neither is given.")
    label = judges.flags(label_map).get("label_map")
    tools: dict[str, Any] = {
        "judge": None if judge == "none" else judges.make(judge),
        "topic": None if topic == "none" else raters.make("topic", topic),
        "intensity": None if intensity == "none" else raters.make("intensity", intensity),
        "classifier": None if classifier is None else EmotionClassifier(classifier, label_map=label, device=device),
    }
    lm = None if model is None else et.load(model, device=device, dtype=dtype, bos=bos)
    measured = measure(replies, model=lm, batch_size=batch_size, out=out, **tools)
    table = summarise(measured, cluster=cluster, baseline=baseline, seed=seed)
    write_rows(out / "measured.jsonl", [_plain(row) for row in measured])
    disk.replace_file(out / "summary.csv", as_bytes(table.to_csv(index=False)))
    named = {name: getattr(tool, "name", None) for name, tool in tools.items()}
    write_json(out / "evaluation.json", {**settings, "signed": named, "n": len(measured)})
    typer.echo(shown(table))
    typer.echo(f"{len(measured)} replies; {len(table)} lines in {out / 'summary.csv'}")


@app.command()
def truthfulqa(
    model: Model,
    data: Annotated[str, typer.Option(help="TruthfulQA, multiple_choice form: file or hub id")],
    out: Annotated[Path, typer.Option(help="folder for rows.jsonl and summary.json")],
    vectors: Annotated[Path | None, typer.Option(help="folder of vectors; default the model as it is alone")] = None,
    mix: Annotated[str, typer.Option(help="weights by name, e.g. anger=1")] = "",
    strength: Strength = 1.0,
    scale: Scale = "raw",
    site: SiteFlag = None,
    layers: Layers = None,
    substring: Annotated[
        bool, typer.Option(help="also the GoEmotions pipeline's substring score, as published")
    ] = False,
    template: Template = None,
    limit: Annotated[int | None, typer.Option(min=1, help="the first so many questions")] = None,
    seed: Seed = 0,
    batch_size: Count = 32,
    device: Device = "auto",
    dtype: Dtype = None,
    bos: Bos = None,
) -> None:
    """MC1 and MC2 of a model, plain and steered, by their standard definitions."""
    import emotrace as et
    from emotrace.datasets import read_truthfulqa
    from emotrace.datasets.truthfulqa import TEMPLATE
    from emotrace.disk import write_json, write_rows
    from emotrace.edits import check, mixture
    from emotrace.suite import truthful

    to_folder(out, "--out")
    if (vectors is None) != (not mix):
        raise EmotraceError("truthfulqa: --vectors and --mix belong together.")
    where = where_of(scale, site, layers, "steer")
    questions = read_truthfulqa(data, "multiple_choice")[:limit]
    steered = [] if vectors is None else mixture(vectors_of(vectors), mix, strength=strength_of(strength), **where)
    lm = et.load(model, device=device, dtype=dtype, bos=bos)
    check(steered, lm.sites)
    rows: list[truthful.Chosen] = []
    for method, edits in (("none", []), ("steer", steered))[: 1 if vectors is None else 2]:
        found = truthful.multiple_choice(
            lm, questions, edits, template=template or TEMPLATE, method=method, batch_size=batch_size
        )
        if substring:
            answers = truthful.substring(lm, questions, edits, method=method, batch_size=batch_size)
            for row, answer in zip(found, answers, strict=True):
                row["substring"], row["gen_text"] = answer["substring"], answer["gen_text"]
        rows += found
    result = truthful.summary(rows, lm, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "rows.jsonl", rows)
    write_json(out / "summary.json", {**result, "model": model, "mix": mix, "strength": strength, "data": data})
    for method, scores in result.items():
        for name, line in (scores or {}).items() if method != "note" else ():
            lo, hi = line["ci95"]
            typer.echo(f"{method:>6} {name}: {line['value']:.3f} [{lo:.3f}, {hi:.3f}] over {line['n']} questions")
    if result["note"]:
        typer.echo(f"note: {result['note']}")


def shown(table: Any) -> str:
    """The lines of all emotions together, one method a column: value [lo, hi]."""
    from emotrace.suite.summary import ALL

    part = table[table["emotion"] == ALL]
    methods = list(dict.fromkeys(part["method"]))
    lines = [" " * 22 + "".join(f"{m:>26}" for m in methods)]
    for name in dict.fromkeys(part["measure"]):
        cells = []
        for method in methods:
            line = part[(part["method"] == method) & (part["measure"] == name)].iloc[0]
            cells.append("–" if not line["n"] else f"{line['value']:.3g} [{line['lo']:.3g}, {line['hi']:.3g}]")
        lines.append(f"{name:>22}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: None where a measure does not apply."""
    return {**row, "measures": {k: v if v == v else None for k, v in row["measures"].items()}}
