"""Vectors: of emotions, from a model's own answers to queries or from labelled texts, into one folder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emotrace import arguments
from emotrace.cli.app import app
from emotrace.cli.groups import Decoding, Loading, grouped
from emotrace.cli.options import BatchSize, DryRun, Few, Folder, Model, layer_list, names
from emotrace.defaults import BATCH_SIZE
from emotrace.files import to_folder
from emotrace.labels import EmotraceError, unknown
from emotrace.sites import LanguageModel

if TYPE_CHECKING:
    from emotrace.datasets import Prompts

RANKS = ("value", "d")
ONE_OF = "give --queries (answers of the model itself) or --texts (labelled texts), and not both."


@dataclass(frozen=True, kw_only=True)
class Answers(Decoding):
    """Vectors from answers of the model itself to queries."""

    queries: Annotated[Path | None, typer.Option(help="emotion → queries, or rows with 'query' and 'emotion'")] = None
    part: Annotated[str, typer.Option(help="queries: fit | all; held-out ones are for measuring")] = "fit"
    over: Annotated[str, typer.Option(help="queries: mean_generated | last | mean_all")] = "mean_generated"
    neutral: Annotated[str | None, typer.Option(help="queries: system message of the neutral answer")] = None
    emotional: Annotated[str | None, typer.Option(help="queries: of the emotional one, with {emotion}")] = None

    @property
    def templates(self) -> dict[str, str]:
        """The system messages: those given, and as published."""
        from emotrace.extraction import TEMPLATES

        told = {"neutral": self.neutral, "emotional": self.emotional}
        return {**TEMPLATES, **{name: text for name, text in told.items() if text is not None}}


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Vectors from labelled texts."""

    texts: Annotated[str | None, typer.Option(help="labelled texts as of GoEmotions: file, folder or hub id")] = None
    against: Annotated[str, typer.Option(help="texts: label of those on the other side")] = "neutral"
    grouping: Annotated[str | None, typer.Option(help="texts: ekman | sentiment")] = None
    method: Annotated[str, typer.Option(help="texts: difference | pca | lat | probe")] = "difference"
    remove_neutral: Annotated[int, typer.Option(min=0, help="texts: neutral components projected out")] = 0


@dataclass(frozen=True, kw_only=True)
class Made:
    """What vectors of both kinds are made of, and where they go."""

    out: Folder
    emotions: Annotated[str | None, typer.Option(help="comma-separated; default all")] = None
    limit: Few = None
    site: Annotated[str | None, typer.Option(help="default o_proj_out for queries, resid_post for texts")] = None
    layers: Annotated[str | None, typer.Option(help="e.g. 2-4 or 1,3; default all that have the site")] = None
    batch_size: BatchSize = BATCH_SIZE


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What of the vectors is kept."""

    keep: Annotated[int | None, typer.Option(min=1, help="only so many coordinates of each layer")] = None
    rank: Annotated[str, typer.Option(help="what those are largest in: value, or d (Cohen's; texts)")] = "value"
    without_base: Annotated[bool, typer.Option(help="without what all emotions share")] = False


@app.command()
@grouped
def vectors(
    *,
    ctx: typer.Context,
    model: Model,
    answers: Answers,
    labelled: LabelledTexts,
    made: Made,
    kept: Keeping,
    loading: Loading,
    dry_run: DryRun = False,
) -> None:
    """Vectors of emotions, for `emotrace chat`, `arms` and `truthfulqa`, with the base vector that all share."""
    import emotrace as et
    from emotrace import directions, extraction
    from emotrace.datasets.queries import PARTS
    from emotrace.directions.shift import OVER
    from emotrace.directions.vectors import METHODS

    out, site, limit, seed = made.out, made.site, made.limit, answers.seed
    to_folder(out, "--out")
    queries, texts = answers.queries, labelled.texts
    if (queries is None) == (texts is None):
        raise EmotraceError(ONE_OF)
    for name, value, choices, flag in (
        ("part", answers.part, PARTS, "--part"), ("mean", answers.over, OVER, "--over"),
        ("method", labelled.method, METHODS, "--method"), ("ranking", kept.rank, RANKS, "--rank"),
    ):  # fmt: skip
        if value not in choices:
            raise unknown(name, value, choices, flag)
    unused = _unused(ctx, Answers if queries is None else LabelledTexts)
    if unused:
        one, other = ("--queries", "--texts") if queries is None else ("--texts", "--queries")
        raise EmotraceError(f"{', '.join(unused)}: of {one}, and nothing that vectors from {other} take.")
    if kept.rank == "d" and (texts is None or kept.keep is None):
        raise EmotraceError("--rank d needs --texts (answers have no d) and --keep.")
    wanted = None if made.emotions is None else names(made.emotions)
    options = answers.options
    if site is not None:
        arguments.text("--site", site)
    place = site or ("o_proj_out" if texts is None else "resid_post")
    common: dict[str, Any] = {
        "site": place, "layers": None if made.layers is None else layer_list(made.layers),
        "batch_size": made.batch_size, "seed": seed, "out": out,
    }  # fmt: skip
    prompts: Any
    ranked = None
    if queries is not None:
        part, over, templates = answers.part, answers.over, answers.templates
        prompts = et.datasets.emotion_query(queries, emotions=wanted, part=part, limit=limit, seed=seed)  # type: ignore[arg-type]
        extraction.answer_prompts(prompts, templates)
        _several(prompts, kept.without_base)
        lm = loading.load(model)
        _fits(lm, place, kept.keep)
        common |= {"over": over, "templates": templates, "decoding": options}
        if dry_run:
            typer.echo(str(extraction.answer_vectors.plan(lm, prompts, **common)))
            return
        found = extraction.answer_vectors(lm, prompts, **common)
    else:
        labels = None if wanted is None else [*wanted, labelled.against]
        prompts = et.datasets.goemotions(str(texts), emotions=labels, grouping=labelled.grouping, limit=limit)
        _several(prompts, kept.without_base, labelled.against)
        lm = loading.load(model)
        _fits(lm, place, kept.keep)
        common |= {
            "against": labelled.against, "method": labelled.method, "remove_neutral": labelled.remove_neutral
        }  # fmt: skip
        if dry_run:
            typer.echo(str(extraction.text_vectors.plan(lm, prompts, **common)))
            return
        measured = extraction.text_vectors(lm, prompts, **common)
        for emotion in measured.auroc["emotion"].values:
            value = float(measured.auroc.sel(emotion=emotion).mean())
            typer.echo(f"{emotion}: AUROC {value:.3f} on held-out texts, mean over layers")
        ranked, found = measured.statistics["d"], measured.vectors
    base = directions.base_vector(found)
    found = directions.orthogonal_to(found, base) if kept.without_base else found
    if kept.keep is not None:
        found = directions.top_k(found, kept.keep, ranked if kept.rank == "d" else None)
    directions.save(base, out, "base")
    directions.save(found, out)
    counts = ", ".join(f"{e} ({n})" for e, n in zip(found["emotion"].values, found["n"].values, strict=True))
    what = "pairs of answers" if queries is not None else "texts"
    typer.echo(
        f"vectors of {counts} {what} at {found.attrs['site']} in {out}; try: emotrace chat {model} --vectors {out}"
    )


def _unused(ctx: typer.Context, group: type[Any]) -> list[str]:
    """Those flags of a group that the command line gives; the seed is of other things too."""
    flags = [f.name for f in fields(group) if f.name != "seed"]
    given = [name for name in flags if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")]
    return [f"--{name.replace('_', '-')}" for name in given]


def _several(prompts: Prompts, without_base: bool, against: str = "") -> None:
    """Refuse to take from one emotion what it shares with the others."""
    named = {p.labels["emotion"] for p in prompts} - {against}
    if without_base and len(named) < 2:
        raise EmotraceError(f"--without-base needs two or more emotions, not {', '.join(map(str, named)) or 'none'}.")


def _fits(lm: LanguageModel, site: str, keep: int | None) -> None:
    """Refuse to keep more coordinates than there are; a site that is not there is extraction's to refuse."""
    layers = lm.sites.layers(site) if lm.sites.has(site) else []
    width = lm.sites.address(site, layers[0]).width if layers else None
    if keep is not None and width is not None and keep > width:
        raise EmotraceError(f"--keep {keep}: {site} has {width} coordinates.")
