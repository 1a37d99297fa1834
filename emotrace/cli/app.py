"""App: the command that all others hang on."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Find where a language model computes emotion, and control the emotion it expresses.",
    no_args_is_help=True, pretty_exceptions_enable=False,
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from emotrace import __version__

        typer.echo(f"emotrace {__version__}")
        raise typer.Exit


@app.callback()
def _emotrace(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say it and exit")
    ] = False,
) -> None:
    """What is common to all commands."""
