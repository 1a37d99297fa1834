"""GGUF: llama.cpp's container as far as vectors need it: key-values and float tensors, little-endian, versions 2 and 3."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from emotrace.interop.files import write
from emotrace.labels import EmotraceError

MAGIC: Final = b"GGUF"
ALIGNMENT: Final = 32
_SCALARS: Final = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
_U32, _STRING, _ARRAY = 4, 8, 9
_FLOATS: Final = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
"""Types of tensors that are read; others are quantised, and of no use as vectors."""


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The key-values and the tensors of a file.

    Raises:
        EmotraceError: for a missing, damaged or big-endian file, or tensors that are not float32 or float16.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EmotraceError(f"{path}: {error.strerror or error}.") from None
    if data[:4] != MAGIC:
        raise EmotraceError(f"{path} is no GGUF file.")
    try:
        return _Reader(data, str(path)).whole()
    except (struct.error, ValueError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, EmotraceError):
            raise
        raise EmotraceError(f"{path} is a damaged GGUF file: {error}.") from None


def write_gguf(path: str | Path, values: Mapping[str, str | int], tensors: Mapping[str, np.ndarray]) -> Path:
    """Write strings and whole numbers (as uint32) and float32 tensors ``[n]``."""
    out, body = io.BytesIO(), io.BytesIO()
    out.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(values)))
    for key, value in values.items():
        out.write(_text(key))
        out.write(
            struct.pack("<I", _STRING) + _text(value)
            if isinstance(value, str)
            else struct.pack("<II", _U32, int(value))
        )
    for name, array in tensors.items():
        flat = np.ascontiguousarray(array, dtype="<f4")
        out.write(_text(name) + struct.pack("<IQIQ", 1, flat.size, 0, body.tell()))
        body.write(flat.tobytes())
        body.write(bytes(-body.tell() % ALIGNMENT))
    out.write(bytes(-out.tell() % ALIGNMENT))
    write(path, out.getvalue() + body.getvalue())
    return Path(path)


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


class _Reader:
    def __init__(self, data: bytes, place: str) -> None:
        self.data, self.place, self.at = data, place, 4

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        size = self.take("Q")
        if self.at + size > len(self.data):
            raise ValueError("a text runs past its end")
        raw = self.data[self.at : self.at + size]
        self.at += size
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, size = self.take("I"), self.take("Q")
            if size > len(self.data):
                raise ValueError("a list runs past its end")
            return [self.value(inner) for _ in range(size)]
        if kind not in _SCALARS:
            raise ValueError(f"no such kind of value: {kind}")
        return self.take(_SCALARS[kind])

    def whole(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        version = self.take("I")
        if version not in (2, 3):
            raise EmotraceError(f"{self.place}: GGUF of version {version}; 2 and 3 are read, little-endian.")
        n_tensors, n_values = self.take("Q"), self.take("Q")
        values: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.text()
            values[key] = self.value(self.take("I"))
        held = []
        for _ in range(n_tensors):
            name, n_dims = self.text(), self.take("I")
            shape = [self.take("Q") for _ in range(n_dims)]
            held.append((name, shape, self.take("I"), self.take("Q")))
        align = values.get("general.alignment", ALIGNMENT)
        if not isinstance(align, int) or isinstance(align, bool) or align < 1:
            raise ValueError(f"general.alignment is {align!r}")
        start = self.at + -self.at % align
        tensors = {}
        for name, shape, kind, offset in held:
            if kind not in _FLOATS:
                raise EmotraceError(
                    f"{self.place}: tensor {name!r} is of type {kind}; only float32 and float16 are read."
                )
            size = int(np.prod(shape, dtype=np.uint64))
            tensors[name] = np.frombuffer(self.data, _FLOATS[kind], size, start + offset).reshape(shape[::-1])
        return values, tensors
