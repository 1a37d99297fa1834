"""NDIF: start the loopback server of `ndif_server` in a process of its own, steer it, and ask what it saw.

```python
with loopback({"meta-llama/Llama-3.1-8B": "data/tiny_model"}) as server:
    model = et.load("data/tiny_model", remote=server.url)
```
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnsight.modeling import huggingface

from emotrace.labels import EmotraceError

KEY = "loopback"


def mint(names: Iterable[str]) -> None:
    """Let this process name these models to a server without asking the Hub for their canonical spelling."""
    for name in names:
        huggingface._ID_CACHE[name] = name


class Server:
    """A loopback server that runs; made by `loopback`.

    Attributes:
        url: where it listens, for ``remote=url`` or ``NDIF_HOST``.
        key: the API key it takes.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, key: str) -> None:
        self.process, self.url, self.key = process, url, key

    def log(self) -> list[dict[str, Any]]:
        """The jobs seen, oldest first."""
        return self._ask("/admin/log")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
            return json.load(answer)


@contextmanager
def loopback(models: Mapping[str, str | Path], *, key: str = KEY, **modes: Any) -> Iterator[Server]:
    """A loopback server for as long as the block runs.

    Args:
        models: what a client calls a model → the directory it lies in.
        key: the API key to take.
        modes: further flags, ``inline_limit=0`` for ``--inline-limit 0``; True for a flag without a value.
    """
    command = [sys.executable, str(Path(__file__).with_name("ndif_server.py")), "--key", key]
    for name, directory in models.items():
        command += ["--model", f"{name}={Path(directory).resolve()}"]
    for name, value in modes.items():
        flag = "--" + name.replace("_", "-")
        command += [] if value in (None, False) else [flag] if value is True else [flag, str(value)]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "NNSIGHT_DEBUG")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    said: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()  # type: ignore[arg-type]
    try:
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise EmotraceError(f"the loopback server did not start:\n{''.join(said)[-2000:]}")
        yield Server(process, json.loads(line)["url"], key)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
