"""Stages: generate, judge, capture, directions – from file to file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace.cli.app import app
from emotrace.cli.groups import Judging, LoadingAnywhere, PromptFile, Ranked, Reading, grouped
from emotrace.cli.options import (
    BatchSize,
    DryRun,
    Emotions,
    Model,
    NewTokens,
    Rows,
    Store,
    TargetAware,
    Within,
    accepted_keys,
    names,
    of,
)
from emotrace.cli.people import People
from emotrace.defaults import BATCH_SIZE, MAX_NEW_TOKENS
from emotrace.disk import is_url
from emotrace.files import to_file, to_folder
from emotrace.labels import EmotraceError


@app.command()
@grouped
def generate(
    *,
    model: Model,
    prompts: PromptFile,
    out: Annotated[Path, typer.Option(help="JSON-lines file; rows in it are not generated again")],
    emotions: Emotions = None,
    max_new_tokens: NewTokens = MAX_NEW_TOKENS,
    batch_size: BatchSize = BATCH_SIZE,
    dry_run: DryRun = False,
    ranked: Ranked,
    loading: LoadingAnywhere,
) -> None:
    """Replies of a model to SEV prompts, or to those of a table of your own."""
    import emotrace as et

    to_file(out, "--out")
    asked, rank = prompts.read(emotions), ranked.pair
    how: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "batch_size": batch_size, "out": out, "rank": rank,
        "method": "none" if prompts.instruction is False else "prompt", "stop": prompts.way.stop if prompts.elicit else (),
    }  # fmt: skip
    lm = loading.load(model)
    if dry_run:
        typer.echo(str(et.generate.plan(lm, asked, **how)))
        return
    typer.echo(f"{len(et.generate(lm, asked, **how))} replies in {out}")


@app.command()
@grouped
def judge(
    *,
    rows: Annotated[Path, typer.Argument(help="JSON-lines file of replies")],
    out: Annotated[Path | None, typer.Option(help="JSON-lines file of judged replies")] = None,
    judging: Judging,
    people: People,
    label: Annotated[str, typer.Option(help="field of the rows that says what was aimed at")] = "emotion",
    target_aware: TargetAware = False,
    ranked: Ranked,
) -> None:
    """Which emotion each reply expresses, judged blind: by a judge, or by people on a sheet."""
    from emotrace import judges
    from emotrace.disk import write_rows
    from emotrace.replies.row import NAMED_BY, has_half, read_rows
    from emotrace.runlog import Log

    people.refuse(out)
    rank = ranked.pair
    if out is not None:
        to_file(out, "--out")
    if out is not None and out.resolve() == rows.resolve():
        raise EmotraceError(f"--out {out}: that is the file of the replies to judge; give another.")
    the_judge = None if people.sheet or people.from_sheet else judging.make()
    replies = read_rows(rows, "key", "gen_text", label, what="a reply to judge")
    if all(has_half(row["gen_text"]) for row in replies):  # one such reply among others ends nothing
        raise EmotraceError(
            f"{rows}: every reply holds half of a surrogate pair, which is no text: there is nothing to judge."
        )
    if out is None:
        typer.echo(people.write(replies))
        return
    if the_judge is None:
        judged, said = people.read(replies)
        typer.echo(said)
    else:
        named_by = NAMED_BY if all("method" in r for r in replies) else ("key",)  # published rows name no method
        with Log(out.with_name(out.name + ".verdicts"), named_by) as log:
            judged = judges.judge_rows(replies, the_judge, log=log, target=target_aware, label=label, rank=rank)
    write_rows(out, judged)
    matches = [r["verdict"]["match"] for r in judged if r["verdict"]["match"] is not None]
    share = f"{sum(matches) / len(matches):.1%} of {len(matches)}" if matches else "none"
    typer.echo(f"{share} express the emotion asked for ({len(judged) - len(matches)} unjudged)")
    usage = getattr(the_judge, "usage", None)
    if usage:
        typer.echo(f"usage: {json.dumps(usage)}")
    typer.echo(f"{len(judged)} verdicts in {out}")


@app.command()
@grouped
def capture(
    *,
    model: Model,
    prompts: PromptFile,
    out: Annotated[Path, typer.Option(help="zarr store to write or to continue, or a URL: s3://, gs://, az://")],
    read: Reading,
    replies: Annotated[Path | None, typer.Option(help="rows of `emotrace generate`, to follow the prompts")] = None,
    batch_size: BatchSize = BATCH_SIZE,
    dry_run: DryRun = False,
    ranked: Ranked,
    loading: LoadingAnywhere,
) -> None:
    """Activations of SEV prompts, or of a table of your own, into a labelled store."""
    import emotrace as et
    from emotrace.replies.row import read_rows
    from emotrace.store import check_labels

    if not is_url(out):
        to_folder(out, "--out", store=True)
    where, rank = read.options, ranked.pair
    chosen = prompts.read()
    if replies is not None:
        told = read_rows(replies, "key", "token_ids", what="a reply to follow its prompt")
        with of("--replies", replies):
            chosen = chosen.with_replies(told)
    check_labels([prompt.labels for prompt in chosen], where["sites"])
    do = et.capture.plan if dry_run else et.capture
    typer.echo(str(do(loading.load(model), chosen, out=out, batch_size=batch_size, rank=rank, **where)))


@app.command()
def directions(
    store: Store,
    out: Annotated[Path, typer.Option(help="folder for directions.safetensors and its manifest")],
    rows: Rows = None,
    label: str = "emotion",
    within: Within = "skeleton_id,valence",
) -> None:
    """Context-agnostic directions from a store."""
    import emotrace as et

    to_folder(out, "--out")
    acts = et.open_activations(store)
    accepted = accepted_keys(rows, acts.tokens)
    found = et.directions.centered_mean(acts, label=label, within=tuple(names(within)), accepted=accepted)
    et.directions.save(found, out)
    n = found.attrs["n_groups"]
    typer.echo(f"{dict(found.sizes)} from {n} group{'s' * (n != 1)} in {out}")
