"""Command line: each stage of the work, from file to file, on the same functions as Python."""

from __future__ import annotations

from emotrace.cli import fetch, stages, contributions, circuits, control, vectors, chat, suite, stores, adopt, studies  # noqa: F401 # isort: skip  # each adds its commands, listed in this order
from emotrace.cli.app import app
from emotrace.cli.guard import experiment, guarded
from emotrace.lazy import public

__all__ = ["app", "experiment", "main"]
__dir__ = public(__name__)


def main() -> None:
    """Entry point of ``emotrace``."""
    guarded(lambda: app(standalone_mode=False))
