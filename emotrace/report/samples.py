"""Samples: replies side by side, drawn without looking at them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, Final

from emotrace.labels import EMOTIONS
from emotrace.replies import Row
from emotrace.report import style

SIDE_BY_SIDE: Final = ("prompt", "steer", "circuit")
"""Methods whose replies stand beside each other; the reply of ``none`` stands above them."""


def samples(rows: Iterable[Row], groups: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Skeletons drawn by seed among all that have replies, never by their content; each with its replies by emotion and method.

    Args:
        rows: generations; only draw 0 is shown.
        groups: how many (skeleton, valence) pairs.
        seed: of the draw, which does not depend on the order of the rows.
    """
    found: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row.get("draw", 0) == 0 and row.get("method") in ("none", *SIDE_BY_SIDE):
            group = found.setdefault((str(row["skeleton_id"]), str(row["valence"])), {})
            group[str(row["method"]), str(row["emotion"])] = row
    names = sorted(found)
    out = []
    for name in sorted(random.Random(seed).sample(names, min(groups, len(names)))):
        group = found[name]
        first = next(iter(group.values()))
        plain = next((r for (m, _), r in sorted(group.items(), key=lambda i: i[0]) if m == "none"), None)
        methods = [m for m in SIDE_BY_SIDE if any(k[0] == m for k in group)]
        emotions = style.in_order({e: 0 for m, e in group if m != "none"}, EMOTIONS)
        out.append(
            {
                "skeleton": name[0],
                "valence": name[1],
                "theme": str(first.get("theme", "")),
                "scenario": str(first.get("scenario", "")),
                "event": str(first.get("event", "")),
                "none": reply(plain, asked=False) if plain else None,
                "methods": methods,
                "rows": [
                    {"emotion": e, "replies": [reply(group[m, e]) if (m, e) in group else None for m in methods]}
                    for e in emotions
                ],
            }
        )
    return out


def reply(row: Row, asked: bool = True) -> dict[str, str]:
    """Text, the judge's answer, and whether it is right: yes, no, or nothing where nothing was asked or judged."""
    verdict = row.get("verdict") or {}
    answer, match = verdict.get("predicted"), verdict.get("match")
    right = {1: "yes", 0: "no"}.get(match, "") if asked and match is not None else ""
    return {"text": str(row.get("gen_text", "")), "answer": str(answer) if answer else "unjudged", "right": right}
