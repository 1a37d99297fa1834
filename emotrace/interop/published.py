"""Published: the arrays of EmotionCircuits (arXiv 2510.11328) as labelled arrays, and ours in their layouts.

Their ``attention`` is our ``resid_mid`` (after the attention's addition) and their ``mlp`` our ``resid_post``. The last
layer of their ``mlp`` was taken after the model's final norm (``hidden_states[-1]``): arrays say so in
``attrs["after_final_norm"]``, a list of ``{"layer", "sublayer"}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr

from emotrace.directions.similarity import SHORT
from emotrace.interop.files import load_json, load_npy, load_pt, save_pt
from emotrace.interop.layout import (
    INPUTS,
    SOURCE,
    SUBLAYER,
    Paths,
    by_head,
    emotion_in,
    files_of,
    from_zero,
    leak,
    numbers,
    ordered,
)
from emotrace.labels import EMOTIONS, SITE_DIMS, VALENCES, EmotraceError, emotion, unknown
from emotrace.signatures import typed

KIND: Final = {ours: theirs for theirs, ours in SUBLAYER.items()}
DUMPED: Final = "hidden_last_all_layers"


@typed
def read_directions(
    path: Paths, *, sublayer: str | None = None, emotions: Sequence[str] = EMOTIONS, final_norm: bool | None = None
) -> xr.DataArray:
    """Published emotion directions.

    Args:
        path: ``emo_directions_{attention,mlp}.pt`` (a dict ``{dirs: {emotion: float32 [layer, dim]}, …}``), a ``.npy`` stack
            ``[emotion, layer, dim]``, several of them, or a folder of them.
        sublayer: ``resid_mid`` or ``resid_post`` of a stack whose file name says neither ``attention`` nor ``mlp``.
        emotions: order of a stack's first axis.
        final_norm: whether the last layer of ``resid_post`` is after the final norm; None believes the file, and
            the authors' where it is silent (it is).

    Returns:
        ``direction[emotion, layer, sublayer, dim]`` float32 of unit vectors. The files hold no norms; where the vectors are
        linearly dependent as centring makes them (Σ_e n_e v_e = 0, n_e > 0), the coordinate ``relative_norm`` is n_e,
        scaled to mean 1 within each layer and sublayer.

    Raises:
        EmotraceError: for a missing, damaged or unsafe file, shapes that disagree, or vectors that are not unit.
    """
    found: dict[str, _DirectionFile] = {}
    for file in files_of(path, "*directions_*.pt", "*directions_*.npy"):
        held = _direction_file(file, sublayer, emotions)
        if held.sublayer in found:
            raise EmotraceError(f"{file}: a second file for {held.sublayer!r}; give one of them.")
        found[held.sublayer] = held
    subs = [s for s in SUBLAYER.values() if s in found]
    labels = ordered(found[subs[0]].arrays)
    shape = next(iter(found[subs[0]].arrays.values())).shape
    for sub in subs:
        arrays = found[sub].arrays
        if set(arrays) != set(labels) or any(a.shape != shape or a.ndim != 2 for a in arrays.values()):
            got = {e: a.shape for e, a in arrays.items()}
            raise EmotraceError(f"{path}: {sub!r} holds {got}, not {', '.join(labels)} of one shape [layer, dim].")
    values = np.stack([np.stack([found[s].arrays[e] for s in subs], axis=1) for e in labels]).astype(np.float32)
    norms = np.linalg.norm(values.astype(np.float64), axis=-1)
    if not np.abs(norms - 1).max() < 1e-3:
        raise EmotraceError(f"{path}: norms from {norms.min():.3g} to {norms.max():.3g}; directions are unit vectors.")
    leaks = found["resid_post"].leaks if "resid_post" in found and final_norm is None else bool(final_norm)
    out = xr.DataArray(
        values,
        dims=("emotion", "layer", "sublayer", "dim"),
        coords={"emotion": list(labels), "layer": np.arange(shape[0]), "sublayer": subs},
        name="direction",
        attrs={
            "method": "centered_mean",
            "sign": "positive = more of this emotion than the mean of all in the same group",
            "label": "emotion",
            "source": SOURCE,
            **leak(leaks and "resid_post" in subs, shape[0]),
        },
    )
    relative = _relative_norms(values)
    return out if relative is None else out.assign_coords(relative_norm=(("emotion", "layer", "sublayer"), relative))


@typed
def write_directions(directions: xr.DataArray, folder: str | Path) -> list[Path]:
    """Directions as ``emo_directions_{attention,mlp}.pt``, in the authors' dict of pickled numpy arrays.

    Their scripts index ``dirs[emotion][layer]`` from layer 0, so every layer must be there. A further key,
    ``after_final_norm``, keeps `read_directions` from assuming their last layer.

    Args:
        directions: ``[emotion, layer, sublayer, dim]`` with sublayers among ``resid_mid``, ``resid_post``.
        folder: created if absent.

    Returns:
        The files written.

    Raises:
        EmotraceError: for other dims, layers that do not count from 0, or no sublayer that they know.
    """
    if set(directions.dims) != {"emotion", "layer", "sublayer", "dim"}:
        raise EmotraceError(f"directions have the dims emotion, layer, sublayer, dim, not {tuple(directions.dims)}.")
    from_zero(directions, "write_directions")
    subs = [s for s in KIND if s in directions["sublayer"].values]
    if not subs:
        raise unknown("sublayer", directions["sublayer"].values.tolist(), KIND, "write_directions")
    leaks = any(p["sublayer"] == "resid_post" for p in directions.attrs.get("after_final_norm", []))
    written = []
    for sub in subs:
        part = directions.sel(sublayer=sub).transpose("emotion", "layer", "dim")
        names = [str(e) for e in part["emotion"].values]
        rows = np.ascontiguousarray(part.values, dtype=np.float32)
        content = {
            "dirs": {e: rows[i].copy() for i, e in enumerate(names)}, "layers": int(part.sizes["layer"]),
            "hidden": int(part.sizes["dim"]), "emotions": names, "type": KIND[sub],
            "after_final_norm": leaks and sub == "resid_post",
        }  # fmt: skip
        written.append(Path(folder) / f"emo_directions_{KIND[sub]}.pt")
        save_pt(content, written[-1])
    return written


@typed
def read_activations(folder: str | Path, kind: str | None = None, *, n_heads: int | None = None) -> xr.DataArray:
    """Published last-token activations: one ``{skeleton}__{valence}.pt`` per complete group of six emotions.

    Args:
        folder: a folder of such files, or ``residual_dump`` with the folders ``attention`` and ``mlp``.
        kind: ``attention``, ``mlp``, ``o_proj_input`` or ``down_proj_input``; None takes the folder's name.
        n_heads: query heads, needed for ``o_proj_input``.

    Returns:
        Float16 as published, ready for `emotrace.directions.centered_mean`: ``residual[layer, sublayer, token, dim]``,
        ``z[layer, token, head, head_dim]`` or ``neuron[layer, token, unit]``; each token carries ``key, skeleton_id,
        valence, emotion``. The dummies of the files (``logits_0, input_ids, last_input_idx``) are left out.

    Raises:
        EmotraceError: for an unknown kind, no file, files of other names, shapes that differ, or sublayers that
            hold other groups.
    """
    folder = Path(folder)
    if kind is None and any((folder / name).is_dir() for name in SUBLAYER):
        parts = [read_activations(folder / name) for name in SUBLAYER if (folder / name).is_dir()]
        if any(not np.array_equal(p["key"].values, parts[0]["key"].values) for p in parts):
            raise EmotraceError(f"{folder}: the folders of the sublayers hold other groups; read them one by one.")
        leaks = [place for part in parts for place in part.attrs["after_final_norm"]]
        return xr.concat(parts, "sublayer", combine_attrs="override").assign_attrs(after_final_norm=leaks)
    kind = folder.name if kind is None else kind
    if kind not in {**SUBLAYER, **INPUTS}:
        raise unknown("kind", kind, (*SUBLAYER, *INPUTS), "read_activations")
    if kind == "o_proj_input" and not n_heads:
        raise EmotraceError("read_activations: o_proj_input is split by head, so give n_heads (Llama-3.2-3B has 24).")
    files = sorted(folder.glob("*.pt"))
    if not files:
        raise EmotraceError(f"{folder} holds no .pt file named SKELETON__VALENCE.pt.")
    blocks, labels = [], []
    for file in files:
        skeleton, _, valence = file.stem.rpartition("__")
        if not skeleton or valence not in VALENCES:
            raise EmotraceError(f"{file.name}: the files are named SKELETON__VALENCE.pt, VALENCE in {VALENCES}.")
        held = load_pt(file).get(DUMPED)
        if not isinstance(held, Mapping) or not held:
            raise EmotraceError(f"{file} holds no dict {DUMPED!r} of emotions.")
        held = {emotion(name, EMOTIONS, str(file)): value for name, value in held.items()}
        for name in ordered(held):
            blocks.append(numbers(held[name], f"{file}, {name}"))
            if blocks[-1].ndim != 2 or blocks[-1].shape != blocks[0].shape:
                raise EmotraceError(f"{file}, {name}: shape {blocks[-1].shape}, where {blocks[0].shape} was before.")
            labels.append((f"{skeleton}__{valence}__{name}".replace("/", "_"), skeleton, valence, name))
    values = np.stack(blocks, axis=1)
    n_layers = values.shape[0]
    coords: dict[str, Any] = {"layer": np.arange(n_layers)}
    for i, column in enumerate(("key", "skeleton_id", "valence", "emotion")):
        coords[column] = ("token", [row[i] for row in labels])
    attrs = {"source": SOURCE, "position": "last prompt token"}
    if kind in SUBLAYER:
        coords["sublayer"] = [SUBLAYER[kind]]
        return xr.DataArray(
            values[:, None], coords, ("layer", "sublayer", "token", "dim"), "residual",
            {**attrs, **leak(kind == "mlp", n_layers)},
        )  # fmt: skip
    if kind == "down_proj_input":
        return xr.DataArray(values, coords, ("layer", "token", *SITE_DIMS["neuron"]), "neuron", attrs)
    return xr.DataArray(by_head(values, n_heads or 1), coords, ("layer", "token", *SITE_DIMS["z"]), "z", attrs)


@typed
def read_sigma(path: str | Path) -> xr.DataArray:
    """``sigma_summary.json``: mean RMS of each sublayer's residual state over samples, ``sigma[layer, sublayer]``.

    Raises:
        EmotraceError: for keys other than ``attention_L`` and ``mlp_L``, or a layer that is missing.
    """
    found: dict[tuple[str, int], float] = {}
    for key, value in load_json(path).items():
        match = re.fullmatch(r"(attention|mlp)_(\d+)", key)
        if match is None or not isinstance(value, (int, float)):
            raise EmotraceError(f"{path}: {key!r}: {value!r} is no sigma; the keys are attention_0, mlp_0, ….")
        found[match.group(1), int(match.group(2))] = float(value)
    kinds = [k for k in SUBLAYER if any(key[0] == k for key in found)]
    layers = range(1 + max((layer for _, layer in found), default=-1))
    missing = [f"{k}_{layer}" for k in kinds for layer in layers if (k, layer) not in found]
    if missing or not found:
        raise EmotraceError(f"{path} lacks {', '.join(missing) or 'every key'}.")
    return xr.DataArray(
        [[found[k, layer] for k in kinds] for layer in layers],
        {"layer": np.array(layers), "sublayer": [SUBLAYER[k] for k in kinds]},
        ("layer", "sublayer"),
        "sigma",
        {"method": "mean over samples of sqrt(mean h²)", **leak("mlp" in kinds, len(layers))},
    )


@typed
def read_similarity(path: Paths) -> xr.DataArray:
    """``{emotion}_similarity_matrix.npy``: cosines of sublayers in the order attn0, mlp0, attn1, mlp1, ….

    Returns:
        ``cosine[emotion, place, place_other]`` as `emotrace.directions.sublayer_similarity` makes it.

    Raises:
        EmotraceError: for a file name without an emotion, or a matrix that is not square with an even side.
    """
    found: dict[str, np.ndarray] = {}
    for file in files_of(path, "*similarity_matrix*.npy"):
        name = emotion_in(file)
        found[name] = load_npy(file)
        side = found[name].shape[0]
        if found[name].shape != (side, side) or side % 2 or side != next(iter(found.values())).shape[0]:
            raise EmotraceError(f"{file} has shape {found[name].shape}: a square with two places per layer is due.")
    names = ordered(found)
    places = [f"{SHORT[s]}{layer}" for layer in range(found[names[0]].shape[0] // 2) for s in SUBLAYER.values()]
    return xr.DataArray(
        np.stack([found[e] for e in names]),
        {"emotion": list(names), "place": places, "place_other": places},
        ("emotion", "place", "place_other"),
        "cosine",
        {"method": "cosine", "source": SOURCE},
    )


class _DirectionFile(NamedTuple):
    """Arrays of emotions ``[layer, dim]`` at a sublayer; whether the last layer of an ``mlp`` file is after the final norm."""

    sublayer: str
    arrays: dict[str, np.ndarray]
    leaks: bool


def _direction_file(file: Path, sublayer: str | None, emotions: Sequence[str]) -> _DirectionFile:
    if file.suffix == ".npy":
        stack = load_npy(file)
        if stack.ndim != 3 or len(stack) != len(emotions):
            raise EmotraceError(f"{file} has shape {stack.shape}; {len(emotions)} emotions × layer × dim is due.")
        held: dict[str, Any] = dict(zip(emotions, stack, strict=True))
        named = [ours for theirs, ours in SUBLAYER.items() if theirs in file.stem]
        sub = sublayer or (named[0] if len(named) == 1 else None)
        leaks = True
    else:
        content = load_pt(file)
        given = content.get("dirs")
        if not isinstance(given, Mapping) or not given:
            raise EmotraceError(f"{file} holds no dict 'dirs' of emotions (it holds: {', '.join(map(str, content))}).")
        held = dict(given)
        sub = sublayer or SUBLAYER.get(str(content.get("type")))
        leaks = bool(content.get("after_final_norm", True))
    if sub not in KIND:
        raise EmotraceError(f"{file}: say sublayer='resid_mid' (their attention) or 'resid_post' (their mlp).")
    arrays = {emotion(e, EMOTIONS, str(file)): numbers(a, f"{file}, {e}") for e, a in held.items()}
    return _DirectionFile(sub, arrays, leaks)


def _relative_norms(values: np.ndarray) -> np.ndarray | None:
    """n with Σ_e n_e v_e = 0 and mean 1, ``[emotion, layer, sublayer]``; None where the vectors are not so dependent."""
    if len(values) > values.shape[-1]:
        return None
    u, s, _ = np.linalg.svd(np.moveaxis(values, 0, -2).astype(np.float64), full_matrices=False)
    null = u[..., -1] * np.sign(u[..., :1, -1])
    if (s[..., -1] > 1e-4 * s[..., 0]).any() or (null <= 0).any():
        return None
    return np.moveaxis(null / null.mean(-1, keepdims=True), -1, 0)
