"""Buckets: objects in S3, Google's or Azure's storage, by obstore; in memory, and wherever else, by fsspec.

A request that fails is repeated: it says the same, and an object is whole or not there.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, TypeVar

from emotrace.labels import EmotraceError

R = TypeVar("R")
OBSTORE: Final = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss")
"""Schemes that obstore takes; it finds keys and endpoints where the provider's own tools do."""
TRIES: Final = 9
"""Times that a request is made before it is given up; waits between them grow to `LONGEST` seconds."""
FIRST_WAIT, LONGEST = 0.05, 10.0


def is_url(path: object) -> bool:
    """Whether a path names a place that is no folder of this machine; also as ``pathlib`` writes it, with one slash."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) is not None


def url_of(path: object) -> str:
    """The URL that a path names."""
    return re.sub(r"^([a-z][a-z0-9+.-]+):/+", r"\1://", str(path))


class Bucket:
    """Objects below a URL, as `emotrace.disk.Objects`.

    Args:
        url: ``s3://bucket/folder``, ``gs://…``, ``az://…``, ``memory://…``, or what else fsspec takes.

    Raises:
        EmotraceError: for a URL that no installed package knows.
    """

    def __init__(self, url: str) -> None:
        self.url = url_of(url).rstrip("/")
        scheme = url.partition("://")[0]
        self._raw: _Raw = _Obstore(self.url) if scheme in OBSTORE and _has("obstore") else _Fsspec(self.url)

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return Bucket, (self.url,)

    def read(self, name: str) -> bytes:
        """What an object holds; ``FileNotFoundError`` where there is none."""
        return self._repeated("read", name, lambda: self._raw.read(name))

    def read_part(self, name: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of an object."""
        return self._repeated("read", name, lambda: self._raw.read_part(name, start, stop))

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        try:
            return self._repeated("read", name, lambda: self._raw.size(name))
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write an object whole, in the place of what is there."""
        self._repeated("written", name, lambda: self._raw.put(name, data))

    def put_new(self, name: str, data: bytes) -> bool:
        """Write an object whole if there is none; whether it is there now, with these bytes: an answer may have been lost."""
        return self._repeated("written", name, lambda: self._raw.put_new(name, data) or self._raw.read(name) == data)

    def delete(self, name: str) -> None:
        """Take an object away, if it is there."""
        try:
            self._repeated("removed", name, lambda: self._raw.delete(name))
        except FileNotFoundError:
            return

    def names(self, folder: str) -> list[str]:
        """Names of the objects that lie in a folder, without it, sorted."""
        return sorted(self._repeated("listed", folder, lambda: self._raw.names(folder)))

    def _repeated(self, what: str, name: str, ask: Callable[[], R]) -> R:
        """What a request gives, made until it does."""
        for tries in range(1, TRIES + 1):
            try:
                return ask()
            except FileNotFoundError:
                raise
            except self._raw.failures as error:
                if tries == TRIES or isinstance(error, self._raw.final):
                    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise EmotraceError(
                        f"{self.url}/{name} cannot be {what} (tried {tries} times): {said[:300]}"
                    ) from error
            time.sleep(min(LONGEST, FIRST_WAIT * 2**tries) * random.uniform(0.5, 1))
        raise AssertionError


class _Raw(ABC):
    """One request each, which may fail with one of ``failures``; those that are ``final`` would fail again."""

    failures: tuple[type[BaseException], ...] = (OSError,)
    final: tuple[type[BaseException], ...] = (PermissionError,)

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def read_part(self, name: str, start: int, stop: int) -> bytes: ...

    @abstractmethod
    def size(self, name: str) -> int: ...

    @abstractmethod
    def put(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def put_new(self, name: str, data: bytes) -> bool: ...

    @abstractmethod
    def delete(self, name: str) -> None: ...

    @abstractmethod
    def names(self, folder: str) -> list[str]: ...


class _Obstore(_Raw):
    def __init__(self, url: str) -> None:
        obstore, exceptions = importlib.import_module("obstore"), importlib.import_module("obstore.exceptions")
        self._call: Any = obstore
        self._store: Any = importlib.import_module("obstore.store").from_url(url)
        self._there = exceptions.AlreadyExistsError
        self.failures = (exceptions.BaseError, OSError)
        self.final = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, exceptions.InvalidPathError)

    def read(self, name: str) -> bytes:
        return bytes(self._call.get(self._store, name).bytes())

    def read_part(self, name: str, start: int, stop: int) -> bytes:
        return bytes(self._call.get_range(self._store, name, start=start, end=stop))

    def size(self, name: str) -> int:
        return int(self._call.head(self._store, name)["size"])

    def put(self, name: str, data: bytes) -> None:
        self._call.put(self._store, name, data, use_multipart=False)

    def put_new(self, name: str, data: bytes) -> bool:
        try:
            self._call.put(self._store, name, data, mode="create", use_multipart=False)
        except self._there:
            return False
        return True

    def delete(self, name: str) -> None:
        self._call.delete(self._store, name)

    def names(self, folder: str) -> list[str]:
        found = self._call.list_with_delimiter(self._store, folder)
        return [one["path"].rpartition("/")[2] for one in found["objects"]]


class _Fsspec(_Raw):
    def __init__(self, url: str) -> None:
        import fsspec

        scheme = url.partition("://")[0]
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise EmotraceError(
                f"{url}: {error} `pip install emotrace[cloud]` brings obstore, which knows {', '.join(OBSTORE)}; {scheme}:// may "
                "need a package of its own."
            ) from error

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str) -> bytes:
        return self._files.cat_file(self._at(name))

    def read_part(self, name: str, start: int, stop: int) -> bytes:
        return self._files.cat_file(self._at(name), start=start, end=stop)

    def size(self, name: str) -> int:
        self._files.invalidate_cache()
        return int(self._files.info(self._at(name))["size"])

    def put(self, name: str, data: bytes) -> None:
        self._files.pipe_file(self._at(name), data)

    def put_new(self, name: str, data: bytes) -> bool:
        try:
            self._files.pipe_file(self._at(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        self._files.rm_file(self._at(name))

    def names(self, folder: str) -> list[str]:
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._at(folder), detail=True)
        except FileNotFoundError:
            return []
        return [one["name"].rpartition("/")[2] for one in found if one["type"] == "file"]


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
