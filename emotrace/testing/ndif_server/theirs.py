"""Theirs: blocks of ordinary keys run by driver and runner of NDIF's own code, out of a checkout, instead of `sandbox`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from nnsight import TransformersModel

from emotrace.testing.ndif_server.deployments import WRAPPER
from emotrace.testing.ndif_server.sandbox import BlockError

PACKAGE = "ndif.services.ray.sandbox"
START = 300.0
"""Seconds for a runner to start: it imports everything anew for each job."""


class Theirs:
    """In the place of `sandbox.Sandbox`.

    Args:
        checkout: of the server's code.
        directories: name → where a model lies.

    Raises:
        SystemExit: for a folder without that package, or one whose requirements are not installed.
    """

    def __init__(self, checkout: Path, directories: dict[str, Path]) -> None:
        self.directories = directories
        inside = Path(*PACKAGE.split("."))
        root = next((root for root in (checkout / "src", checkout) if (root / inside).is_dir()), None)
        if root is None:
            raise SystemExit(f"no checkout of NDIF's server at {checkout}: it has no {inside}")
        sys.path.insert(0, str(root))
        self.host, self.driver = self._imported("host"), self._imported("driver")

    def run(
        self, name: str, model: TransformersModel, blob: bytes, compress: bool, autocast: str | None,
        say: Callable[[str], None], count: Callable[[str, int], None],
    ) -> bytes:  # fmt: skip
        """The saved values of one block, as `sandbox.Sandbox.run` gives them; what crosses is not counted.

        Raises:
            BlockError: for whatever the block raises.
        """
        about = {"repo_id": str(self.directories[name].resolve()), "revision": None, "task": model.task}
        given = _taken(self.host.spawn, model_key=f"{WRAPPER}:{json.dumps(about)}", timeout=START)
        runner = self.host.spawn(**given)
        with contextlib.ExitStack() as stack:
            stack.callback(runner.stop)
            connection = runner.connection()
            stack.callback(connection.close)
            dtype = next(model._module.parameters()).dtype
            connection.send((blob, compress, str(dtype), None, {}))
            try:
                return self.driver.SandboxDriver(model, dtype, say).pump(connection)[0]
            except self.driver.RunnerError as error:
                lines = [line for line in str(error).splitlines() if line.strip()]
                raise BlockError((lines or ["no reason given"])[-1], str(error)) from None

    def _imported(self, module: str) -> ModuleType:
        try:
            return importlib.import_module(f"{PACKAGE}.{module}")
        except ImportError as error:
            raise SystemExit(f"NDIF's server cannot be imported: {error}") from None


def _taken(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those options that a function of this version takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}
