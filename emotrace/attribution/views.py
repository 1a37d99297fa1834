"""Views: what people look at first: words of a direction, the attention of a head."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import arguments, provenance
from emotrace.datasets import PromptLike, Prompts
from emotrace.edits import Ablate
from emotrace.forwards.capturing import capture
from emotrace.forwards.entering import enter, inputs
from emotrace.labels import EmotraceError
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.traced import requests

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
        logit``; ``attrs`` name the model and rows that the directions do.

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
            edits=[Ablate("resid_post", layers=[last], vector=payload, positions="last")], progress=False,
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
    found = pd.concat(tables, ignore_index=True)
    found.attrs = {**provenance.of(directions), **provenance.rows_of(directions)}
    return found


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
