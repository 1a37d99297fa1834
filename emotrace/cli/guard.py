"""Guard: how a command or an experiment file runs: one line for a mistake, and Ctrl-C that is heard."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from emotrace.labels import EmotraceError
from emotrace.secrets import redacted

INTERRUPTED = 130
TRACEBACK = "EMOTRACE_TRACEBACK"
"""Set to anything, errors that are not emotrace's own are shown whole, for reports of bugs."""
SHOWN = 400
"""Characters of another library's message that are shown."""
_USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""The error of a command line that cannot be read."""


def guarded(run: Callable[[], Any]) -> None:
    """Run a command; what went wrong is one line and status 2, and an interrupted run says how to go on.

    What users get wrong is told by whoever reads the file or flag. The last case here is the net below that: an error of
    another library is one line too, with the way to see all of it.
    """
    try:
        with _insistent():
            status = run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (EmotraceError, OSError) as error:
        print(f"error: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
    except _USAGE as error:
        usage: Any = error
        if type(error).__name__ == "NoArgsIsHelpError":  # nothing asked: the help was printed
            sys.exit(2)
        where = usage.ctx.command_path if usage.ctx else Path(sys.argv[0]).name
        print(f"error: {redacted(' '.join(usage.format_message().split()))} (see {where} --help)", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            print(redacted(traceback.format_exc()), end="", file=sys.stderr)
            sys.exit(1)
        said = " ".join(redacted(str(error)).split())
        said = said if len(said) <= SHOWN else f"{said[:SHOWN]}…"
        print(f"error: {type(error).__name__}: {said} ({TRACEBACK}=1 shows where)", file=sys.stderr)
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

    def interrupt(*_: object) -> None:
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
