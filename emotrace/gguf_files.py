"""GGUF files: what stands in the header of one, of whatever origin, and where its tensors lie; nothing else is read."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from emotrace.labels import EmotraceError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
_NUMBERS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_DEPTH: Final = 4
"""Arrays inside each other; files have at most one."""
Value = str | int | float | bool


class Tensor(NamedTuple):
    """Where one tensor lies."""

    name: str
    shape: tuple[int, ...]
    """As torch has it: the last axis runs fastest."""
    kind: GGMLQuantizationType
    start: int
    """Of the file."""
    size: int
    """Bytes."""

    @property
    def numel(self) -> int:
        """Numbers that it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    path: Path
    fields: dict[str, Value]
    arrays: dict[str, int]
    """Names of the fields that are arrays, and their lengths."""
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """``llama``, ``qwen2``, ``controlvector`` …; empty where the file does not say."""
        return str(self.fields.get("general.architecture", ""))

    def bytes_of(self, tensor: Tensor) -> bytes:
        """A tensor as it lies in the file."""
        with self.path.open("rb") as file:
            file.seek(tensor.start)
            return file.read(tensor.size)


def is_one(path: str | Path) -> bool:
    """Whether a path is meant as a GGUF file: by its name, or by what it begins with."""
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def header(path: str | Path) -> Header:
    """The header of a GGUF file, checked against its length.

    Raises:
        EmotraceError: for a file that is missing, no GGUF file, of another version, damaged, or cut off.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise EmotraceError(f"{path} is no GGUF file.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
                return _header(path, _Reader(held))
    except OSError as error:
        raise EmotraceError(f"{path}: {error.strerror or error}.") from None
    except (struct.error, UnicodeDecodeError, OverflowError, _Damaged) as error:
        raise EmotraceError(f"{path} is a damaged GGUF file, or cut off: {error}.") from None


class _Damaged(Exception):
    """What no writer writes."""


class _Reader:
    """A place in the bytes of a file."""

    def __init__(self, held: mmap.mmap) -> None:
        self.held, self.at = held, len(MAGIC)

    def take(self, form: str) -> tuple[int | float | bool, ...]:
        found = struct.unpack_from(form, self.held, self.at)
        self.at += struct.calcsize(form)
        return found

    def number(self, form: str = "<Q") -> int:
        return int(self.take(form)[0])

    def skip(self, length: int) -> int:
        """Go on by so many bytes; where they began."""
        begun, self.at = self.at, self.at + length
        if self.at > len(self.held):
            raise _Damaged(f"{length:,} bytes are to stand at byte {begun:,} of {len(self.held):,}")
        return begun

    def text(self) -> str:
        begun = self.skip(self.number())
        return self.held[begun : self.at].decode("utf-8")


def _header(path: Path, reader: _Reader) -> Header:
    version = reader.number("<I")
    if version not in VERSIONS:
        turned = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        what = "big-endian" if turned else f"version {version}"
        raise EmotraceError(f"{path} is a GGUF file of a kind that is not read: {what}.")
    many, entries = reader.number(), reader.number()
    fields: dict[str, Value] = {}
    arrays: dict[str, int] = {}
    for _ in range(entries):
        name, kind = reader.text(), reader.number("<I")
        if kind == _ARRAY:
            arrays[name] = _skip_array(reader)
        else:
            fields[name] = _value(reader, kind)
    table = [_entry(reader) for _ in range(many)]
    align = fields.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1:
        raise _Damaged(f"general.alignment is {align!r}")
    start = -(-reader.at // align) * align
    tensors = tuple(_placed(*entry, start) for entry in table)
    for tensor in tensors:
        if tensor.start + tensor.size > len(reader.held):
            raise _Damaged(
                f"tensor {tensor.name!r} ends at byte {tensor.start + tensor.size:,} of {len(reader.held):,}"
            )
    return Header(path, fields, arrays, tensors)


def _value(reader: _Reader, kind: int) -> Value:
    if kind == _STRING:
        return reader.text()
    if kind not in _NUMBERS:
        raise _Damaged(f"a value of the unknown type {kind} at byte {reader.at:,}")
    return reader.take(_NUMBERS[kind])[0]


def _skip_array(reader: _Reader, depth: int = 0) -> int:
    kind, count = reader.number("<I"), reader.number()
    if kind in _NUMBERS:
        reader.skip(count * struct.calcsize(_NUMBERS[kind]))
        return count
    if kind not in (_STRING, _ARRAY) or depth == _DEPTH:
        raise _Damaged(f"an array of type {kind} at byte {reader.at:,}")
    for _ in range(count):
        if kind == _STRING:
            reader.skip(reader.number())
        else:
            _skip_array(reader, depth + 1)
    return count


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.text()
    dims = reader.number("<I")
    if dims > 8:
        raise _Damaged(f"tensor {name!r} has {dims} axes")
    shape = tuple(int(n) for n in reversed(reader.take(f"<{dims}Q")))
    return name, shape, reader.number("<I"), reader.number()


def _placed(name: str, shape: tuple[int, ...], kind: int, offset: int, start: int) -> Tensor:
    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        raise _Damaged(f"tensor {name!r} is of the unknown type {kind}") from None
    block, size = GGML_QUANT_SIZES[known]
    if shape and shape[-1] % block:
        raise _Damaged(f"tensor {name!r} has rows of {shape[-1]}, which are no blocks of {block} ({known.name})")
    return Tensor(name, shape, known, start + offset, math.prod(shape) // block * size)
