"""Paired: the same prompts answered by the model as it is, steered, and under the controls, with the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import xarray as xr

from emotrace import arguments
from emotrace import edits as edits_
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompt, Prompts, PromptsLike
from emotrace.directions.mixtures import Mix, mixed, parse_mix
from emotrace.edits import Edit, mixture
from emotrace.evaluation import Evaluation, repeated
from emotrace.files import to_folder
from emotrace.labels import EmotraceError, unknown
from emotrace.replies import deranged, norm_matched, random_directions
from emotrace.replies.row import Row, query_of
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

CONTROLS: Final = ("random", "shuffled", "wrong_emotion")
BASE, STEER = "none", "steer"


@typed
def arms(
    model: LanguageModel,
    prompts: PromptsLike,
    vectors: xr.DataArray,
    mix: Mix | None = None,
    *,
    strength: float = 1.0,
    controls: Sequence[str] = ("random", "wrong_emotion"),
    draws: int = 3,
    shuffled: Sequence[xr.DataArray] = (),
    decoding: Mapping[str, Any] | None = None,
    batch_size: BatchSize = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    **where: Any,
) -> list[Row]:
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
    arguments.batch("batch_size", batch_size)
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
    it = Evaluation(model, folder=out, decoding=decoding or {}, batch_size=batch_size, seed=seed, progress=progress)
    queries = {p.key: query_of(p.labels) or _asked(p) for p in prompts}
    base = it.generated(f"{BASE}_0", prompts)  # one reply for all emotions: prompts, batches and seed are the same
    rows: list[Row] = []
    for method, draw, some in edits:
        for name in names:
            told = prompts.for_each(emotion=[name])
            found = (
                repeated(base, prompts, told)
                if method == BASE
                else it.generated(f"{method}_{draw}", told, some, method=method, draw=draw)
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


@typed
def control(
    name: str, vectors: xr.DataArray, mix: Mix | None = None, seed: int = 0, shuffled: Sequence[xr.DataArray] = ()
) -> xr.DataArray:
    """The vectors of one control, of the steered vectors' norm at every layer.

    Args:
        name: ``random``, ``wrong_emotion`` or ``shuffled``.
        vectors: the true ones ``[emotion, layer, dim]``.
        mix: one mixture, aimed at the emotion of its largest weight; None for each emotion's own vector.
        seed: of the random ones.
        shuffled: for that control: one array ``[emotion, layer, dim]``.

    Raises:
        EmotraceError: for an unknown control, or one whose vectors are zero where the true ones are not.
    """
    if name not in CONTROLS:
        raise unknown("control", name, CONTROLS, "control")
    true = aimed_at(vectors, mix)
    if name == "random":
        return norm_matched(random_directions(true, seed), true)
    if name == "shuffled":
        return norm_matched(aimed_at(_at(shuffled[0], vectors), mix).sel(emotion=true["emotion"].values), true)
    return norm_matched(aimed_at(deranged(vectors, seed), mix), true)


def _at(fake: xr.DataArray, vectors: xr.DataArray) -> xr.DataArray:
    """Control vectors at the layers of the true ones, of which some may have been taken out."""
    lost = [layer for layer in vectors["layer"].values.tolist() if layer not in fake["layer"].values]
    if lost:
        raise unknown("layer", lost[0], fake["layer"].values.tolist(), "arms(shuffled=…)")
    return fake.sel(layer=vectors["layer"].values)


def _asked(prompt: Prompt) -> str:
    """The last user message, or the text of a prompt."""
    said = [m["content"] for m in prompt.messages or () if m["role"] == "user"]
    return said[-1] if said else prompt.text or ""
