"""Objects: named bytes in one place, which is all that several writers need to share: a folder has them, and so has a bucket."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Protocol

from emotrace.disk.machine import machine
from emotrace.disk.whole import PARTIAL, sync_folder, synced

UNLINKED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without hard links says."""


class Objects(Protocol):
    """Named bytes; a name may have folders in front, ``a/b``."""

    def read(self, name: str) -> bytes:
        """What an object holds; ``FileNotFoundError`` where there is none."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole, in the place of what is there."""
        ...

    def put_new(self, name: str, data: bytes) -> bool:
        """Write an object whole if there is none of that name; whether there was none."""
        ...

    def delete(self, name: str) -> None:
        """Take an object away, if it is there."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names of the objects that lie in a folder, without it, sorted."""
        ...


class Folder:
    """Files of a folder as `Objects`, also one that several machines share.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        """What a file holds."""
        return (self.path / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole."""
        target = self.path / name
        with self._synced(name, data) as part:
            os.replace(part, target)
            sync_folder(target.parent)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file whole if there is none: linked to its name, which only one of several writers can."""
        target = self.path / name
        with self._synced(name, data) as part:
            try:
                os.link(part, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in UNLINKED:
                    raise
                if target.exists():
                    return False
                os.replace(part, target)
            sync_folder(target.parent)
        return True

    def delete(self, name: str) -> None:
        """Remove a file."""
        (self.path / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder of it."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path / folder) if not entry.name.startswith("."))
        except FileNotFoundError:
            return []

    def _synced(self, name: str, data: bytes) -> contextlib.AbstractContextManager[Path]:
        target = self.path / name
        part = f".{target.name}.{threading.get_ident()}.at-{machine()}.{os.getpid()}{PARTIAL}"
        return synced(target.with_name(part), target, data)
