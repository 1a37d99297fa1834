"""Located: where something lies: a folder of this machine as ``pathlib`` has it, or a place in a bucket that answers alike."""

from __future__ import annotations

import os
from pathlib import Path

from emotrace.disk.buckets import Bucket, is_url, url_of
from emotrace.disk.objects import Folder, Objects


class There:
    """A place in a bucket, with the few methods of a ``Path`` that reading needs.

    Args:
        bucket: below whose URL it lies.
        inside: names from there, with slashes.
    """

    def __init__(self, bucket: Bucket, inside: str = "") -> None:
        self.bucket, self.inside = bucket, inside

    def __str__(self) -> str:
        return f"{self.bucket.url}/{self.inside}" if self.inside else self.bucket.url

    def __repr__(self) -> str:
        return f"There({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, There) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> There:
        return There(self.bucket, f"{self.inside}/{name}" if self.inside else str(name))

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    def read_bytes(self) -> bytes:
        """What the object holds."""
        return self.bucket.read(self.inside)

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return self.bucket.size(self.inside or "zarr.json") is not None or self.is_dir()

    def is_dir(self) -> bool:
        """Whether objects lie in a folder of this name."""
        return bool(self.bucket.names(self.inside))

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self.bucket.size(self.inside) is not None

    def unlink(self, missing_ok: bool = False) -> None:
        """Take the object away."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(str(self))
        self.bucket.delete(self.inside)


Located = Path | There


def located(path: str | os.PathLike[str] | There) -> Located:
    """A path of this machine, or a place in a bucket for a URL."""
    if isinstance(path, There):
        return path
    return There(Bucket(url_of(path))) if is_url(path) else Path(path)


def objects(root: Located) -> Objects:
    """What lies in a folder, or in a place of a bucket, as objects.

    Args:
        root: the folder, or the place that a bucket's URL names.
    """
    if isinstance(root, Path):
        return Folder(root)
    return Bucket(str(root)) if root.inside else root.bucket


def names_in(root: Located, folder: str) -> list[str]:
    """Names in a folder of a place, sorted; ``OSError`` where there is no such folder of this machine."""
    if isinstance(root, Path):
        return sorted(os.listdir(root / folder))
    return root.bucket.names(f"{root.inside}/{folder}" if root.inside else folder)
