"""Files: published bytes in and out: pickled numpy only through torch's weights-only reader, writes in one step."""

from __future__ import annotations

import io
import pickle
import re
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np
import torch
from numpy.typing import ArrayLike

from emotrace.bundles import replace_file
from emotrace.files import read_json
from emotrace.labels import EmotraceError

RECONSTRUCT: Final[Any] = cast(tuple[Any, ...], np.empty(0).__reduce__())[0]
"""The function by which numpy pickles its arrays."""
ALLOWED: Final[list[Any]] = [
    (RECONSTRUCT, "numpy.core.multiarray._reconstruct"),  # as numpy 1 spells it
    (RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
]
"""All that a published pickle may name beside torch's own tensors: arrays of plain numbers."""


def load_numbers(path: str | Path) -> object:
    """What a ``.pt`` file holds, read with ``weights_only=True`` and nothing allowed but `ALLOWED`.

    No code of the file runs: a file that names anything else is refused before it is read.

    Raises:
        EmotraceError: for a missing or damaged file, or one that names another global (which is told).
    """
    path = Path(path)
    if not path.is_file():
        raise EmotraceError(f"{path}: no such file.")
    with warnings.catch_warnings(), torch.serialization.safe_globals(ALLOWED):
        warnings.simplefilter("ignore")  # torch warns of pickle protocols other than its own
        foreign = _foreign(path)
        if foreign:
            raise EmotraceError(
                f"{path} names {', '.join(foreign)}, which a file of numbers does not need; it is not read. Only numpy "
                "arrays and torch tensors are."
            )
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the bytes are a stranger's: whatever they raise, they are no published file
            raise EmotraceError(f"{path} cannot be read as numbers: {_reason(str(error)) or repr(error)}.") from error


def load_pt(path: str | Path) -> dict[str, Any]:
    """The dict of a ``.pt`` file.

    Args:
        path: of numpy arrays and torch tensors; a file that names anything else is refused unread.

    Raises:
        EmotraceError: as `load_numbers`, and for a file that holds no dict.
    """
    value = load_numbers(path)
    if not isinstance(value, dict):
        raise EmotraceError(f"{path} holds a {type(value).__name__}, not a dict.")
    return value


def save_numbers(value: Mapping[Any, torch.Tensor], path: str | Path) -> None:
    """Write a dict of tensors as torch does."""
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    write(path, buffer.getvalue())


def save_pt(value: Mapping[str, Any], path: str | Path) -> None:
    """Write a dict with numpy arrays as torch does, in a form that numpy 1 and numpy 2 both read."""
    buffer = io.BytesIO()
    torch.save(dict(value), buffer, pickle_module=cast(Any, types.SimpleNamespace(Pickler=_Pickler, __name__="pickle")))
    write(path, buffer.getvalue())


class _Pickler(pickle.Pickler):
    """Pickles arrays under the name that numpy 1 gave their constructor; numpy 2 knows it too, but not the reverse."""

    def __init__(self, file: IO[bytes], protocol: int = 2) -> None:
        self._file, self._inner = file, io.BytesIO()
        super().__init__(self._inner, protocol=2)  # later protocols spell names in more than one way

    def dump(self, obj: object) -> None:
        super().dump(obj)
        self._file.write(
            self._inner.getvalue().replace(
                b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\n_reconstruct\n"
            )
        )


def _foreign(path: Path) -> list[str]:
    """Globals that a zip checkpoint names and that are not allowed; nothing is loaded."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # no zip, or a damaged one: `torch.load` says what is wrong
        return []


def _reason(message: str) -> str:
    """Torch's reason, without its advice to load the file unsafely."""
    for pattern, words in ((r"GLOBAL (\S+)", "it names "), (r"WeightsUnpickler error:\s*(.+)", "")):
        found = re.search(pattern, message)
        if found:
            return words + found.group(1).rstrip(". ")
    return message.strip().split("\n")[0].split(". ")[0]


def load_npy(path: str | Path) -> np.ndarray:
    """A ``.npy`` array of numbers.

    Raises:
        EmotraceError: for a missing or damaged file, or one of Python objects.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise EmotraceError(f"{path}: no such file.") from None
    except (OSError, ValueError, EOFError) as error:
        raise EmotraceError(f"{path} is no .npy file of numbers: {error}.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise EmotraceError(f"{path} holds no array of numbers.")
    return array


def save_npy(array: ArrayLike, path: str | Path) -> None:
    """Write a ``.npy`` array."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    write(path, buffer.getvalue())


def load_json(path: str | Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        EmotraceError: for a missing file or anything but an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise EmotraceError(f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value


def write(path: str | Path, data: bytes) -> None:
    """Write a file so that it is at any moment either the old one or the new one."""
    replace_file(Path(path), data)
