"""Vocabulary: what some tokens are to states of the residual stream, made once where the weights are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from emotrace import arguments
from emotrace.attribution.files import kept
from emotrace.attribution.lens import METHOD, Array, lens
from emotrace.attribution.weights import weighed
from emotrace.configs import field, text_config
from emotrace.disk import plain
from emotrace.files import to_folder
from emotrace.forwards.entering import inputs
from emotrace.labels import EmotraceError
from emotrace.signatures import typed
from emotrace.sites import LanguageModel, Site, envoy
from emotrace.templates import single_token
from emotrace.traced.unembedding import End, unembedded

PLACE = "token_covectors"
COMPARED = 16
"""Tokens of the vocabulary that are compared beside those asked for, and tokens of the forward in which they are."""
TOLERANCE = 1e-4
"""Of the largest logit, beside the rounding of the model's dtype."""
FACTOR = 1e-3


@typed
def token_covectors(
    model: LanguageModel, tokens: Sequence[str | int] | Mapping[str, int], *, out: str | Path | None = None
) -> xr.Dataset:
    """What tokens are to states: all that the logit lens of stored states needs of the weights.

    With W_U and b_U the unembedding, ``N(x) = b + g ∘ P x / ρ(x)`` the final norm (P takes the mean away in a LayerNorm), s what
    the model multiplies logits by::

        unembedding[t] = s · P(g ∘ W_U[t])      bias[t] = s · (⟨W_U[t], b⟩ + b_U[t])

    They are held against the model's own logits in one small forward. The unembedding as a whole stays where it is.

    Args:
        model: from `emotrace.load`.
        tokens: words, each one token as it is written or else with a blank before it, and token ids; or name → token id.
        out: folder to save them in as ``token_covectors``.

    Returns:
        Dataset, float64: ``unembedding[vocab, dim]`` and ``bias[vocab]``, with the coordinates ``vocab`` (the words; of ids the
        token's text) and ``vocab_id``. attrs: ``eps`` and ``centred`` of ρ, ``softcap`` (0: none), and the model.

    Raises:
        EmotraceError: for a word that is several tokens, an id that the model lacks, the same name twice, and a model whose
            logits are not its final norm and unembedding of the last ``resid_post`` (masked models).
    """
    if out is not None:
        to_folder(out)
    sites = model.sites
    for name in ("final_norm", "logits"):
        if not sites.has(name):
            raise EmotraceError(f"{PLACE}: {sites.model_class} has no {name}, so its states have no logit lens.")
    size = sites.address("logits").width
    ids = _ids(model, tokens, size)
    norm, head = sites.address("final_norm"), sites.address("logits")
    end = End(
        sites.place("resid_post", sites.n_layers - 1), envoy(model, norm.path), sites.place(Site(head.path, "input"))
    )
    probe = np.linspace(0, min(size, sites.vocab_size) - 1, COMPARED).astype(int).tolist()
    every = [*ids.values(), *probe]
    found = weighed(model, unembedded, inputs(model, [probe]), end, every)
    *tensors, eps, centred = found
    state, given, logits, rows, added, gain, shift = (t.numpy() for t in tensors)
    normed = _normed(state, gain, shift, eps, centred)
    factor = _fitted(given, normed)  # e.g. MiniCPM divides what it unembeds
    linear = factor * normed @ rows.T + added
    cap = float(field(text_config(model._module.config), "final_logit_softcapping") or 0.0)
    scale = 1.0 if cap else _fitted(logits, linear)  # e.g. Cohere, Granite
    w = scale * factor * rows * gain
    w = w - w.mean(-1, keepdims=True) if centred else w
    bias = scale * (factor * rows @ shift + added)
    deviation = float(np.abs(lens(state, w, bias, eps, centred, cap) - logits).max() / np.abs(logits).max())
    if not deviation <= TOLERANCE + 8 * torch.finfo(model._module.dtype).eps:
        raise EmotraceError(
            f"{PLACE}: the logits of {sites.model_class} are not its final norm and unembedding of the last resid_post (they "
            f"deviate by {deviation:.1e} of the largest), so its states have no logit lens."
        )
    n = len(ids)
    result = xr.Dataset(
        {"unembedding": (("vocab", "dim"), w[:n]), "bias": ("vocab", bias[:n])},
        {"vocab": list(ids), "vocab_id": ("vocab", list(ids.values()))},
        plain(
            {
                "method": METHOD,
                "eps": eps,
                "centred": int(centred),
                "softcap": cap,
                "deviation": deviation,
                **sites.identity,
            }
        ),
    )
    return kept(result, out, PLACE)


def _ids(model: LanguageModel, tokens: Sequence[str | int] | Mapping[str, int], size: int) -> dict[str, int]:
    """Name → token id."""
    encoder = model.sites.encoder
    pairs: list[tuple[str, int]] = []
    named = tokens.items() if isinstance(tokens, Mapping) else [(item, item) for item in tokens]
    for item, given in named:
        if isinstance(given, str):
            if encoder.tokenizer is None:
                raise EmotraceError(f"{PLACE}(tokens): {given!r}: this model has no tokenizer; give token ids.")
            token = single_token(given, encoder.tokenizer)
            if token is None:
                parts = encoder.tokenizer(f" {given}", add_special_tokens=False)["input_ids"]
                told = ", ".join(f"{text!r} {i}" for i, text in zip(parts, encoder.token_texts(parts), strict=True))
                raise EmotraceError(
                    f"{PLACE}(tokens): {given!r} is {len(parts)} tokens of this model ({told}); name one by its id, "
                    f"{{{given!r}: {parts[0]}}}."
                )
        else:
            token = arguments.whole(f"{PLACE}(tokens)", given, 0, size - 1)
        pairs.append((str(item) if isinstance(item, str) else encoder.token_texts([token])[0], token))
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if not pairs or twice:
        raise EmotraceError(
            f"{PLACE}(tokens): " + (f"{twice[0]!r} is named twice." if twice else "name at least one token.")
        )
    return dict(pairs)


def _normed(x: Array, gain: Array, shift: Array, eps: float, centred: bool) -> Array:
    """N(x)."""
    x = x - x.mean(-1, keepdims=True) if centred else x
    return shift + gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def _fitted(y: Array, x: Array) -> float:
    """The factor with y = factor · x; 1 where it is so near that rounding explains the rest."""
    factor = float((y * x).sum() / (x * x).sum())
    return 1.0 if abs(factor - 1) < FACTOR else factor
