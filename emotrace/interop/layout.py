"""Layout: the words of the authors' files, and how a file says which emotion, sublayer and layer it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from emotrace.labels import EMOTIONS, EmotraceError, emotion

if TYPE_CHECKING:
    import xarray as xr

SOURCE: Final = "EmotionCircuits, arXiv 2510.11328"
SUBLAYER: Final = {"attention": "resid_mid", "mlp": "resid_post"}
"""Their name of a sublayer's residual state → ours."""
OUTPUT: Final = {"attention": "attn_out", "mlp": "mlp_out"}
"""Their name of a sublayer → its output, where they inject."""
INPUTS: Final = {"o_proj_input": "z", "down_proj_input": "neuron"}
"""Their name of a projection's input → our variable."""

Paths = str | Path | Sequence[str | Path]


def ordered(names: Iterable[Any]) -> tuple[str, ...]:
    """Emotions in the vocabulary's order.

    Raises:
        EmotraceError: for a name that is no emotion.
    """
    given = {emotion(name, EMOTIONS, "published file") for name in names}
    return tuple(e for e in EMOTIONS if e in given)


def emotion_in(file: str | Path) -> str:
    """The emotion that a file name holds as a word.

    Raises:
        EmotraceError: if it holds none.
    """
    words = re.split(r"[^a-z]+", Path(file).stem.lower())
    found = [e for e in EMOTIONS if e in words]
    if len(found) != 1:
        raise EmotraceError(f"{file}: the name says no emotion ({', '.join(EMOTIONS)}).")
    return found[0]


def from_zero(array: xr.DataArray | xr.Dataset, place: str) -> int:
    """The number of layers of an array whose layers count from 0.

    Raises:
        EmotraceError: if they do not: published layouts know a layer by its place only.
    """
    layers = np.atleast_1d(array["layer"].values).tolist()
    if layers != list(range(len(layers))):
        raise EmotraceError(f"{place}: published layouts hold every layer from 0 on, not {layers}.")
    return len(layers)


def by_head(values: np.ndarray, n_heads: int) -> np.ndarray:
    """``[…, width]`` as ``[…, head, head_dim]``.

    Raises:
        EmotraceError: if the heads do not divide the width.
    """
    if n_heads < 1 or values.shape[-1] % n_heads:
        raise EmotraceError(f"n_heads={n_heads} does not divide the width {values.shape[-1]} of o_proj's input.")
    return values.reshape(*values.shape[:-1], n_heads, -1)


def files_of(path: Paths, *patterns: str) -> list[Path]:
    """The files given, or those of a folder that fit the first pattern that any fits.

    Raises:
        EmotraceError: for a folder without such files.
    """
    given = [path] if isinstance(path, (str, Path)) else list(path)
    out: list[Path] = []
    for item in map(Path, given):
        if not item.is_dir():
            out.append(item)
            continue
        inside = next((found for p in patterns if (found := sorted(item.glob(p)))), None)
        if inside is None:
            raise EmotraceError(f"{item} holds no file named {' or '.join(patterns)}.")
        out += inside
    if not out:
        raise EmotraceError("no file given.")
    return out


def numbers(value: object, place: str) -> np.ndarray:
    """A numpy array or torch tensor of finite numbers, as numpy.

    Raises:
        EmotraceError: for anything else.
    """
    array = value.numpy() if isinstance(value, torch.Tensor) else value
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise EmotraceError(f"{place}: an array of finite numbers is due, not {type(value).__name__}.")
    return array


def leak(leaks: bool, n_layers: int) -> dict[str, Any]:
    """The attribute that says where their ``mlp`` was taken after the final norm: in the last layer, or nowhere."""
    return {"after_final_norm": [{"layer": n_layers - 1, "sublayer": "resid_post"}] if leaks else []}
