"""NDIF: start the loopback server of `ndif_server` in a process of its own, steer it, and ask what it saw.

```python
with loopback({"meta-llama/Llama-3.1-8B": "data/tiny_model"}) as server:
    mint({"meta-llama/Llama-3.1-8B": "data/tiny_model"})
    nnsight.CONFIG.API.APIKEY = server.key
    with model.trace("I won!", remote=server.url):
        ...                                         # in a process without weights; beside them with trusted_key
    server.faults(drop="running")                   # once: the socket closes when the next job runs
    server.log()[-1]["runs"]
```

It works without a network, for tests and for trying a remote study at home.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emotrace.labels import EmotraceError
from emotrace.traced.inner import call

SCRIPT = Path(__file__).with_name("ndif_server")
PATIENCE = 20.0
"""Seconds for which an order to the server waits while it restarts."""
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def mint(models: Iterable[str] | Mapping[str, str | Path]) -> None:
    """Let this process name models to a server without asking the Hub for the spelling of their names.

    nnsight puts the Hub's spelling of a repository into the key of a request; this fills the cache in which it keeps them.

    Args:
        models: names, or name → directory: a client model made from the directory then goes by the name.
    """
    for name in models:
        call(name, name)
        if isinstance(models, Mapping):
            call(str(models[name]), name)


class LoopbackServer:
    """A loopback server in a process of its own; made by `loopback`.

    Attributes:
        url: where it listens, for ``remote=url`` or ``NDIF_HOST``.
        key: an API key as it is handed out: its blocks run in a process of their own (`ndif_server.sandbox`).
        trusted_key: another one, whose blocks run beside the weights.
    """

    def __init__(self, command: list[str], key: str) -> None:
        self.key, self.trusted_key = key, str(uuid.uuid4())
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._said: list[str] = []
        self._listener: threading.Thread | None = None
        self.url = ""

    def start(self) -> None:
        """Start the process and wait until it listens: on the same port as before, where there was one.

        Raises:
            EmotraceError: if it does not start, with what it said.
        """
        command = [*self._command]
        if self.url:
            command += ["--port", self.url.rpartition(":")[2]]
        ours = ("PYTHONPATH", "NNSIGHT_DEBUG", "NDIF_HOST", "NDIF_API_KEY")  # blocks of clients run there
        environment = {k: v for k, v in os.environ.items() if k not in ours}
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment | {"HF_HUB_OFFLINE": "1"}, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once, and says why
            process.stdin.write(f"{self.key} {self.trusted_key}\n")
            process.stdin.flush()
        self._said.clear()
        self._listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
        self._listener.start()
        line = process.stdout.readline()
        if not line:
            self.stop()
            raise EmotraceError(f"the loopback server did not start:\n{self.said[-2000:]}")
        self.url = json.loads(line)["url"]

    def stop(self) -> None:
        """End the process at once, as a power cut would; `start` brings up an empty one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if self._listener is not None:
            self._listener.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def restart(self, seconds: float = 0.2, *, stale: bool = False) -> None:
        """Go down for a while and forget every job that is not finished; results that lie ready survive.

        Args:
            seconds: how long nobody listens.
            stale: forgotten jobs keep the status that was stored last, for ever; else they have none (404).
        """
        self._ask("/admin/restart", {"seconds": seconds, "stale": stale})

    def faults(self, **fault: Any) -> list[dict[str, Any]]:
        """Order a fault, as ``drop="running", times=2, after=1``; those that are left.

        Args:
            fault: one of ``refuse, http, drop, delay, error, lose, twice, restart`` = a stage, and ``times`` (1; −1 for
                ever), ``after`` (0), ``seconds``, ``code``, ``message``, ``stale`` where they apply. See `ndif_server.faults`.

        Raises:
            EmotraceError: for a fault that there is not.
        """
        return self._ask("/admin/faults", fault) if fault else self._ask("/admin/faults")

    def modes(self, **modes: Any) -> dict[str, Any]:
        """Change what the server does to every job from now on; all modes.

        Args:
            modes: of ``no_gradients, copies, autocast, expire_urls, execution_timeout, inline_limit, versions, window,
                deploy_seconds``.

        Raises:
            EmotraceError: for a mode that there is not.
        """
        return self._ask("/admin/modes", modes)

    def deployment(self, name: str, state: str, revision: str | None = None) -> None:
        """Bring a model into a state.

        Args:
            name: what clients call it.
            state: ``RUNNING``, ``DEPLOYING``, ``WARM``, ``COLD``; the first job for it brings it up, in ``deploy_seconds``.
            revision: as its key spells it.

        Raises:
            EmotraceError: for a model or a state that there is not.
        """
        self._ask("/admin/deployments", {name: (state, revision)})

    def calm(self) -> None:
        """End all faults, and the delays that are going on."""
        self._ask("/admin/faults", method="DELETE")

    def log(self) -> list[dict[str, Any]]:
        """The jobs seen, oldest first.

        Each has ``id``, ``model_key``, ``blocking``, ``state`` (``LOST`` where the server forgot it), ``states``, ``runs``,
        ``served`` (how often its result was handed over), ``polls``, ``bytes_in``, ``bytes_out`` (as sent, so compressed
        where the client asked for that), ``payload`` (bytes of the result before compression), ``crossed`` and ``called``
        (bytes between a block in a process of its own and the model, and those of them that calls of modules gave back) and
        ``error``.
        """
        return self._ask("/admin/log")

    @property
    def said(self) -> str:
        """What the process wrote to its standard error."""
        return "".join(self._said)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            self._said.extend(process.stderr)

    def _ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"ndif-api-key": self.key}
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with _OPENER.open(
                    urllib.request.Request(self.url + path, data, headers, method=method), timeout=60
                ) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    raise EmotraceError(f"loopback server, {path}: {json.load(error)['detail']}") from None
            except OSError as error:  # it is restarting
                if self._process is None or self._process.poll() is not None or time.monotonic() > end:
                    raise EmotraceError(f"loopback server, {path}: {error}. It said:\n{self.said[-2000:]}") from error
                time.sleep(0.02)


@contextmanager
def loopback(
    models: Mapping[str, str | Path],
    *,
    key: str | None = None,
    dtype: str = "float32",
    threads: int | None = None,
    ndif_src: str | Path | None = None,
    **modes: Any,
) -> Iterator[LoopbackServer]:
    """A loopback server for as long as the block runs; it sets nothing in this process.

    Args:
        models: what a client calls a model → the directory in which it lies.
        key: the API key to take; None makes one up, for whoever has it may run code in that process.
        dtype: of the weights; ``auto`` is that of each checkpoint.
        threads: of torch; None for as many as here, so that numbers are equal to the bit.
        ndif_src: a checkout of NDIF's server, whose own sandbox then runs the blocks of ordinary keys.
        modes: flags, ``no_gradients=True, execution_timeout=2.0``; see `LoopbackServer.modes`.

    Raises:
        EmotraceError: for a directory without a model, or if the server does not start.
    """
    for name, directory in models.items():
        if not (Path(directory) / "config.json").is_file():
            raise EmotraceError(
                f"loopback: {name!r} is to be served from {str(directory)!r}, which has no config.json."
            )
    command = [sys.executable, str(SCRIPT), "--attached", "--dtype", dtype]
    command += ["--threads", str(threads or torch.get_num_threads())]
    for name, directory in models.items():
        command += ["--model", f"{name}={Path(directory).resolve()}"]
    command += ["--ndif-src", str(ndif_src)] if ndif_src else []
    for name, value in modes.items():
        flag = "--" + name.replace("_", "-")
        command += [] if value in (None, False) else [flag] if value is True else [flag, str(value)]
    server = LoopbackServer(command, key or str(uuid.uuid4()))
    try:
        server.start()
        yield server
    finally:
        server.stop()
