"""Vectors: of emotions, from a model's own answers to queries or from labelled texts, into one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace import arguments
from emotrace.cli.app import app
from emotrace.cli.options import (
    Bos,
    Count,
    Device,
    Dtype,
    Few,
    Folder,
    Model,
    Sample,
    Seed,
    TopK,
    decoding,
    layer_list,
    names,
)
from emotrace.files import to_folder
from emotrace.labels import EmotraceError, unknown
from emotrace.sites import LanguageModel

QUERIES_ONLY = (
    "part", "over", "neutral", "emotional", "max_new_tokens", "sample", "temperature", "top_p", "top_k",
)  # fmt: skip
TEXTS_ONLY = ("against", "grouping", "method", "remove_neutral")
RANKS = ("value", "d")
ONE_OF = "give --queries (answers of the model itself) or --texts (labelled texts), and not both."


@app.command()
def vectors(
    ctx: typer.Context,
    model: Model,
    out: Folder,
    queries: Annotated[Path | None, typer.Option(help="emotion → queries, or rows with 'query' and 'emotion'")] = None,
    texts: Annotated[str | None, typer.Option(help="labelled texts as of GoEmotions: file, folder or hub id")] = None,
    emotions: Annotated[str | None, typer.Option(help="comma-separated; default all")] = None,
    limit: Few = None,
    site: Annotated[str | None, typer.Option(help="default o_proj_out for queries, resid_post for texts")] = None,
    layers: Annotated[str | None, typer.Option(help="e.g. 2-4 or 1,3; default all that have the site")] = None,
    part: Annotated[str, typer.Option(help="queries: fit | all; held-out ones are for measuring")] = "fit",
    over: Annotated[str, typer.Option(help="queries: mean_generated | last | mean_all")] = "mean_generated",
    neutral: Annotated[str | None, typer.Option(help="queries: system message of the neutral answer")] = None,
    emotional: Annotated[str | None, typer.Option(help="queries: of the emotional one, with {emotion}")] = None,
    against: Annotated[str, typer.Option(help="texts: label of those on the other side")] = "neutral",
    grouping: Annotated[str | None, typer.Option(help="texts: ekman | sentiment")] = None,
    method: Annotated[str, typer.Option(help="texts: difference | pca | lat | probe")] = "difference",
    remove_neutral: Annotated[int, typer.Option(min=0, help="texts: neutral components projected out")] = 0,
    keep: Annotated[int | None, typer.Option(min=1, help="only so many coordinates of each layer")] = None,
    rank: Annotated[str, typer.Option(help="what those are largest in: value, or d (Cohen's; texts)")] = "value",
    without_base: Annotated[bool, typer.Option(help="without what all emotions share")] = False,
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
    dry_run: Annotated[bool, typer.Option(help="say rows, bytes and free disk; do nothing")] = False,
) -> None:
    """Vectors of emotions, for `emotrace chat`, `arms` and `truthfulqa`, with the base vector that all share."""
    import emotrace as et
    from emotrace import directions, extraction
    from emotrace.datasets.queries import PARTS
    from emotrace.directions.shift import OVER
    from emotrace.directions.vectors import METHODS

    to_folder(out, "--out")
    if (queries is None) == (texts is None):
        raise EmotraceError(ONE_OF)
    for name, value, choices, flag in (
        ("part", part, PARTS, "--part"), ("mean", over, OVER, "--over"), ("method", method, METHODS, "--method"),
        ("ranking", rank, RANKS, "--rank"),
    ):  # fmt: skip
        if value not in choices:
            raise unknown(name, value, choices, flag)
    unused = _unused(ctx, QUERIES_ONLY if queries is None else TEXTS_ONLY)
    if unused:
        one, other = ("--queries", "--texts") if queries is None else ("--texts", "--queries")
        raise EmotraceError(f"{', '.join(unused)}: of {one}, and nothing that vectors from {other} take.")
    if rank == "d" and (texts is None or keep is None):
        raise EmotraceError("--rank d needs --texts (answers have no d) and --keep.")
    wanted = None if emotions is None else names(emotions)
    options = decoding(sample, temperature, top_p, top_k, seed, max_new_tokens)
    drawn = options.pop("seed")
    if site is not None:
        arguments.text("--site", site)
    place = site or ("o_proj_out" if texts is None else "resid_post")
    common: dict[str, Any] = {
        "site": place, "layers": None if layers is None else layer_list(layers), "batch_size": batch_size, "seed": drawn,
        "out": out,
    }  # fmt: skip
    prompts: Any
    ranked = None
    if queries is not None:
        prompts = et.datasets.emotion_query(queries, emotions=wanted, part=part, limit=limit, seed=seed)  # type: ignore[arg-type]
        told = {"neutral": neutral, "emotional": emotional}
        templates = {**extraction.TEMPLATES, **{name: text for name, text in told.items() if text is not None}}
        extraction.answer_prompts(prompts, templates)
        _several(prompts, without_base)
        lm = et.load(model, device=device, dtype=dtype, bos=bos)
        _fits(lm, place, keep)
        common |= {"over": over, "templates": templates, "decoding": options}
        if dry_run:
            typer.echo(str(extraction.answer_vectors.plan(lm, prompts, **common)))
            return
        found = extraction.answer_vectors(lm, prompts, **common)
    else:
        labels = None if wanted is None else [*wanted, against]
        prompts = et.datasets.goemotions(str(texts), emotions=labels, grouping=grouping, limit=limit)
        _several(prompts, without_base, against)
        lm = et.load(model, device=device, dtype=dtype, bos=bos)
        _fits(lm, place, keep)
        common |= {"against": against, "method": method, "remove_neutral": remove_neutral}
        if dry_run:
            typer.echo(str(extraction.text_vectors.plan(lm, prompts, **common)))
            return
        measured = extraction.text_vectors(lm, prompts, **common)
        for emotion in measured.auroc["emotion"].values:
            value = float(measured.auroc.sel(emotion=emotion).mean())
            typer.echo(f"{emotion}: AUROC {value:.3f} on held-out texts, mean over layers")
        ranked, found = measured.statistics["d"], measured.vectors
    base = directions.base_vector(found)
    kept = directions.orthogonal_to(found, base) if without_base else found
    if keep is not None:
        kept = directions.top_k(kept, keep, ranked if rank == "d" else None)
    directions.save(base, out, "base")
    directions.save(kept, out)
    counts = ", ".join(f"{e} ({n})" for e, n in zip(kept["emotion"].values, kept["n"].values, strict=True))
    what = "pairs of answers" if queries is not None else "texts"
    typer.echo(
        f"vectors of {counts} {what} at {kept.attrs['site']} in {out}; try: emotrace chat {model} --vectors {out}"
    )


def _unused(ctx: typer.Context, names: tuple[str, ...]) -> list[str]:
    """Those of the flags that the command line gives."""
    given = [name for name in names if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")]
    return [f"--{name.replace('_', '-')}" for name in given]


def _several(prompts: Any, without_base: bool, against: str = "") -> None:
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
