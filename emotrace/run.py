"""Run: the output folder of an experiment and its manifest; the same command again continues."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd

from emotrace import disk
from emotrace.disk import write_json
from emotrace.files import read_bytes
from emotrace.identity import versions
from emotrace.labels import EmotraceError
from emotrace.secrets import command_line
from emotrace.texts import from_json

if TYPE_CHECKING:
    from emotrace.sites import LanguageModel

MAY_DIFFER = (*disk.MAY_DIFFER, "python", "started", "finished", "seconds")
"""Entries that may differ when a run is continued."""
LOCK = ".lock"
"""In the folder; whoever has locked it writes there."""


class _Hold:
    """The lock of one folder, shared by the runs of this process on it and gone with the last of them."""

    def __init__(self, out: Path) -> None:
        self._file = disk.lock(out / LOCK, f"--out {out}")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


_HELD: WeakValueDictionary[Path, _Hold] = WeakValueDictionary()


class Run:
    """One output folder, which one process at a time writes to until it has finished.

    Args:
        out: the folder; created, or continued if its manifest says the same.
        settings: everything that the numbers depend on (JSON values). No secret belongs here.

    Raises:
        EmotraceError: if the folder holds a run with other settings (each difference is named), or something else, or another
            process is at work there.
    """

    def __init__(self, out: str | Path, settings: Mapping[str, Any]) -> None:
        self.out = Path(out)
        self.settings = json.loads(json.dumps(settings, default=str))
        manifest = self.out / "manifest.json"
        taken = next((p for p in (self.out, *self.out.parents) if p.exists()), None)
        if taken is not None and not taken.is_dir():
            raise EmotraceError(f"--out {self.out}: {taken} is a file; give a folder.")
        if not manifest.is_file() and self.out.is_dir() and not all(map(_ours, self.out.iterdir())):
            raise EmotraceError(f"--out {self.out} is not empty and holds no run of emotrace. Give a new folder.")
        self.out.mkdir(parents=True, exist_ok=True)
        place = self.out.resolve()
        self._hold: _Hold | None = _HELD.get(place) or _HELD.setdefault(place, _Hold(self.out))
        disk.clear_leftovers(self.out, manifest.name)
        if manifest.is_file():
            self._compare(manifest)
            for folder, inside, _ in os.walk(self.out):
                inside[:] = [name for name in inside if not name.endswith(".zarr")]  # stores see to their own
                disk.clear_leftovers(folder)
        self.manifest: dict[str, Any] = {
            **self.settings,
            "command": command_line(),
            "versions": versions(),
            "python": platform.python_version(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self._begun = time.monotonic()
        self._kept = ExitStack()
        write_json(manifest, self.manifest)

    def _compare(self, manifest: Path) -> None:
        text = read_bytes(manifest)
        try:
            before = dict(from_json(text))
        except (ValueError, TypeError):
            raise EmotraceError(
                f"{manifest} is damaged. Give a new folder, or delete that file to start over."
            ) from None
        disk.settle(f"--out {self.out}", before, self.settings, MAY_DIFFER)

    def path(self, *parts: str) -> Path:
        """A path inside the folder, its parents created."""
        path = self.out.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def keep_jobs(self, model: LanguageModel) -> None:
        """Keep the ids of what a server is asked from now on until the run ends well: begun again, it asks for the results."""
        from emotrace.forwards.entering import keeping

        self._kept.enter_context(keeping(model, self.path("requests")))

    def finish(self) -> None:
        """Note the end of the run in the manifest, and let the folder go."""
        self._kept.close()
        self.manifest["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.manifest["seconds"] = round(time.monotonic() - self._begun, 1)
        write_json(self.path("manifest.json"), self.manifest)
        self._hold = None


def _ours(entry: Path) -> bool:
    """Whether an entry of a folder without a manifest is of a run that was killed before it wrote one."""
    return entry.name == LOCK or entry.name.startswith(".manifest.json.")


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON rows; None where there is no finite number (the spread of a single draw)."""
    return [{str(k): _json(v) for k, v in row.items()} for row in table.to_dict("records")]


def _json(value: object) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
