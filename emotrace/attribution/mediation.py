"""Mediation: how much of what an edit does to the logits of an emotion goes through the directions of emotions at the last layer.

An edit that raises the projection on a direction need not do it by what the direction says, and a direction that was found on
prompts which name an emotion may say no more than its name. So beside the projection stand the logits, of words that replies use
and of the emotion's own name; and what is left of them where the directions are held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from emotrace import arguments, provenance
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompts, PromptsLike
from emotrace.edits import Ablate, Edit
from emotrace.forwards.capturing import capture
from emotrace.labels import EmotraceError, unknown
from emotrace.replies.row import Row, label_of
from emotrace.replies.table import match_of
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.stats import bootstrap_ci

Words = Mapping[Any, Sequence[int]]
"""Label → token ids."""


@typed
def telling_tokens(
    rows: Iterable[Row], n: int = 10, label: str = "emotion", without: Iterable[int] = ()
) -> dict[Any, list[int]]:
    """The tokens that tell the replies of a label from those of the others: those with the largest log-odds ratio.

    log ((c + ½) / (N − c + ½)) less the same of the other labels' replies, c being the replies that hold the token. Only replies
    that were read as asked count (of a label without any, all).

    Args:
        rows: judged replies.
        n: tokens of each label.
        label: what is told apart.
        without: tokens that do not count, e.g. those of the labels' names.

    Raises:
        EmotraceError: for fewer than two labels, or one whose replies hold fewer than n tokens that count.
    """
    arguments.whole("telling_tokens(n)", n, 1)
    by_label: dict[Any, list[Row]] = {}
    for row in rows:
        by_label.setdefault(label_of(row, label), []).append(row)
    if len(by_label) < 2:
        raise EmotraceError(f"telling_tokens: replies of one {label} alone; there is nothing to tell apart.")
    good = {e: [r for r in some if match_of(r) == 1] or some for e, some in by_label.items()}
    held = {e: Counter(t for r in some for t in set(label_of(r, "token_ids"))) for e, some in good.items()}
    left, out = set(without), {}
    for e, mine in held.items():
        size, rest = len(good[e]), sum(len(some) for other, some in good.items() if other != e)
        found = [t for t in mine if t not in left]
        if len(found) < n:
            raise EmotraceError(
                f"telling_tokens: the replies of {label} {e!r} hold {len(found)} tokens, {n} are asked for."
            )
        others = {t: sum(held[o][t] for o in held if o != e) for t in found}

        def odds(t: int, mine: Counter = mine, size: int = size, others: dict = others, rest: int = rest) -> float:
            a, b = mine[t], others[t]
            return float(np.log((a + 0.5) / (size - a + 0.5)) - np.log((b + 0.5) / (rest - b + 0.5)))

        out[e] = sorted(found, key=lambda t: (-odds(t), t))[:n]
    return out


@typed
def logit_mediation(
    model: LanguageModel,
    plain: PromptsLike,
    edits: Sequence[Edit],
    directions: xr.DataArray,
    words: Mapping[str, Words],
    *,
    label: str = "emotion",
    cluster: str = "skeleton_id",
    batch_size: BatchSize = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """What edits do to the last token's logits, and what is left where the projections on the directions are held.

    margin of a set of words = their mean logit less the mean over the other labels' words; effect = margin edited − margin plain,
    at the last prompt token. Held: in the last layer's ``resid_post`` the component within the span of all labels' directions is
    put back to what it is without the edit, h″ = h′ − P(h′ − h), and the model's norm and unembedding do the rest.
    mediated = 1 − Σ effect held / Σ effect: near 1, the edit acts on these words through the directions; near 0, beside them.

    Args:
        model: from `emotrace.load`; causal.
        plain: prompts without an emotion asked for, each with the label that is aimed at (``Prompts.for_each``).
        edits: of one arm.
        directions: ``[label, layer, sublayer, dim]``.
        words: name of a set (``replies``, ``names``) → label → token ids.
        label: that is aimed at.
        cluster: label that the bootstrap draws as a whole.
        batch_size: prompts per forward, or ``auto`` for what fits.
        seed: of the bootstrap.

    Returns:
        ``projection`` and each set of words: ``{effect, ci95, n}``, of words also ``held`` (the effect that is left) and
        ``mediated`` (None where the effect is not above 0).

    Raises:
        EmotraceError: for labels without words or directions, or prompts without the label.
    """
    prompts, sites = Prompts.of(plain), model.sites
    last = max(sites.layers("resid_post"))
    provenance.check(directions, sites, "logit_mediation(directions=…)")
    for dim, wanted in (("layer", last), ("sublayer", "resid_post")):
        known = arguments.having("logit_mediation(directions=…)", directions, label, dim)[dim].values.tolist()
        if wanted not in known:
            raise unknown(dim, wanted, known, "logit_mediation(directions=…)")
    at = directions.sel(layer=last, sublayer="resid_post").transpose(label, "dim")
    labels = at[label].values.tolist()
    if len(labels) < 2:
        raise EmotraceError(f"logit_mediation: directions of one {label} alone; a margin is over the others.")
    for p in prompts:
        if p.labels.get(label) not in labels:
            raise unknown(label, p.labels.get(label), labels, f"logit_mediation(prompt {p.key!r})")
    for name, of in words.items():
        if missing := [e for e in labels if not len(of.get(e, ()))]:
            raise EmotraceError(f"logit_mediation: {name} has no token for the {label} {missing[0]!r}.")
        for e in labels:
            arguments.wholes(f"logit_mediation({name} of {e!r})", of[e], 0, sites.vocab_size - 1)
    common: dict[str, Any] = {"positions": "last", "batch_size": batch_size, "progress": False}

    def read(edits: Sequence[Edit]) -> tuple[np.ndarray, np.ndarray]:
        acts = capture(model, prompts, ("resid_post", "logits"), layers=last, edits=edits, **common)
        h = acts.sel("residual", layer=last, sublayer="resid_post").transpose("token", "dim").values
        return np.asarray(h, dtype=np.float64), np.asarray(acts.sel("logits").values, dtype=np.float64)

    base, base_logits = read([])
    moved, logits = read(edits)
    v = np.asarray(at.values, dtype=np.float64)
    basis = np.linalg.qr(v.T)[0]
    kept = moved - (moved - base) @ basis @ basis.T
    payload = xr.DataArray(kept.astype(np.float32), dims=("key", "dim"), coords={"key": list(prompts.keys)})
    held = capture(
        model,
        prompts,
        "logits",
        edits=[*edits, Ablate("resid_post", layers=[last], vector=payload, positions="last")],
        **common,
    )
    left = np.asarray(held.sel("logits").values, dtype=np.float64)
    code = np.array([labels.index(p.labels[label]) for p in prompts])
    groups = [str(label_of(p.labels, cluster)) for p in prompts]

    def told(values: np.ndarray) -> dict[str, Any]:
        lo, hi = bootstrap_ci(values, groups, seed=seed)
        return {"effect": float(values.mean()), "ci95": [lo, hi], "n": len(values)}

    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    out: dict[str, Any] = {"projection": told(np.einsum("td,td->t", moved - base, unit[code]))}
    for name, of in words.items():
        sets = [list(of[e]) for e in labels]
        effect, rest = (_margin(x, sets, code) - _margin(base_logits, sets, code) for x in (logits, left))
        share = 1 - rest.sum() / effect.sum() if effect.sum() > 0 else None
        out[name] = {**told(effect), "held": float(rest.mean()), "mediated": None if share is None else float(share)}
    return out


def _margin(logits: np.ndarray, sets: Sequence[Sequence[int]], code: np.ndarray) -> np.ndarray:
    """Of each prompt the mean logit of its label's words less the mean over the other labels'."""
    each = np.stack([logits[:, ids].mean(1) for ids in sets], axis=1)
    own = each[np.arange(len(code)), code]
    return own - (each.sum(1) - own) / (each.shape[1] - 1)
