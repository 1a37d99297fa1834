"""Neurons: what is active under a tuned prompt, or at the last token of plain prompts, by emotion and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import provenance
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompt, Prompts, PromptsLike
from emotrace.directions.groups import require_labels
from emotrace.directions.source import provenance_of
from emotrace.labels import EmotraceError, Positions, unknown
from emotrace.prompt_tuning.prompts import LABEL, SoftPrompt, as_edits
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.store import Activations
from emotrace.store.asked import of_acts

STAGES: Final = ("neuron", "neuron_pre", "active")
"""After the activation function, before it, and whether the former is above 0."""
# What runs a model imports torch, which neurons of stored activations do without: it is imported where it is called.


@typed
def activated_neurons(
    model: LanguageModel,
    prompts: Mapping[Any, SoftPrompt] | Sequence[SoftPrompt],
    stage: str = "neuron",
    position: str | int = "answer",
    *,
    text: str | None = None,
    layers: Iterable[int] | int | None = None,
    out: str | Path | None = None,
    batch_size: BatchSize = 32,
    progress: bool = True,
) -> xr.DataArray:
    """Neurons under every tuned prompt, at one position.

    The sequence is the prompt alone, with the tokens that open a text (see `Layout`), or with a text of the user's own.
    ``active`` is 1 where ``neuron`` > 0, else 0; with a gated MLP ``neuron`` is the product with the gate.

    Args:
        model: from `emotrace.load`.
        prompts: tuned for it, one for each emotion and seed.
        stage: ``neuron``, ``neuron_pre`` or ``active``.
        position: ``answer`` (the mask token of a masked model, the last token of a causal one), ``prompt`` (the mean over the
            vectors of the prompt), or the index of one of them, from its end if negative.
        text: after the prompt; None for none.
        layers: None for all that have the site.
        out: zarr store of the capture, to write or to continue; None keeps it in memory.
        batch_size: prompts per forward, or ``auto`` for what fits.
        progress: show a bar.

    Returns:
        float32 ``[emotion, seed, layer, unit]``; its attrs say stage, position and model.

    Raises:
        EmotraceError: for an unknown stage or position, prompts of another model or of several shapes, an emotion that lacks
            a seed which others have, or a model without the site.
    """
    from emotrace.forwards.capturing import capture
    from emotrace.prompt_tuning.layout import Layout

    tuned = list(prompts.values()) if isinstance(prompts, Mapping) else list(prompts)
    _check_stage(stage)
    if not tuned:
        raise EmotraceError("activated_neurons(prompts=…) is empty.")
    for prompt in tuned:
        prompt.check(model)
    recipe, length = tuned[0].recipe, len(tuned[0].vectors)
    layout = Layout(model.sites.encoder, length, recipe.template, recipe.max_tokens)
    laid = layout.bare() if text is None else layout.texts([text])[0]
    edits = as_edits(tuned, laid.first)
    if position == "answer":
        at = (laid.at, laid.at + 1)
    elif position == "prompt":
        at = (laid.first, laid.first + length)
    elif isinstance(position, int) and -length <= position < length:
        at = (laid.first + position % length, laid.first + position % length + 1)
    else:
        raise EmotraceError(
            f"activated_neurons(position={position!r}): 'answer', 'prompt', or the index of one of {length} prompt vectors."
        )
    items = [
        Prompt(p.key, token_ids=laid.ids, labels={LABEL: p.key, "emotion": p.emotion, "seed": p.seed}) for p in tuned
    ]
    acts = capture(
        model, Prompts(items), _site(stage), layers=layers, positions=at, edits=edits, out=out, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    found = _grid(acts.sel(_site(stage)), "emotion", "seed", stage)
    return found.assign_attrs(
        stage=stage, position=str(position), text=text or "", prompt_length=length, **_about(model)
    )


@typed
def concept_prompts(concepts: Iterable[str], templates: Sequence[str], label: str = "emotion") -> Prompts:
    """Plain prompts that name a concept: every template filled with every concept, labelled with both.

    Args:
        concepts: e.g. the emotions of human ratings.
        templates: texts with ``{concept}`` in them; the number of a template is the label ``seed``.
        label: of the concept.

    Raises:
        EmotraceError: for a template without ``{concept}``.
    """
    for template in templates:
        if "{concept}" not in template:
            raise EmotraceError(f"template {template!r} has no {{concept}} in it.")
    return Prompts(
        Prompt(
            f"{concept}-{i}".replace("/", "_"), text=t.replace("{concept}", concept), labels={label: concept, "seed": i}
        )
        for concept in concepts
        for i, t in enumerate(templates)
    )


def _stored(acts: Activations, stage: str = "neuron", *, label: str = "emotion", over: str = "seed") -> xr.DataArray:
    """`concept_neurons` of stored activations."""
    _check_stage(stage)
    if (site := _site(stage)) not in acts.variables:
        raise unknown("variable", site, acts.variables, f"concept_neurons, of {acts.path}")
    return _grid(acts.sel(site), label, over, stage).assign_attrs(stage=stage, **provenance_of(acts))


@of_acts(_stored)
@typed
def concept_neurons(
    model: LanguageModel,
    prompts: PromptsLike,
    stage: str = "neuron",
    *,
    label: str = "emotion",
    over: str = "seed",
    positions: Positions = "last",
    layers: Iterable[int] | int | None = None,
    out: str | Path | None = None,
    batch_size: BatchSize = 32,
    progress: bool = True,
) -> xr.DataArray:
    """Neurons at the last token of plain prompts, for models without tuned prompts: mean over the tokens of each cell.

    ``concept_neurons(acts, stage, label=…, over=…)`` are those of stored activations, all of whose rows count (``acts.where(
    position="last")`` narrows them), without a model.

    Args:
        model: from `emotrace.load`.
        prompts: labelled with the concept and with what tells its repetitions apart, e.g. `concept_prompts`, or SEV prompts
            with ``over="skeleton_id"``.
        stage: ``neuron``, ``neuron_pre`` or ``active`` (1 where ``neuron`` > 0, else 0), whose mean is the share of
            prompts.
        label: of the concept.
        over: of the repetition; each concept needs every one.
        positions: policy or span, as `emotrace.capture` takes it; several positions are averaged.
        layers: None for all that have the site.
        out: zarr store of the capture; None keeps it in memory.
        batch_size: prompts per forward, or ``auto`` for what fits.
        progress: show a bar.

    Returns:
        float32 ``[label, over, layer, unit]``.

    Raises:
        EmotraceError: for an unknown stage or label, a cell without prompts, or a model without the site.
    """
    from emotrace.forwards.capturing import capture

    _check_stage(stage)
    prompts = Prompts.of(prompts)
    for name in (label, over):
        if name not in prompts.label_names:
            raise unknown("label", name, prompts.label_names, "concept_neurons")
    acts = capture(
        model,
        prompts,
        _site(stage),
        layers=layers,
        positions=positions,
        out=out,
        batch_size=batch_size,
        progress=progress,
    )
    found = _grid(acts.sel(_site(stage)), label, over, stage)
    return found.assign_attrs(stage=stage, position=str(positions), **_about(model))


@typed
def name_embeddings(model: LanguageModel, names: Iterable[str], label: str = "emotion") -> xr.DataArray:
    """What a model knows of words before it has computed anything: the mean token embedding of each name.

    As a control of RSA: ``rsa.rdm(name_embeddings(lm, names), features="dim")``.

    Args:
        model: from `emotrace.load`.
        names: e.g. the emotions; each is tokenized with a blank before it, as inside a sentence.
        label: dim of the names.

    Returns:
        float32 ``[label, dim]``.

    Raises:
        EmotraceError: for a model without a tokenizer, or no names.
    """
    from emotrace.forwards.capturing import capture

    words, tokenizer = [str(n) for n in names], model.sites.encoder.tokenizer
    if tokenizer is None or not words:
        raise EmotraceError("name_embeddings: at least one name, and a model with a tokenizer.")
    ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    named = [{"key": str(i), "token_ids": of} for i, of in enumerate(ids)]
    acts = capture(model, named, "embed", positions="all", progress=False)
    values, keys = np.asarray(acts.sel(variable="embed").values, dtype=np.float32), np.asarray(acts.column("key"))
    rows = [values[keys == str(i)].mean(0) for i in range(len(words))]
    return xr.DataArray(np.stack(rows), dims=(label, "dim"), coords={label: words}, name="embed")


def _check_stage(stage: str) -> None:
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES, "neurons")


def _site(stage: str) -> str:
    return "neuron_pre" if stage == "neuron_pre" else "neuron"


def _grid(x: xr.DataArray, label: str, over: str, stage: str) -> xr.DataArray:
    """``[…, token, …]`` as ``[label, over, layer, unit]``: means over the tokens of each cell."""
    named = {name: x[name].values for name in ("key", label, over) if name in x.coords}
    require_labels(pd.DataFrame(named), (label, over), "neurons")
    rows: dict[tuple[Any, Any], list[int]] = {}
    for i, cell in enumerate(zip(x[label].values.tolist(), x[over].values.tolist(), strict=True)):
        rows.setdefault(cell, []).append(i)
    firsts, seconds = (list(dict.fromkeys(cell[i] for cell in rows)) for i in (0, 1))
    missing = [(a, b) for a in firsts for b in seconds if (a, b) not in rows]
    if missing:
        a, b = missing[0]
        raise EmotraceError(
            f"{label} {a!r} has nothing for {over} {b!r}; {len(missing)} of {len(firsts)} × {len(seconds)} are missing."
        )
    x = x.transpose("token", "layer", "unit")
    out = np.empty((len(firsts), len(seconds), *x.shape[1:]), dtype=np.float32)
    for (a, b), where in rows.items():
        values = np.asarray(x.isel(token=where).values, dtype=np.float32)
        out[firsts.index(a), seconds.index(b)] = ((values > 0) if stage == "active" else values).mean(0)
    coords = {label: firsts, over: seconds, "layer": x["layer"].values, "unit": x["unit"].values}
    return xr.DataArray(out, dims=(label, over, "layer", "unit"), coords=coords, name=stage)


def _about(model: LanguageModel) -> dict[str, Any]:
    return provenance.of(model.sites.identity)
