"""Bundles: labelled numbers as ``NAME.safetensors`` and ``NAME.json``; nothing is pickled.

Each file is written beside its place, synced and renamed. The JSON file comes last and carries the digests of the numbers and
of what it says itself, so a bundle is whole or refused.
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
from emotrace.files import read_bytes
from emotrace.labels import EmotraceError, filename
from emotrace.texts import from_json, to_json

FORMAT = 1
CONTENT = "content_sha256"
"""Entry of a manifest: the digest of all the others; manifests of earlier versions have none."""


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
    text = to_json({**described, CONTENT: content(described)}, indent=1) + "\n"
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
    version = about.get("format")
    if version != FORMAT:
        raise EmotraceError(f"{described} has format {version!r}; this version reads {FORMAT}.")
    confirm(described, about)
    return {k: v for k, v in about.items() if k not in ("format", "sha256", CONTENT)}, tensors


def confirm(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest that does not say what was written.

    Raises:
        EmotraceError: naming it; one of an earlier version, without a digest of its own, passes.
    """
    if manifest.get(CONTENT, (told := content(manifest))) != told:
        raise EmotraceError(
            f"{path} is damaged: it does not say what was written (its digest differs). Write it again."
        )


def content(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, as canonical JSON, but for this entry itself."""
    told = {k: v for k, v in manifest.items() if k != CONTENT}
    return hashlib.sha256(json.dumps(json.loads(to_json(told)), sort_keys=True).encode()).hexdigest()


def read_pair(described: Path, numbers: Path, what: str = "numbers") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A JSON file and the tensors whose ``sha256`` it holds, after checking that.

    Raises:
        EmotraceError: where one is missing, cannot be read, or the sha256 differs.
    """
    for file in (described, numbers):
        if not file.is_file():
            raise EmotraceError(f"{file} does not exist; {described.name} and {numbers.name} belong together.")
    text = read_bytes(described)
    try:
        about = dict(from_json(text))
        wanted = about["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise EmotraceError(f"{described} is damaged or no manifest of {what} ({error!r}).") from error
    blob = read_bytes(numbers)
    if hashlib.sha256(blob).hexdigest() != wanted:
        raise EmotraceError(
            f"{numbers} is not the file that {described.name} describes (sha256 differs): write it again."
        )
    try:
        return about, load_tensors(blob)
    except SafetensorError as error:
        raise EmotraceError(f"{numbers} cannot be read: {error}.") from error
