"""Views: what people look at first: words of a direction, the attention of a head, prompts that excite a neuron."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import arguments, provenance
from emotrace.datasets import Prompt, PromptLike, Prompts, PromptsLike
from emotrace.edits import Ablate
from emotrace.forwards.capturing import capture
from emotrace.forwards.entering import enter, inputs
from emotrace.forwards.streams import fitting, reductions
from emotrace.labels import EmotraceError
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.traced import contributions, requests

LOGIT_ELEMENTS = 1 << 24
"""Most logits held at a time."""


@typed
def top_tokens(model: LanguageModel, directions: xr.DataArray, k: int = 10) -> pd.DataFrame:
    """The tokens that each direction would make likeliest if it were all that the last layer returned (logit lens).

    The direction, scaled to RMS 1, is put in place of the last layer's ``resid_post``, and the model's own final norm and
    unembedding do the rest: the site ``logits``, biases of norm and unembedding included.

    Args:
        model: from `emotrace.load`.
        directions: any dims and ``dim``, e.g. ``[emotion, layer, sublayer, dim]``; the length does not matter, the sign does.
        k: tokens of each.

    Returns:
        One row per direction and rank: the other dims of the directions, ``rank`` (0 is the highest), ``token_id, token,
        logit``.

    Raises:
        EmotraceError: for a model without logits, directions of another width, zero or not finite, or a k out of range.

    Source: nostalgebraist, *interpreting GPT: the logit lens* (2020).
    """
    sites, encoder = model.sites, model.sites.encoder
    vocabulary = sites.address("logits").width
    if not isinstance(directions, xr.DataArray) or "dim" not in directions.dims:
        raise EmotraceError("top_tokens takes directions as a DataArray with the dim 'dim'.")
    arguments.whole("top_tokens(k)", k, 1, vocabulary)
    provenance.check(directions, sites, "top_tokens(directions=…)")
    outer = [d for d in directions.dims if d != "dim"]
    values = np.asarray(directions.transpose(*outer, "dim").values, dtype=np.float64)
    shape, values = values.shape[:-1], values.reshape(-1, values.shape[-1])
    size = np.sqrt((values * values).mean(-1, keepdims=True))
    if values.shape[1] != sites.d_model or not np.isfinite(size).all() or not (size > 0).all():
        raise EmotraceError(f"top_tokens: the directions must be {sites.d_model} wide, finite and not zero.")
    payload = xr.DataArray(values / size, dims=("direction", "dim"), coords={"direction": np.arange(len(values))})
    last = max(sites.layers("resid_post"))
    start = getattr(encoder.tokenizer, "bos_token_id", None)
    ids = [int(start if start is not None else encoder.pad_id)]
    chunk = max(1, LOGIT_ELEMENTS // vocabulary)
    tables = []
    for at in range(0, len(values), chunk):
        some = range(at, min(at + chunk, len(values)))
        lens = capture(
            model, [{"key": str(i), "token_ids": ids, "direction": i} for i in some], "logits", positions="last",
            edits=[Ablate("resid_post", layers=last, vector=payload, positions="last")], progress=False,
        )  # fmt: skip
        scores = lens.sel("logits").values
        best = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
        index = np.unravel_index(np.repeat(np.array(some), k), shape) if outer else ()
        labels = {
            str(d): directions[d].values[i] if d in directions.coords else i for d, i in zip(outer, index, strict=True)
        }
        rows = {"rank": np.tile(np.arange(k), len(some)), "token_id": best.ravel()}
        tables.append(
            pd.DataFrame(
                {**labels, **rows, "token": encoder.token_texts(best.ravel().tolist()),
                 "logit": np.take_along_axis(scores, best, axis=-1).ravel()}
            )
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


@typed
def attention(model: LanguageModel, prompt: PromptLike | Prompts, layer: int, head: int) -> xr.DataArray:
    """The attention pattern of one head on one prompt.

    Args:
        model: loaded with ``attn_implementation="eager"``: others do not return their weights.
        prompt: a text, chat messages, token ids, a `Prompt` or a mapping; a reply it carries is part of the sequence.
        layer: 0-based.
        head: query head.

    Returns:
        ``attention[query, key]`` float32, each row summing to 1, with positions as index and the coordinates
        ``query_token`` and ``key_token``.

    Raises:
        EmotraceError: for a model or layer without ``attn_pattern``, a head it lacks, or several prompts.
    """
    sites, encoder = model.sites, model.sites.encoder
    address = sites.address("attn_pattern", layer)
    n_heads = sites.heads(layer, "attn_pattern")
    if not 0 <= head < n_heads:
        raise EmotraceError(f"attention(head={head}): layer {layer} of the model has heads 0 to {n_heads - 1}.")
    prompts = prompt if isinstance(prompt, Prompts) else Prompts.of([prompt])
    if len(prompts) != 1:
        raise EmotraceError(f"attention shows one prompt, not {len(prompts)}: choose one, e.g. prompts[0].")
    ids = encoder.ids(prompts)[0] + list(prompts[0].reply_ids or ())
    pattern = enter(model, requests.pattern, inputs(model, [ids]), [address.read(model)], head)
    texts, at = encoder.token_texts(ids), np.arange(len(ids))
    return xr.DataArray(
        pattern.numpy(),
        dims=("query", "key"),
        coords={"query": at, "key": at, "query_token": ("query", texts), "key_token": ("key", texts)},
        name="attention",
        attrs={"layer": layer, "head": head, "prompt": prompts[0].key},
    )


@typed
def top_prompts(
    model: LanguageModel,
    prompts: PromptsLike,
    layer: int,
    units: int | Iterable[int],
    k: int = 10,
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """The prompts at whose last token each neuron is highest.

    Args:
        model: from `emotrace.load`.
        prompts: `Prompts`, or whatever `Prompts.of` takes.
        layer: 0-based.
        units: one or several neurons of the layer.
        k: prompts of each; all where there are fewer.
        batch_size: prompts per forward.
        progress: show a bar.

    Returns:
        One row per unit and rank: ``layer, unit, rank`` (0 is the highest), ``activation, key, text`` (of the last message)
        and the prompt's labels.

    Raises:
        EmotraceError: for a layer without neurons, or a unit that it lacks.
    """
    prompts = Prompts.of(prompts)
    address = model.sites.address("neuron", layer)
    chosen = list(arguments.wholes("top_prompts(units)", units))
    wrong = [u for u in chosen if not 0 <= u < address.width]
    if wrong:
        asked = wrong[0]
        raise EmotraceError(f"top_prompts(units={asked}): layer {layer} has units 0 to {address.width - 1}.")
    arguments.whole("top_prompts(k)", k, 1)
    arguments.whole("top_prompts(batch_size)", batch_size, 1)
    activations = np.zeros((len(prompts), len(chosen)), dtype=np.float32)
    for rows, (values,) in reductions(
        model, prompts, "neuron", contributions.picked, lambda _: ([chosen],), layers=[layer],
        prompts_per_chunk=fitting(4 * address.width), batch_size=batch_size, progress=progress,
        desc=f"neurons of layer {layer}",
    ):  # fmt: skip
        activations[rows.start : rows.stop] = values.numpy()
    order = np.argsort(-activations, axis=0, kind="stable")[:k]
    found = []
    for column, unit in enumerate(chosen):
        for rank, row in enumerate(order[:, column]):
            prompt = prompts[int(row)]
            place = {"layer": layer, "unit": int(unit), "rank": rank, "activation": float(activations[row, column])}
            place |= {"key": prompt.key, "text": _text(prompt)}
            found.append(place | {name: value for name, value in prompt.labels.items() if name not in place})
    return pd.DataFrame(found)


def _text(prompt: Prompt) -> str:
    """What a person reads of a prompt: its last message, its text, or its ids."""
    if prompt.messages:
        return str(prompt.messages[-1]["content"])
    return prompt.text if prompt.text is not None else " ".join(map(str, prompt.token_ids or ()))
