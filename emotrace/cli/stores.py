"""Stores: what a model and a store hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from emotrace.cli.app import app
from emotrace.cli.groups import LoadingAnywhere, grouped
from emotrace.cli.options import MODEL, Store
from emotrace.disk import is_url, located


@app.command()
@grouped
def sites(
    *,
    model: Annotated[str, typer.Argument(help=MODEL)],
    attn_implementation: Annotated[str | None, typer.Option(help="eager gives attn_pattern")] = None,
    loading: LoadingAnywhere,
) -> None:
    """The sites a model has, where they are, and the error their proof left; which prompts may share a forward."""
    from emotrace.forwards import beginnings

    loaded = loading.load(model, attn_implementation=attn_implementation)
    beginnings.shared_up_to(loaded)  # has it confirmed
    table = loaded.sites
    typer.echo(table.describe())
    typer.echo(table.table().to_string(index=False, formatters={"error": "{:.1e}".format}))
    for layer, reason in table.unproven.items():
        typer.echo(f"layer {layer}: {reason}")
    for layer, proof in table.proofs.items():
        for site, reason in proof.lacking.items():
            typer.echo(f"layer {layer} has no {site}: {reason}")


@app.command()
def info(store: Store) -> None:
    """What a store holds, where it came from, and whether it is complete."""
    from emotrace.store import info as describe

    typer.echo(json.dumps(describe(store), indent=2, default=str))


@app.command()
def verify(store: Store) -> None:
    """Check every committed chunk against its checksum; exit status 1 if one is damaged."""
    from emotrace.store import verify as check

    damage = check(store)
    for item in damage:
        typer.echo(str(item))
    mend = f"{len(damage)} damaged; `emotrace repair {store}` makes them pending again"
    typer.echo(mend if damage else "all committed chunks are intact")
    _tell_begun(store)
    if damage:
        raise typer.Exit(1)


@app.command()
def repair(store: Annotated[Path, typer.Argument(help="an activation store, or a file of rows (.jsonl)")]) -> None:
    """Make what is damaged pending again, so that the command that made it computes only that."""
    from emotrace import runlog
    from emotrace import store as stores

    if not is_url(store) and not store.is_dir():
        aside = runlog.repair_rows(store)
        typer.echo(
            f"{len(aside)} damaged lines of {store} are in {store}.damaged now (lines {', '.join(map(str, aside))}): the "
            "command that wrote it computes what it lacks"
            if aside
            else f"every line of {store} is a row"
        )
        return
    damage = stores.repair(store)
    for item in damage:
        typer.echo(str(item))
    left = [item for item in stores.verify(store) if item.group is None] if damage else []
    groups = sorted({item.group for item in damage if item.group is not None})
    if groups:
        typer.echo(f"row groups {', '.join(map(str, groups))} are pending: {_again(store)}")
    if left:
        typer.echo(f"metadata and token table: {_again(store)}")
    if not groups and not left:
        typer.echo("metadata was written again" if damage else "all committed chunks are intact")


def _again(store: Path) -> str:
    """The command that captured a store, as far as the store says."""
    from emotrace.store.mending import settings

    return f"repeat the command that captured them ({settings(located(store)).get('command') or 'not recorded'})"


@app.command()
def ls(store: Store) -> None:
    """The variables of a store, with their dims and sizes."""
    from emotrace.store import ls as listing

    typer.echo(listing(store).to_string(index=False))
    _tell_begun(store)


def _tell_begun(store: Path) -> None:
    """What of a store is computed and not committed."""
    from emotrace.store import begun

    for group, rows in begun(store).items():
        typer.echo(f"row group {group} is not committed; {rows} of its rows are in the journal")
