"""Arms: the same prompts answered by the model as it is, steered, and under the controls, with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import arguments
from emotrace import edits as edits_
from emotrace.datasets import Prompts
from emotrace.directions.mixtures import Mix, mixed, parse_mix
from emotrace.edits import Edit, mixture
from emotrace.evaluation import deranged, random_like
from emotrace.files import to_folder
from emotrace.forwards.generation import generate
from emotrace.labels import EmotraceError, unknown
from emotrace.sites import LanguageModel
from emotrace.suite.measured import query_of

Rows = list[dict[str, Any]]
CONTROLS: Final = ("random", "shuffled", "wrong_emotion")
BASE, STEER = "none", "steer"


def arms(
    model: LanguageModel,
    prompts: Any,
    vectors: xr.DataArray,
    mix: Mix | None = None,
    *,
    strength: float = 1.0,
    controls: Sequence[str] = ("random", "wrong_emotion"),
    draws: int = 3,
    shuffled: Sequence[xr.DataArray] = (),
    decoding: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    **where: Any,
) -> Rows:
    """Replies of every arm to the same prompts, paired by ``key``.

    Every arm generates each emotion's prompts in the same batches from the same seed, so that where an edit changes nothing a
    sampled reply is the baseline's, and arms differ by their edits alone.

    Args:
        model: from `emotrace.load`; causal.
        prompts: plain prompts, which ask for no emotion.
        vectors: ``[emotion, layer, dim]``.
        mix: one mixture, aimed at the emotion of its largest weight; None for each emotion's own vector in turn.
        strength: of every arm.
        controls: some of ``random`` (random directions), ``wrong_emotion`` (labels moved by a random permutation without a fixed
            point), ``shuffled`` (vectors made from shuffled labels, `relabelled`). All have the steered vector's norm at
            every layer.
        draws: of each random control.
        shuffled: vectors for that control, one array per draw.
        decoding: arguments of `emotrace.generate`.
        batch_size: prompts per batch.
        seed: of sampling and of the controls.
        out: folder of replies, one file per arm; the same call again continues.
        progress: show bars.
        where: ``site``, ``layers``, ``scale`` and ``positions`` of `emotrace.edits.mixture`.

    Returns:
        Rows of `emotrace.generate` with ``method`` (``none, steer, random, shuffled, wrong_emotion``), ``draw``,
        ``emotion`` (aimed at), ``prompt`` (key of the plain prompt) and ``query``.

    Raises:
        EmotraceError: for controls, vectors or settings that do not fit, before anything runs.
    """
    arguments.whole("batch_size", batch_size, 1)
    arguments.seed("seed", seed)
    arguments.whole("arms(draws)", draws, 1)
    if out is not None:
        to_folder(out)
    prompts = Prompts.of(prompts)
    controls = arguments.names("control", controls, CONTROLS, empty=True, place="arms(controls=…)")
    if "shuffled" in controls and not shuffled:
        raise EmotraceError(
            "arms(controls=['shuffled']) needs shuffled=: vectors made from shuffled labels (`relabelled`)."
        )
    true = aimed_at(vectors, mix)
    names = [str(v) for v in true["emotion"].values]
    arrays: list[tuple[str, int, xr.DataArray]] = [(STEER, 0, true)]
    for name in dict.fromkeys(controls):
        for draw in range(len(shuffled) if name == "shuffled" else draws):
            array = control(name, vectors, mix, seed + draw, shuffled[draw : draw + 1])
            arrays.append((name, draw, array))
    edits: list[tuple[str, int, list[Edit]]] = [(BASE, 0, [])]
    edits += [(m, d, mixture(array, None, strength=strength, **where)) for m, d, array in arrays]
    for _, _, some in edits:
        edits_.check(some, model.sites)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress, **(decoding or {})}
    queries = {p.key: query_of(p.labels) or _asked(p) for p in prompts}
    rows: Rows = []
    for method, draw, some in edits:
        path = None if out is None else Path(out) / f"{method}_{draw}.jsonl"
        plain: Rows = []
        if method == BASE:  # one reply for all emotions: the prompts, their batches and the seed are the same
            plain = generate(model, prompts, method=BASE, out=path, **options)
        for name in names:
            told = prompts.for_each(emotion=[name])
            found = (
                [{**row, "key": p.key, **p.labels} for row, p in zip(plain, told, strict=True)]
                if method == BASE
                else generate(model, told, some, method=method, draw=draw, out=path, **options)
            )
            for row, p in zip(found, prompts, strict=True):
                rows.append({**row, "prompt": p.key, "query": queries[p.key]})
    return rows


def aimed_at(vectors: xr.DataArray, mix: Mix | None) -> xr.DataArray:
    """The vectors that arms add ``[emotion, layer, …]``: each emotion's own, or a mixture under its largest emotion.

    Raises:
        EmotraceError: for a mixture without a positive weight, or vectors without emotions.
    """
    if "emotion" not in vectors.dims:
        raise EmotraceError(f"arms: no dim 'emotion' in {tuple(map(str, vectors.dims))}.")
    if mix is None:
        return vectors
    weights = parse_mix(mix, [str(v) for v in vectors["emotion"].values])
    if not weights or max(weights.values()) <= 0:
        raise EmotraceError(f"arms(mix={mix!r}): no emotion has a positive weight, so the mixture aims at none.")
    return mixed(vectors, mix).expand_dims(emotion=[max(weights, key=lambda e: weights[e])])


def control(
    name: str, vectors: xr.DataArray, mix: Mix | None = None, seed: int = 0, shuffled: Sequence[xr.DataArray] = ()
) -> xr.DataArray:
    """The vectors of one control, of the steered vectors' norm at every layer.

    Args:
        name: ``random``, ``wrong_emotion`` or ``shuffled``.
        vectors: the true ones ``[emotion, layer, dim]``.
        mix: as of `arms`.
        seed: of the random ones.
        shuffled: for that control: one array ``[emotion, layer, dim]``.

    Raises:
        EmotraceError: for an unknown control, or one whose vectors are zero where the true ones are not.
    """
    if name not in CONTROLS:
        raise unknown("control", name, CONTROLS, "control")
    true = aimed_at(vectors, mix)
    if name == "random":
        return matched(random_like(true, seed), true)
    if name == "shuffled":
        return matched(aimed_at(_at(shuffled[0], vectors), mix).sel(emotion=true["emotion"].values), true)
    return matched(aimed_at(deranged(vectors, seed), mix), true)


def matched(vectors: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """Vectors at the norms that others have, emotion by emotion and layer by layer.

    Raises:
        EmotraceError: where a vector is zero and should not be.
    """
    values = vectors.transpose(*like.dims).values.astype(np.float64)
    axis = like.get_axis_num("dim")
    own = np.linalg.norm(values, axis=axis, keepdims=True)
    wanted = np.linalg.norm(like.values.astype(np.float64), axis=axis, keepdims=True)
    if ((own == 0) & (wanted > 0)).any():
        raise EmotraceError("a control vector is zero where the true one is not: it cannot be brought to its norm.")
    scaled = np.where(own > 0, values * wanted / np.where(own > 0, own, 1.0), 0.0)
    bare = like.drop_vars([str(c) for c in like.coords if c not in like.dims])
    return bare.copy(data=scaled.astype(np.float32)).assign_attrs(
        {**like.attrs, "control": vectors.attrs.get("method", "")}
    )


def shuffled_labels(acts: xr.DataArray, label: str = "emotion", unit: str | None = None, seed: int = 0) -> xr.DataArray:
    """The same activations under shuffled labels, to make control vectors from by the method that made the true ones.

    Args:
        acts: labelled rows with the dim ``token``.
        label: shuffled.
        unit: label whose rows keep together, e.g. ``query_id`` for the two answers to a query; None for every row alone.
        seed: of the permutation.

    Raises:
        EmotraceError: for labels that the rows lack, a unit with two labels, or one label in all.
    """
    for name in (label, *([unit] if unit else [])):
        if name not in acts.coords or acts[name].dims != ("token",):
            raise unknown("label", name, [str(c) for c in acts.coords if acts[c].dims == ("token",)], "shuffled_labels")
    labels = acts[label].values
    units = np.arange(len(labels)) if unit is None else acts[unit].values
    names, first, code = np.unique(units, return_index=True, return_inverse=True)
    if (labels[first][code] != labels).any():
        raise EmotraceError(f"shuffled_labels(unit={unit!r}): rows of one {unit} have several values of {label!r}.")
    if len(set(labels.tolist())) < 2:
        raise EmotraceError(f"shuffled_labels: all rows have one {label}.")
    order = np.random.default_rng(seed).permutation(len(names))
    return acts.assign_coords({label: ("token", labels[first][order][code])})


def _at(fake: xr.DataArray, vectors: xr.DataArray) -> xr.DataArray:
    """Control vectors at the layers of the true ones, of which some may have been taken out."""
    lost = [layer for layer in vectors["layer"].values.tolist() if layer not in fake["layer"].values]
    if lost:
        raise unknown("layer", lost[0], fake["layer"].values.tolist(), "arms(shuffled=…)")
    return fake.sel(layer=vectors["layer"].values)


def _asked(prompt: Any) -> str:
    """The last user message, or the text of a prompt."""
    said = [m["content"] for m in prompt.messages or () if m["role"] == "user"]
    return said[-1] if said else prompt.text or ""
