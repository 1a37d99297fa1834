"""Studies: the experiments that come with emotrace, each with its own flags: ``emotrace run emotion-circuits --help``."""

from __future__ import annotations

import ast
import runpy
import sys
from typing import Annotated

import typer

from emotrace import shipped
from emotrace.cli.app import app
from emotrace.labels import unknown


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def run(
    context: typer.Context,
    study: Annotated[str | None, typer.Argument(help="name of a study; without one they are listed")] = None,
) -> None:
    """A study, with its own flags: ``emotrace run NAME --help`` lists them; without a name the studies are listed."""
    known = shipped.studies()
    if study in (None, "--help"):
        for name, file in known.items():
            said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            typer.echo(f"{name:<22} {said.splitlines()[0]}")
        return
    file = known.get(study.removesuffix(".py").replace("_", "-"))
    if file is None:
        raise unknown("study", study, known, "emotrace run")
    sys.argv = [f"emotrace run {study}", *context.args]
    sys.path.insert(0, str(file.parent))  # as `python FILE` does: a study imports its own modules from beside it
    runpy.run_path(str(file), run_name="__main__")
