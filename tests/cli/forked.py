"""The command line in a fork of the tests: a process with streams and signals of its own, and imports that are done."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from emotrace import cli


class Forked:
    """A command that runs until it ends; what it says lies in two files.

    Args:
        folder: of these files.
        args: of the command line.
        said: to its standard input, a pipe.
    """

    def __init__(self, folder: Path, *args: Any, said: str = "") -> None:
        self.files = [folder / name for name in ("stdout.txt", "stderr.txt")]
        given, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(writing)
            _become(given, self.files, ["emotrace", *map(str, args)])
        os.close(given)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(said)

    def interrupt_when(self, begun: Callable[[], bool]) -> None:
        """Send Ctrl-C as soon as the work is begun."""
        for _ in range(2400):
            if begun():
                break
            time.sleep(0.05)
        os.kill(self.pid, signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Status, stdout and stderr, once it has ended."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said, errors = (file.read_text() for file in self.files)
        return status, said, errors


def _become(given: int, files: list[Path], argv: list[str]) -> None:
    """Run the command line in this process, and end it."""
    status: Any = 1
    try:
        os.dup2(given, 0)
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, mode, closefd=False) for i, mode in enumerate("rww"))
        sys.argv = argv
        torch.set_num_threads(1)  # a fork has no threads of its own
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status if isinstance(status, int) else 1)
