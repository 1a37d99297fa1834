"""Guard: how a command or an experiment file runs: one line for a mistake, and Ctrl-C that is heard."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from emotrace.labels import EmotraceError

INTERRUPTED = 130
_USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""The error of a command line that cannot be read."""


def guarded(run: Callable[[], Any]) -> None:
    """Run a command; what the user did wrong is one line, and an interrupted run says how to go on."""
    try:
        with _insistent():
            status = run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (EmotraceError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except _USAGE as error:
        usage: Any = error
        if len(sys.argv) < 2:  # nothing asked: the help was printed
            sys.exit(2)
        where = usage.ctx.command_path if usage.ctx else Path(sys.argv[0]).name
        print(f"error: {' '.join(usage.format_message().split())} (see {where} --help)", file=sys.stderr)
        sys.exit(2)
    if status == INTERRUPTED:  # typer turns Ctrl-C into this status
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def _insistent() -> Iterator[None]:
    """Ctrl-C until it is heard: an interrupt that arrives inside a trace may be swallowed there, so it is raised again."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def experiment(main: Callable[..., None]) -> None:
    """Run an experiment file: its function's signature is its command line."""
    runner = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    runner.command()(main)
    guarded(lambda: runner(standalone_mode=False))
