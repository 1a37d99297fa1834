"""Explorer: every reply of a run as compact data that the page's script filters, searches and sets side by side."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr

from emotrace.arms import ARMS
from emotrace.labels import EmotraceError
from emotrace.replies import Row
from emotrace.report import style

NOT_SAID: Final = ""
"""Name of what a row does not say: an emotion that was not asked for, a reply that was not judged."""
LONGEST: Final = 10_000
"""Characters of a reply, after which it is cut."""


class Data(NamedTuple):
    """What the page's script reads.

    Attributes:
        n: replies.
        seed: by which the order of the prompts was drawn.
        json: the data, safe inside a ``script`` element.
        projected: what the coloured replies are, and where they were read; empty where none was captured.
    """

    n: int
    seed: int
    json: str
    projected: str


def data(rows: Iterable[Row], seed: int = 0, projections: Mapping[str, xr.DataArray] | None = None) -> Data | None:
    """Replies grouped by prompt, the prompts in an order that is drawn without looking at any reply; None without replies.

    A row is ``[prompt, method, asked, draw, read, match, fluent, perplexity, text]``; names and texts stand once, and rows have
    their places in these lists (−1: unknown). The order depends on ``seed`` and on the prompts alone.

    Args:
        rows: of generations.jsonl, in any order.
        seed: of the order.
        projections: method → ``[token]`` of `directions.project` at reply tokens, with ``key`` and ``token_text``: what is shown
            at the tokens of that method's replies.

    Raises:
        EmotraceError: for a projection of more than one value a token, or without those labels.
    """
    places: dict[str, list[Row]] = {}
    for row in rows:
        places.setdefault(_place(row), []).append(row)
    if not places:
        return None
    names = sorted(places)
    random.Random(seed).shuffle(names)
    every = [row for name in names for row in places[name]]
    found = {
        "methods": style.in_order(sorted({_method(row) for row in every}), tuple(ARMS)),
        "asked": style.in_order(sorted({_asked(row) for row in every})),
        "read": style.in_order(sorted({_read(row) for row in every})),
    }
    at = {kind: {name: i for i, name in enumerate(known)} for kind, known in found.items()}
    texts: dict[str, int] = {}
    tokens: dict[str, list[list[Any]]] = {}
    values = _token_values(projections or {})
    lines: list[list[Any]] = []
    for i, name in enumerate(names):
        for row in sorted(places[name], key=lambda r: _order(r, at)):
            asked, method, draw, key, _ = _order(row, at)
            spoken = values.get((found["methods"][method], key))
            if spoken and not draw:
                tokens[str(len(lines))] = spoken
            text = texts.setdefault(str(row.get("gen_text", ""))[:LONGEST], len(texts))
            lines.append(
                [i, method, asked, draw, at["read"][_read(row)], _match(row), _fluent(row), _perplexity(row), text]
            )
    prompts = [_said(places[name][0]) for name in names]
    whole = {**found, "prompts": prompts, "texts": list(texts), "rows": lines, "tokens": tokens}
    said = [_where(method, found) for method, found in (projections or {}).items()] if tokens else []
    return Data(len(lines), seed, as_script(whole), "; ".join(said))


def as_script(value: Any) -> str:
    """JSON that can stand in a ``script`` element: nothing in it ends the element or opens a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _token_values(projections: Mapping[str, xr.DataArray]) -> dict[tuple[str, str], list[list[Any]]]:
    """(method, key) → ``[text, value]`` of every token, in their order."""
    out: dict[tuple[str, str], list[list[Any]]] = {}
    for method, found in projections.items():
        lacks = [name for name in ("key", "token_text") if name not in found.coords]
        if found.dims != ("token",) or lacks:
            raise EmotraceError(
                f"report(projections[{method!r}]): one value a token with the labels key and token_text is due; it has the "
                f"dims {', '.join(map(str, found.dims))}" + (f" and lacks {', '.join(lacks)}." if lacks else ".")
            )
        for key, text, value in zip(*(found[n].values for n in ("key", "token_text")), found.values, strict=True):
            rounded = float(f"{value:.3g}") if np.isfinite(value) else None
            out.setdefault((method, str(key)), []).append([str(text), rounded])
    return out


def _where(method: str, found: xr.DataArray) -> str:
    """``prompt (training): resid_post, layer 3``, as far as it is of one place."""
    forms = {"sublayer": "{}", "layer": "layer {}"}
    place = ", ".join(
        form.format(found[n].item()) for n, form in forms.items() if n in found.coords and not found[n].ndim
    )
    return f"{method}: {place}" if place else method


def _order(row: Row, at: Mapping[str, Mapping[str, int]]) -> tuple[int, int, int, str, str]:
    """Of the replies to a prompt: by what was asked, method, draw and key."""
    text = str(row.get("gen_text", ""))
    return at["asked"][_asked(row)], at["methods"][_method(row)], int(row.get("draw") or 0), str(row.get("key")), text


def _place(row: Row) -> str:
    """What tells prompts apart whatever was asked of them: skeleton and valence, the plain prompt, or the key."""
    if row.get("skeleton_id"):
        return f"{row['skeleton_id']}\n{row.get('valence', '')}"
    return str(row.get("prompt") or row.get("key"))


def _said(row: Row) -> list[str]:
    """Name and text of a prompt, as far as its labels say."""
    parts = [str(row[k]) for k in ("theme", "valence") if row.get(k)]
    name = str(row.get("skeleton_id") or row.get("prompt") or row.get("key"))
    texts: Sequence[Any] = [row.get(k) for k in ("scenario", "event", "query", "question")]
    whole = [str(t).strip() for t in texts if t]
    return [", ".join(parts), name, " ".join(t if t[-1:] in ".!?…" else f"{t}." for t in whole)]


def _method(row: Row) -> str:
    return str(row.get("method") or "none")


def _asked(row: Row) -> str:
    return str(row.get("emotion") or NOT_SAID)


def _read(row: Row) -> str:
    return str((row.get("verdict") or {}).get("predicted") or NOT_SAID)


def _match(row: Row) -> int:
    match = (row.get("verdict") or {}).get("match")
    return -1 if match is None else int(match)


def _fluent(row: Row) -> int:
    fluent = (row.get("meta") or {}).get("fluent")
    return -1 if fluent is None else int(fluent)


def _perplexity(row: Row) -> float | None:
    value = style.number((row.get("meta") or {}).get("perplexity"))
    return float(f"{value:.3g}") if np.isfinite(value) else None
