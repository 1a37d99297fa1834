"""Differences: the published emotion-difference vectors of o_proj's and down_proj's inputs, one ``.npy`` per layer.

Their scripts write ``L{l}.npy`` or ``layer{l}.npy`` and read the other, taking zeros for a file that is missing; here both
names are read and written, and a missing layer is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import aligned
from emotrace.interop.files import load_json, load_npy, save_npy, write
from emotrace.interop.layout import SOURCE, by_head, from_zero, numbers, ordered
from emotrace.labels import EMOTIONS, SITE_DIMS, EmotraceError, emotion, filenames
from emotrace.signatures import typed

FOLDER: Final = {"z": "attention_emotion_diff", "neuron": "mlp_emotion_diff"}
NPZ_KEY: Final = "{emotion}/diff/L{layer}"


@typed
def read_differences(
    attention: str | Path | None = None,
    mlp: str | Path | None = None,
    *,
    n_heads: int | None = None,
    n_layers: int | None = None,
    emotions: Sequence[str] = EMOTIONS,
) -> xr.Dataset:
    """Published difference vectors: what their circuit adds to the inputs of o_proj and down_proj.

    Args:
        attention: of o_proj's input: ``attention_emotion_diff`` (or ``emo_diff`` in it) with ``{emotion}/L{l}.npy`` or
            ``layer{l}.npy``, an ``emo_diff_all.npz``, or a ``.npy`` stack ``[emotion, layer, width]``.
        mlp: of down_proj's input, likewise.
        n_heads: query heads; needed with ``attention``.
        n_layers: layers that must be there; None takes one past the last that is found.
        emotions: order of a stack's first axis.

    Returns:
        ``z[emotion, layer, head, head_dim]`` and ``neuron[emotion, layer, unit]`` float32, not normalised. A variable's
        attribute ``n_groups`` is the number of groups behind it where a summary lies beside the files (theirs: 448
        for attention, 20 for MLP).

    Raises:
        EmotraceError: for a missing layer, two files of one layer that differ, shapes that differ, or vectors
            whose norms are not those of their summary.
    """
    if attention is None and mlp is None:
        raise EmotraceError("read_differences: give attention=, mlp= or both.")
    if attention is not None and not n_heads:
        raise EmotraceError("read_differences: o_proj's input is split by head, so give n_heads (Llama-3.2-3B has 24).")
    out = xr.Dataset(attrs={"method": "centered_mean, not normalised", "label": "emotion", "source": SOURCE})
    for name, path in (("z", attention), ("neuron", mlp)):
        if path is None:
            continue
        held = _vectors(Path(path), n_layers, emotions)
        labels = ordered(held)
        shapes = {a.shape for a in held.values()}
        if len(shapes) > 1:
            raise EmotraceError(f"{path}: the emotions have arrays of different shapes: {sorted(shapes)}.")
        values = np.stack([held[e] for e in labels]).astype(np.float32)
        coords = {"emotion": list(labels), "layer": np.arange(values.shape[1])}
        dims = ("emotion", "layer", *SITE_DIMS[name])
        if name == "z":
            values = by_head(values, n_heads or 1)
        found = _summary(Path(path), name, labels, values)
        out[name] = xr.DataArray(values, coords, dims, attrs={} if found is None else {"n_groups": found})
    return out


@typed
def write_differences(differences: xr.Dataset, folder: str | Path) -> list[Path]:
    """Difference vectors as ``{attention,mlp}_emotion_diff/emo_diff/{emotion}/``, every layer under both names.

    Each variable's ``n_groups`` (or the Dataset's) goes into the summaries that lie beside them.

    Args:
        differences: ``z[emotion, layer, head, head_dim]`` and/or ``neuron[emotion, layer, unit]``.
        folder: created if absent.

    Returns:
        The folders written, to be given to `read_differences`.

    Raises:
        EmotraceError: for no such variable, other dims, or layers that do not count from 0.
    """
    names = [n for n in FOLDER if n in differences]
    if not names:
        raise EmotraceError(f"write_differences: no variable 'z' or 'neuron' among {', '.join(map(str, differences))}.")
    written = []
    for name in names:
        array = differences[name]
        wanted = ("emotion", "layer", *SITE_DIMS[name])
        if set(array.dims) != set(wanted):
            raise EmotraceError(f"write_differences: {name!r} has the dims {tuple(array.dims)}, not {wanted}.")
        n_layers = from_zero(array, f"write_differences({name!r})")
        array = aligned.numbered(array, wanted[2], range(array.sizes[wanted[2]]), f"write_differences({name!r})")
        array = array.transpose(*wanted)
        rows = array.values.reshape(*array.shape[:2], -1).astype(np.float32)
        labels = filenames(array["emotion"].values.tolist(), f"write_differences({name!r})")
        base = Path(folder) / FOLDER[name]
        for i, label in enumerate(labels):
            for layer in range(n_layers):
                for stem in ("L", "layer"):
                    save_npy(rows[i, layer], base / "emo_diff" / label / f"{stem}{layer}.npy")
        n_groups = array.attrs.get("n_groups", differences.attrs.get("n_groups"))
        if isinstance(n_groups, (int, np.integer)):
            _write_summary(base, name, labels, rows, int(n_groups))
        written.append(base)
    return written


def _vectors(path: Path, n_layers: int | None, emotions: Sequence[str]) -> dict[str, np.ndarray]:
    """Emotion → ``[layer, width]``."""
    if path.suffix == ".npy":
        stack = load_npy(path)
        if stack.ndim != 3 or len(stack) != len(emotions) or (n_layers or stack.shape[1]) != stack.shape[1]:
            due = f"{len(emotions)} emotions × {n_layers or 'n'} layers × width"
            raise EmotraceError(f"{path} has shape {stack.shape}; {due} is due.")
        return {emotion(e, EMOTIONS, str(path)): numbers(a, str(path)) for e, a in zip(emotions, stack, strict=True)}
    layers: dict[str, dict[int, np.ndarray]] = {}
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                content = dict(file)
        except (OSError, ValueError, EOFError) as error:
            raise EmotraceError(f"{path} is no .npz file of numbers: {error}.") from error
        for key, vector in content.items():
            match = re.fullmatch(r"(\w+)/diff/L(\d+)", key)
            if match is None:
                raise EmotraceError(f"{path}: key {key!r}; the keys are {NPZ_KEY.format(emotion='anger', layer=0)}, ….")
            name = emotion(match.group(1), EMOTIONS, str(path))
            layers.setdefault(name, {})[int(match.group(2))] = numbers(vector, f"{path}, {key}")
    else:
        base = path / "emo_diff" if (path / "emo_diff").is_dir() else path
        for folder in sorted(p for p in base.glob("*") if p.is_dir()):
            layers[emotion(folder.name, EMOTIONS, str(base))] = _folder(folder)
    if not layers:
        raise EmotraceError(
            f"{path} holds no folders of emotions with L0.npy or layer0.npy, …, and is no .npz or .npy."
        )
    n_layers = n_layers or 1 + max(layer for found in layers.values() for layer in found)
    for name, found in layers.items():
        missing = [layer for layer in range(n_layers) if layer not in found]
        beyond = [layer for layer in found if layer >= n_layers]
        if missing or beyond:
            what = f"lacks layer {missing[0]}" if missing else f"has a layer {beyond[0]}"
            raise EmotraceError(f"{path}: {name} {what} of {n_layers} (files L0.npy or layer0.npy, …).")
    widths = {v.shape for found in layers.values() for v in found.values()}
    if len(widths) > 1 or len(next(iter(widths))) != 1:
        raise EmotraceError(f"{path}: vectors of different shapes: {sorted(widths)}.")
    return {name: np.stack([found[layer] for layer in range(n_layers)]) for name, found in layers.items()}


def _folder(folder: Path) -> dict[int, np.ndarray]:
    """Layer → vector, from files of either name."""
    out: dict[int, np.ndarray] = {}
    for file in sorted(folder.glob("*.npy")):
        match = re.fullmatch(r"(?:L|layer)(\d+)", file.stem)
        if match is None:
            raise EmotraceError(f"{file}: the files are named L0.npy or layer0.npy, ….")
        layer, vector = int(match.group(1)), numbers(load_npy(file), str(file))
        if layer in out and not np.array_equal(out[layer], vector):
            raise EmotraceError(
                f"{folder}: L{layer}.npy and layer{layer}.npy differ; delete the one that is not meant."
            )
        out[layer] = vector
    if not out:
        raise EmotraceError(f"{folder} holds no L0.npy or layer0.npy, ….")
    return out


def _summary(path: Path, name: str, labels: Sequence[str], values: np.ndarray) -> int | None:
    """Number of groups that the summaries beside the vectors name, after comparing norms where they hold them."""
    base = path.parent if path.is_file() or path.name == "emo_diff" else path
    counts: set[int] = set()
    for i, label in enumerate(labels):
        file = base / ("summary.json" if name == "z" else f"emo_diff_summary_{label}.json")
        if not file.is_file():
            return None
        content = load_json(file)
        layers = (content.get(label, {}) if name == "z" else content).get("layers")
        for layer, vector in enumerate(values[i].reshape(values.shape[1], -1)):
            entry = layers.get(str(layer)) if isinstance(layers, Mapping) else None
            if not isinstance(entry, Mapping):
                raise EmotraceError(f"{file} says nothing of layer {layer} of {label}.")
            norm = float(np.linalg.norm(vector))
            if "norm" in entry and abs(norm - entry["norm"]) > 1e-5 * norm:
                raise EmotraceError(
                    f"{file} belongs to other vectors: {label}, layer {layer} has norm {norm:.6g}, not {entry['norm']:.6g}."
                )
            counts.add(int(entry.get("count", entry.get("n_groups_for_diff", 0))))
    if len(counts) > 1:
        raise EmotraceError(f"{base}: the summaries name different numbers of groups: {sorted(counts)}.")
    return counts.pop()


def _write_summary(base: Path, name: str, labels: Sequence[str], rows: np.ndarray, n_groups: int) -> None:
    def layer(vector: np.ndarray) -> dict[str, Any]:
        if name == "neuron":
            each = ("n_groups_with_e", "n_groups_total", "n_groups_for_diff")
            return {**dict.fromkeys(each, n_groups), "d_ff": len(vector)}
        figures = {"norm": np.linalg.norm(vector), "mean": vector.mean(), "std": vector.std()}
        return {"count": n_groups, **{k: float(v) for k, v in figures.items()}}

    found = {e: {"layers": {str(i): layer(v) for i, v in enumerate(rows[n])}} for n, e in enumerate(labels)}
    files = {"summary.json": found} if name == "z" else {f"emo_diff_summary_{e}.json": v for e, v in found.items()}
    if name == "neuron":
        files["emo_diff_summary_all.json"] = found
    for file, content in files.items():
        write(base / file, (json.dumps(content, indent=2) + "\n").encode())
