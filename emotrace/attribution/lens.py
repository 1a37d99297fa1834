"""Lens: the logits that stored states would have, were the last layer to return them. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from emotrace import arguments, provenance
from emotrace.attribution.chunked import has
from emotrace.directions.source import source
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.store import Activations

PLACE = "logit_lens"
METHOD = "token covectors"
"""``attrs["method"]`` of what `emotrace.attribution.token_covectors` makes."""
Array = NDArray[np.float64]


@typed
def logit_lens(
    acts: Activations, token_covectors: xr.Dataset, *, layers: Iterable[int] | int | None = None
) -> xr.DataArray:
    """The logits of some tokens, were each stored ``resid_post`` what the last layer returned (logit lens).

    With w_t and b_t of `attribution.token_covectors`, P x = x − mean(x) before a LayerNorm and x before an RMSNorm::

        l_t(x) = ⟨w_t, x⟩ / √(mean((P x)²) + eps) + b_t       softcap c: c · tanh(l_t / c)

    At the last layer these are the model's own logits. Rows are read in blocks of one layer.

    Args:
        acts: with ``resid_post`` (of `emotrace.capture`), whole or narrowed by ``acts.where(…)``.
        token_covectors: of the same model.
        layers: 0-based; None for all that are stored.

    Returns:
        ``logit[layer, token, vocab]`` float64; ``token`` are the rows of the activations with all their labels. attrs say model,
        store and selection.

    Raises:
        EmotraceError: for what is no token covectors, or of another model; layers or coordinates that the activations lack.

    Source: nostalgebraist, *interpreting GPT: the logit lens* (2020).
    """
    about = token_covectors.attrs
    if about.get("method") != METHOD:
        raise EmotraceError(
            f"{PLACE}: these are no token covectors; make them with attribution.token_covectors(model, tokens)."
        )
    provenance.together(PLACE, acts=acts, token_covectors=token_covectors)
    array = acts.sel("residual", layer=_layers(acts, layers), sublayer="resid_post")
    width = token_covectors.sizes["dim"]
    if array.sizes["dim"] != width:
        raise EmotraceError(
            f"{PLACE}: the states hold {array.sizes['dim']} of {width} coordinates; a state is taken whole."
        )
    rows = source(array, "residual", "all")
    w = token_covectors["unembedding"].transpose("vocab", "dim").values
    n_layers, _, _ = rows.shape
    found = np.empty((n_layers, len(rows.rows), len(w)))
    for layer in range(n_layers):
        for part, x in rows.blocks(layer, np.arange(len(rows.rows))):
            found[layer, part] = lens(
                x[0], w, token_covectors["bias"].values, about["eps"], bool(about["centred"]), about["softcap"]
            )
    coords: dict[Any, Any] = {name: c for name, c in array.coords.items() if set(c.dims) <= {"layer", "token"}}
    coords |= {name: token_covectors[name] for name in ("vocab", "vocab_id")}
    attrs = {"method": "logit lens", "softcap": about["softcap"], **rows.provenance()}
    return xr.DataArray(found, dims=("layer", "token", "vocab"), coords=coords, name="logit", attrs=attrs)


def lens(x: Array, w: Array, bias: Array, eps: float, centred: bool, softcap: float) -> Array:
    """Logits ``[row, vocab]`` of states ``[row, dim]``; the formula of `logit_lens`."""
    along = x @ w.T
    x = x - x.mean(-1, keepdims=True) if centred else x
    logits = along / np.sqrt((x * x).mean(-1, keepdims=True) + eps) + bias
    return softcap * np.tanh(logits / softcap) if softcap else logits


def _layers(acts: Activations, layers: Iterable[int] | int | None) -> list[int]:
    """Layers with ``resid_post``: those asked for, or all."""
    if not len(acts):
        raise EmotraceError(f"{PLACE}: {acts.path} has no committed rows yet.")
    stored = next((v.coords.get("layer", ()) for v in acts.described if v.name == "residual"), ())
    known = [int(layer) for layer in stored if has(acts, "resid_post", layer)]
    if not known:
        raise EmotraceError(f"{PLACE}: {acts.path} holds {', '.join(acts.variables)}, not 'resid_post'; capture it.")
    asked = known if layers is None else sorted(arguments.wholes(f"{PLACE}(layers)", layers))
    for layer in asked:
        if layer not in known:
            raise unknown("layer of 'resid_post'", layer, known, f"{PLACE}, of {acts.path}")
    return asked
