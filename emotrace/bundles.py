"""Bundles: labelled numbers as ``NAME.safetensors`` and ``NAME.json``; nothing is pickled.

Each file is written beside its place, synced and renamed. The JSON file comes last and carries the digest of the numbers, so
a bundle is whole or refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from emotrace.disk import replace_file
from emotrace.labels import EmotraceError, filename
from emotrace.texts import to_json

FORMAT = 1


def write(folder: str | Path, name: str, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Path:
    """Write a bundle into a folder, which is made where it does not exist.

    Args:
        folder: where to.
        name: stem of the two files.
        tensors: the numbers.
        about: JSON values that say what they are; ``format`` and ``sha256`` are added.

    Returns:
        The path of the JSON file.

    Raises:
        EmotraceError: if a file cannot be written, or the name is not one of a file.
    """
    folder = Path(folder)
    filename(name, f"{folder}")
    blob = save_tensors({k: np.array(v, order="C") for k, v in tensors.items()})
    described = {"format": FORMAT, **about, "sha256": hashlib.sha256(blob).hexdigest()}
    text = to_json(described, indent=1) + "\n"
    replace_file(folder / f"{name}.safetensors", blob)
    replace_file(folder / f"{name}.json", text.encode())
    return folder / f"{name}.json"


def read(folder: str | Path, name: str, what: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write` wrote: ``about`` without ``format`` and ``sha256``, and the numbers.

    Args:
        folder: where from.
        name: stem of the two files.
        what: what they hold, for messages, e.g. ``directions``.

    Raises:
        EmotraceError: where a file is missing, damaged, of another format, or the numbers are not those described.
    """
    described, numbers = Path(folder) / f"{name}.json", Path(folder) / f"{name}.safetensors"
    for file in (described, numbers):
        if not file.is_file():
            raise EmotraceError(f"{file} does not exist; {what}: a folder with {name}.json and its safetensors.")
    about, tensors = read_pair(described, numbers, what)
    version = about.pop("format", None)
    if version != FORMAT:
        raise EmotraceError(f"{described} has format {version!r}; this version reads {FORMAT}.")
    del about["sha256"]
    return about, tensors


def read_pair(described: Path, numbers: Path, what: str = "numbers") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A JSON file and the tensors whose ``sha256`` it holds, after checking that.

    Raises:
        EmotraceError: where one is missing, cannot be read, or the sha256 differs.
    """
    for file in (described, numbers):
        if not file.is_file():
            raise EmotraceError(f"{file} does not exist; {described.name} and {numbers.name} belong together.")
    try:
        about = dict(json.loads(described.read_text(encoding="utf-8")))
        wanted = about["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise EmotraceError(f"{described} is damaged or no manifest of {what} ({error!r}).") from error
    blob = numbers.read_bytes()
    if hashlib.sha256(blob).hexdigest() != wanted:
        raise EmotraceError(
            f"{numbers} is not the file that {described.name} describes (sha256 differs): write it again."
        )
    try:
        return about, load_tensors(blob)
    except SafetensorError as error:
        raise EmotraceError(f"{numbers} cannot be read: {error}.") from error
