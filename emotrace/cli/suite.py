"""Suite: paired arms and their controls, every measure of their replies, and TruthfulQA – from file to file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emotrace.cli.app import app
from emotrace.cli.groups import Decoding, Loading, grouped
from emotrace.cli.mixes import Addition, PlacedAddition, Vectors, vectors_of
from emotrace.cli.options import BatchSize, Few, Folder, JudgeOrNone, LabelMap, Model, Seed, names
from emotrace.defaults import BATCH_SIZE
from emotrace.files import to_folder
from emotrace.labels import EmotraceError

if TYPE_CHECKING:
    from emotrace.datasets import Prompts
    from emotrace.edits import Edit


@dataclass(frozen=True, kw_only=True)
class Querying(Decoding):
    """The queries of a file that are answered, and how."""

    queries: Annotated[Path, typer.Option(help="EmotionQuery, a list of texts, or rows with 'query'")]
    part: Annotated[str, typer.Option(help="fit | held_out | all of the queries")] = "held_out"
    limit: Few = None
    batch_size: BatchSize = BATCH_SIZE

    def read(self) -> Prompts:
        """The queries, as prompts."""
        from emotrace.datasets import emotion_query

        part: Any = self.part
        return emotion_query(self.queries, part=part, limit=self.limit, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Controls:
    """The arms that steering is compared with."""

    controls: Annotated[str, typer.Option(help="of random, wrong_emotion, shuffled (labels); or none")] = (
        "random,wrong_emotion"
    )
    draws: Annotated[int, typer.Option(min=1, max=1000, help="of each random control")] = 3

    @property
    def names(self) -> list[str]:
        """Of the controls."""
        return [] if self.controls == "none" else names(self.controls)


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is measured of replies, and by whom."""

    judge: JudgeOrNone = "lexicon"
    topic: Annotated[str, typer.Option(help="proxy (content words) | openai[:MODEL] | none")] = "proxy"
    intensity: Annotated[str, typer.Option(help="proxy (lexicon) | openai[:MODEL] | none")] = "proxy"
    classifier: Annotated[
        str | None, typer.Option(help="text classifier of emotion probabilities; hub id or folder")
    ] = None
    label_map: LabelMap = None

    def tools(self, device: str) -> dict[str, Any]:
        """Arguments of `emotrace.suite.measure`: judge, raters and classifier, ready.

        Args:
            device: of the classifier.
        """
        from emotrace import judges
        from emotrace.suite import EmotionClassifier, raters

        label_map = judges.flags(self.label_map).get("label_map")
        return {
            "judge": None if self.judge == "none" else judges.make(self.judge),
            "topic": None if self.topic == "none" else raters.make("topic", self.topic),
            "intensity": None if self.intensity == "none" else raters.make("intensity", self.intensity),
            "classifier": None
            if self.classifier is None
            else EmotionClassifier(self.classifier, label_map=label_map, device=device),
        }


@dataclass(frozen=True, kw_only=True)
class Summing:
    """How measures are summed up."""

    baseline: Annotated[str, typer.Option(help="method that differences are taken from")] = "none"
    cluster: Annotated[str | None, typer.Option(help="label that the bootstrap draws as a whole")] = None
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The questions of a file that are asked, and how."""

    data: Annotated[str, typer.Option(help="TruthfulQA, multiple_choice form: file or hub id")]
    template: Annotated[
        str | None, typer.Option(help="plain text with {question}; default the GoEmotions pipeline's")
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="the first so many questions")] = None


@dataclass(frozen=True, kw_only=True)
class Mixture(Addition):
    """A mixture of vectors, or none."""

    vectors: Annotated[Path | None, typer.Option(help="folder of vectors; default the model as it is alone")] = None
    mix: Annotated[str, typer.Option(help="weights by name, e.g. anger=1")] = ""

    def edits(self) -> list[Edit]:
        """The additions, from the last prompt token on.

        Raises:
            EmotraceError: for vectors without a mixture, or a mixture without vectors.
        """
        from emotrace.edits import mixture

        if (self.vectors is None) != (not self.mix):
            raise EmotraceError("truthfulqa: --vectors and --mix belong together.")
        options = self.options
        return [] if self.vectors is None else mixture(vectors_of(self.vectors), self.mix, positions="steer", **options)


@app.command()
@grouped
def arms(
    *,
    model: Model,
    asked: Querying,
    vectors: Vectors,
    out: Folder,
    mix: Annotated[
        str | None, typer.Option(help="a mixture, aimed at its largest emotion; default each emotion alone")
    ] = None,
    addition: PlacedAddition,
    against: Controls,
    loading: Loading,
) -> None:
    """The same queries answered plain, steered and under controls, from the same seeds."""
    from emotrace.disk import write_rows
    from emotrace.suite import arms as run
    from emotrace.suite import relabelled

    to_folder(out, "--out")
    options, where = asked.options, addition.options
    prompts, found, seeds = asked.read(), vectors_of(vectors), range(asked.seed, asked.seed + against.draws)
    shuffled = [relabelled(vectors, seed) for seed in seeds] if "shuffled" in against.names else []
    rows = run(
        loading.load(model), prompts, found, mix, draws=against.draws, controls=against.names, shuffled=shuffled,
        decoding=options, seed=asked.seed, batch_size=asked.batch_size, out=out / "arms", **where,
    )  # fmt: skip
    write_rows(out / "rows.jsonl", rows)
    typer.echo(f"{len(rows)} replies in {out / 'rows.jsonl'}")


@app.command()
@grouped
def evaluate(
    *,
    rows: Annotated[Path, typer.Argument(help="JSON-lines file of replies, of one or more methods")],
    out: Folder,
    model: Annotated[str | None, typer.Option(help="un-edited model of the perplexity; default none")] = None,
    measuring: Measuring,
    summing: Summing,
    batch_size: BatchSize = BATCH_SIZE,
    loading: Loading,
) -> None:
    """Every measure of replies, by method, with intervals and paired differences from the baseline."""
    from emotrace import disk
    from emotrace.disk import write_json, write_rows
    from emotrace.replies.row import read_rows
    from emotrace.suite import measure, summarise
    from emotrace.suite.measuring import check_tools
    from emotrace.suite.summary import check_rows
    from emotrace.texts import as_bytes

    to_folder(out, "--out")
    replies = read_rows(rows, "key", "gen_text", what="a reply to measure")
    settings = {"rows": str(rows), "model": model, **asdict(measuring), **asdict(summing)}
    del settings["label_map"]
    check_rows(replies, summing.cluster, summing.baseline)
    if measuring.label_map is not None and measuring.classifier is None:
        raise EmotraceError(f"--label-map {measuring.label_map} is of --classifier, which is not given.")
    for flag, given in (("--dtype", loading.dtype), ("--bos", loading.bos)):
        if model is None and given is not None:
            raise EmotraceError(f"{flag} {given} is of --model, which is not given.")
    if model is None and measuring.classifier is None and loading.device != "auto":
        raise EmotraceError(f"--device {loading.device} is of --model or --classifier, and neither is given.")
    tools = measuring.tools(loading.device)
    check_tools(replies, **{name: tools[name] for name in ("topic", "intensity", "classifier") if name in tools})
    lm = None if model is None else loading.load(model)
    measured = measure(replies, model=lm, batch_size=batch_size, out=out, **tools)
    table = summarise(measured, **asdict(summing))
    write_rows(out / "measured.jsonl", [_plain(row) for row in measured])
    disk.replace_file(out / "summary.csv", as_bytes(table.to_csv(index=False)))
    named = {name: getattr(tool, "name", None) for name, tool in tools.items()}
    write_json(out / "evaluation.json", {**settings, "signed": named, "n": len(measured)})
    typer.echo(shown(table))
    typer.echo(f"{len(measured)} replies; {len(table)} lines in {out / 'summary.csv'}")


@app.command()
@grouped
def truthfulqa(
    *,
    model: Model,
    asked: Questions,
    out: Annotated[Path, typer.Option(help="folder for rows.jsonl and summary.json")],
    mixture: Mixture,
    substring: Annotated[
        bool, typer.Option(help="also the GoEmotions pipeline's substring score, as published")
    ] = False,
    seed: Seed = 0,
    batch_size: BatchSize = BATCH_SIZE,
    loading: Loading,
) -> None:
    """MC1 and MC2 of a model, plain and steered, by their standard definitions."""
    from emotrace.datasets import read_truthfulqa
    from emotrace.datasets.truthfulqa import TEMPLATE
    from emotrace.disk import write_json, write_rows
    from emotrace.edits import check
    from emotrace.suite import truthful

    to_folder(out, "--out")
    steered = mixture.edits()
    questions = read_truthfulqa(asked.data, "multiple_choice")[: asked.limit]
    lm = loading.load(model)
    check(steered, lm.sites)
    rows: list[truthful.Chosen] = []
    for method, edits in (("none", []), ("steer", steered))[: 1 if mixture.vectors is None else 2]:
        template = asked.template or TEMPLATE
        found = truthful.multiple_choice(lm, questions, edits, template=template, method=method, batch_size=batch_size)
        if substring:
            answers = truthful.substring(lm, questions, edits, method=method, batch_size=batch_size)
            for row, answer in zip(found, answers, strict=True):
                row["substring"], row["gen_text"] = answer["substring"], answer["gen_text"]
        rows += found
    result = truthful.summary(rows, lm, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "rows.jsonl", rows)
    made = {"model": model, "mix": mixture.mix, "strength": mixture.strength, "data": asked.data}
    write_json(out / "summary.json", {**result, **made})
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
