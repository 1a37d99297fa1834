"""Extraction: from prompts to vectors of emotions, with every intermediate step in one folder that continues.

Two contrasts: a model's own answers to the same query with and without an emotion (`answer_vectors`, arXiv 2502.04075),
and texts labelled with an emotion against neutral ones (`text_vectors`, the GoEmotions pipeline).
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from emotrace import arguments, directions, disk, shown
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompt, Prompts, PromptsLike, hold_out
from emotrace.defaults import MAX_NEW_TOKENS
from emotrace.directions.shift import EMOTIONAL, OVER, Over
from emotrace.directions.vectors import METHODS, Method
from emotrace.files import to_folder
from emotrace.forwards.capturing import capture
from emotrace.forwards.generation import generate
from emotrace.labels import GLOBAL_SITES, NEUTRAL, SUBLAYERS, EmotraceError, unknown
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from emotrace.sites import LanguageModel

TEMPLATES: Final[Mapping[str, str]] = {
    NEUTRAL: "Keep the reply to at most two sentences.",
    EMOTIONAL: "Always reply in {emotion}.\nKeep the reply to at most two sentences.",
}
"""System messages of the two answers. The published wording is not known; ours goes into the attributes of the vectors."""
VARIABLES: Final[Mapping[str, str]] = dict[str, str].fromkeys(SUBLAYERS, "residual")
"""Site → the variable of the store that holds it, where that has another name."""


@dataclass(frozen=True)
class TextVectors:
    """What `text_vectors` found.

    Attributes:
        vectors: ``[emotion, layer, dim]``, fitted on one part of the texts.
        statistics: of `emotrace.directions.contrast`, on the same part.
        auroc: ``[emotion, layer]`` of the projections on the other part.
    """

    vectors: xr.DataArray
    statistics: xr.Dataset
    auroc: xr.DataArray
    __repr__ = shown.brief


@typed
def answer_prompts(queries: PromptsLike, templates: Mapping[str, str] = TEMPLATES) -> Prompts:
    """Each query twice: to be answered neutrally and in its emotion.

    Args:
        queries: prompts of chat messages with the labels ``query_id`` and ``emotion``, e.g. of `datasets.emotion_query`.
        templates: system messages ``neutral`` and ``emotional``; the latter holds ``{emotion}``. An empty one is left out.

    Returns:
        Prompts with the further label ``condition``; keys ``{query}__neutral`` and ``{query}__emotional``.

    Raises:
        EmotraceError: for templates without their place, or prompts without messages or labels.
    """
    queries = Prompts.of(queries)
    for name in (NEUTRAL, EMOTIONAL):
        if name not in templates:
            raise unknown("template", name, templates, "answer_prompts")
    if "{emotion}" not in templates[EMOTIONAL]:
        raise EmotraceError(f"template {templates[EMOTIONAL]!r} has no {{emotion}}, so it asks for none.")
    out = []
    for query in queries:
        if query.messages is None or not query.labels.get("emotion") or not query.labels.get("query_id"):
            raise EmotraceError(f"{query.key!r}: a query has chat messages and the labels 'emotion' and 'query_id'.")
        for condition in (NEUTRAL, EMOTIONAL):
            system = templates[condition].replace("{emotion}", str(query.labels["emotion"]))
            before = ({"role": "system", "content": system},) if system else ()
            about = {**query.labels, "condition": condition}
            out.append(Prompt(f"{query.key}__{condition}", messages=(*before, *query.messages), labels=about))
    return Prompts(out)


@planned
@typed
def answer_vectors(
    model: LanguageModel,
    queries: PromptsLike,
    *,
    site: str = "o_proj_out",
    layers: Sequence[int] | None = None,
    over: Over = "mean_generated",
    templates: Mapping[str, str] = TEMPLATES,
    decoding: Mapping[str, Any] | None = None,
    batch_size: BatchSize = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryRows, xr.DataArray]:
    """Vectors of emotions from a model's own neutral and emotional answers to the same queries.

    The model answers every query of an emotion twice; both answers are fed back (teacher forcing) and the activations at
    one site averaged over positions; the vector is the mean difference over queries: of answers that are captured already,
    ``directions.paired_shift(acts)``, without a model.
    ``answer_vectors.plan(…)`` says what would be captured (`emotrace.planned.DryRows`) of answers of full length.

    Args:
        model: from `emotrace.load`; causal, with a chat template.
        queries: prompts of chat messages with the labels ``query_id`` and ``emotion``, e.g. of `datasets.emotion_query`.
        site: any site with layers; ``o_proj_out`` as published.
        layers: None for every layer that has the site.
        over: ``mean_generated``, ``last`` or ``mean_all``.
        templates: system messages; recorded.
        decoding: arguments of `emotrace.generate`; greedy, 60 tokens, where nothing is said.
        batch_size: prompts per batch.
        seed: of sampling.
        out: folder for ``answers.jsonl``, ``activations.zarr`` and the vectors; the same call again continues. None keeps
            no file.
        progress: show bars.

    Returns:
        ``vector[emotion, layer, dim]`` float32, not normalised, with the coordinates ``norm`` and ``n`` (pairs); attributes
        say site, templates, decoding, model and data. `directions.base_vector` gives their mean.

    Raises:
        EmotraceError: for queries, sites or settings that do not fit, before anything runs.
    """
    arguments.batch("batch_size", batch_size)
    arguments.seed("seed", seed)
    if out is not None:
        to_folder(out)
    variable = _variable(model, site)
    prompts = answer_prompts(queries, templates)
    arguments.choice("mean", over, OVER, "answer_vectors(over=…)")
    layers = _layers(model, site, layers)
    options: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "seed": seed, **(decoding or {})}
    where: dict[str, Any] = {"layers": layers, "positions": OVER[over], "batch_size": batch_size}

    def dry() -> DryRows:
        full = [{"key": p.key, "token_ids": [0] * options["max_new_tokens"]} for p in prompts]
        return capture.plan(model, prompts.with_replies(full), site, out=out, **where)

    yield dry
    with _folder(out) as folder:
        disk.settle_file(
            folder / "extraction.json",
            {"site": site, "over": over, "templates": dict(templates), "prompts": prompts.digest},
        )
        rows = generate(
            model,
            prompts,
            batch_size=batch_size,
            method="answer",
            out=folder / "answers.jsonl",
            progress=progress,
            **options,
        )
        answered = prompts.with_replies(rows)
        acts = capture(model, answered, site, out=folder / "activations.zarr", progress=progress, **where)
        found = directions.paired_shift(acts, over=over, variable=variable)
        found = of_site(found, site).assign_attrs(
            templates=json.dumps(dict(templates)),
            decoding=json.dumps(rows[0]["meta"]["decoding"]),
            n_empty=sum(not row["token_ids"] for row in rows),
        )
        directions.save(found, folder / "vectors")
    return found


@planned
@typed
def text_vectors(
    model: LanguageModel,
    texts: PromptsLike,
    *,
    against: str = NEUTRAL,
    emotions: Sequence[str] | None = None,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    method: Method = "difference",
    remove_neutral: int = 0,
    held_out: float = 0.25,
    final_norm_last_row: bool = False,
    batch_size: BatchSize = 32,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> Steps[DryRows, TextVectors]:
    """Vectors of emotions from labelled texts against neutral ones, at the last token of each text.

    The last token is that of the text itself, whatever side the tokenizer pads on. Vectors and tests come from one part
    of the texts, AUROC from the other; the parts share no text. Of texts that are captured already ``directions.vectors(acts)``,
    ``directions.contrast(acts)`` and ``directions.auroc(acts, vectors)`` give the same, without a model.
    ``text_vectors.plan(…)`` says what would be captured.

    Args:
        model: from `emotrace.load`.
        texts: prompts with the label ``emotion``, e.g. of `datasets.goemotions`.
        against: the label of the neutral texts.
        emotions: those to make vectors of; None for all.
        site: any site with layers; ``resid_post`` as published.
        layers: None for every layer that has the site.
        method: of `directions.vectors`.
        remove_neutral: so many principal components of the neutral texts are projected out.
        held_out: share of the texts of each label that is kept for AUROC.
        final_norm_last_row: take the last layer after the final norm, as published (a mistake: it cannot be added there);
            only for comparison, with ``method="difference"``.
        batch_size: prompts per batch.
        seed: of the split.
        out: folder for ``activations.zarr``, the vectors and the statistics; the same call again continues.
        progress: show a bar.

    Returns:
        `TextVectors`.

    Raises:
        EmotraceError: for texts, sites or settings that do not fit, before anything runs.
    """
    arguments.batch("batch_size", batch_size)
    arguments.seed("seed", seed)
    arguments.share("held_out", held_out)
    if out is not None:
        to_folder(out)
    variable = _variable(model, site)
    prompts = Prompts.of(texts)
    if "emotion" not in prompts.label_names:
        raise unknown("label", "emotion", prompts.label_names, "text_vectors")
    wanted = None if emotions is None else [*emotions, against]
    prompts = prompts if wanted is None else prompts.where(emotion=wanted)
    fit, held = hold_out(prompts, held_out, seed)
    layers = _layers(model, site, layers)
    arguments.choice("method", method, METHODS, "text_vectors(method=…)")
    of_label = Counter(p.labels["emotion"] for p in fit)
    if against not in of_label:
        raise unknown("emotion", against, of_label, "text_vectors(against=…)")
    if len(of_label) < 2:
        raise EmotraceError(f"text_vectors: nothing but {against!r} against {against!r}.")
    few = next((e for e in of_label if of_label[e] < 2), None)
    if few is not None:
        raise EmotraceError(f"text_vectors: {few!r} has {of_label[few]} text to fit on; a contrast needs 2 or more.")
    most = min(of_label[against] - 1, model.sites.address(site, (layers or model.sites.layers(site))[0]).width)
    arguments.whole("text_vectors(remove_neutral)", remove_neutral, 0, most)
    if final_norm_last_row and (site != "resid_post" or method != "difference" or remove_neutral):
        raise EmotraceError("final_norm_last_row=True belongs to resid_post, method 'difference', remove_neutral 0.")
    sites = [site, "final_norm"] if final_norm_last_row else [site]
    where: dict[str, Any] = {"layers": layers, "positions": "last", "batch_size": batch_size}
    yield lambda: capture.plan(model, prompts, sites, out=out, **where)
    with _folder(out) as folder:
        disk.settle_file(folder / "extraction.json", {
            "site": site, "against": against, "method": method, "remove_neutral": remove_neutral, "held_out": held_out,
            "seed": seed, "final_norm_last_row": final_norm_last_row, "prompts": prompts.digest,
        })  # fmt: skip
        acts = capture(model, prompts, sites, out=folder / "activations.zarr", progress=progress, **where)
        common: dict[str, Any] = {"against": against, "values": emotions}
        known = {**common, "accepted": fit.keys, "variable": variable}
        found = directions.vectors(acts, method, remove_neutral=remove_neutral, seed=seed, **known)
        found = of_site(found, site).assign_attrs(held_out=held_out, seed=seed)
        statistics = directions.contrast(acts, **known)
        statistics = statistics.sel(sublayer=site, drop=True) if "sublayer" in statistics.dims else statistics
        scores = directions.auroc(acts, found, against=against, accepted=held.keys, variable=variable)
        scores = scores.sel(sublayer=site, drop=True) if "sublayer" in scores.dims else scores
        if final_norm_last_row:
            last = directions.vectors(acts, **{**known, "variable": "final_norm"})
            values = found.transpose("emotion", "layer", "dim").values.copy()
            values[:, -1] = last.transpose("emotion", "dim").values
            leak = [{"layer": int(found["layer"].values[-1]), "sublayer": site}]
            found = found.copy(data=values).assign_attrs(after_final_norm=leak)
        directions.save(found, folder / "vectors")
        directions.save(scores, folder / "vectors", "auroc")
        for name in statistics.data_vars:
            directions.save(statistics[name].astype(np.float32), folder / "statistics", str(name))
    return TextVectors(found, statistics, scores)


def _variable(model: LanguageModel, site: str) -> str:
    if site in GLOBAL_SITES or not model.sites.has(site) or site == "attn_pattern":
        raise unknown("site with layers", site, [s for s in model.sites.names if model.sites.layers(s)], "extraction")
    if site == "z":
        raise EmotraceError("extraction at 'z': its heads make o_proj_out together; take that, or attribution.")
    return VARIABLES.get(site, site)


def _layers(model: LanguageModel, site: str, layers: Sequence[int] | None) -> list[int] | None:
    """The layers asked for, which the model must have with that site; None for all."""
    if layers is None:
        return None
    found = list(arguments.wholes("layers", layers))
    for layer in found:
        model.sites.address(site, layer)
    return found


@typed
def of_site(found: xr.DataArray, site: str) -> xr.DataArray:
    """Vectors of one site, which they name, without the dim of sublayers."""
    if "sublayer" in found.dims:
        found = found.sel(sublayer=site)
    if "unit" in found.dims:
        found = found.rename(unit="dim")
    dims = [d for d in ("emotion", "layer", "dim") if d in found.dims]
    return found.drop_vars("sublayer", errors="ignore").transpose(*dims).assign_attrs(site=site)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
