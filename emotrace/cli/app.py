"""App: the command that all others hang on."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Find where a language model computes emotion, and control the emotion it expresses.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
