"""Asking: how a model was asked for an emotion and how it took that, beside what each method reaches, by emotion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from emotrace.arms import ALWAYS
from emotrace.report import style

OWN: Final = ("chosen", "asked", "n_skeletons", "spread")
"""Of ``elicitation`` in report.json what is no way to ask."""
SHOWN: Final = ALWAYS
"""Methods whose figures stand beside."""


def ways(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per way to ask and emotion: the share of replies accepted, its interval, n, and whether the way was chosen."""
    found, out = report.get("elicitation") or {}, []
    for name in (name for name in found if name not in OWN):
        for emotion, leaf in found[name]["accepted"].items():
            low, high = style.interval(leaf)
            out.append(
                {"way": name, "digest": found[name]["digest"], "emotion": emotion, "accepted": leaf["value"], "ci_low": low,
                 "ci_high": high, "n": leaf["n"], "chosen": name == found["chosen"]}
            )  # fmt: skip
    return pd.DataFrame(out)


def by_emotion(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table by emotion: acceptance in training, then fluent accuracy of each method on the test file.

    The last two rows are all emotions, and those elicited by asking alone, which take nothing from the first.
    """
    accepted = (report.get("accepted_train") or {}).get("by_emotion") or {}
    fluent, some = report.get("accuracy_fluent") or {}, report.get("accuracy_elicited") or {}
    methods = [method for method in SHOWN if method in fluent]
    rows = [
        [emotion, _cell(leaf), *(_cell((fluent[m].get("by_emotion") or {}).get(emotion)) for m in methods)]
        for emotion, leaf in accepted.items()
    ]
    if rows:
        rows.append(["all", _cell(report["accepted_train"]), *(_cell(fluent[m].get("overall")) for m in methods)])
        elicited = some.get("accuracy_fluent") or {}
        names = ", ".join(some.get("emotions") or []) or "none"
        rows.append([f"elicited: {names}", "–", *(_cell(elicited.get(m)) for m in methods)])
    return ["emotion", "accepted when asked (training)", *methods], rows


def _cell(leaf: Mapping[str, Any] | None) -> str:
    if not leaf or leaf.get("value") is None:
        return "–"
    low, high = style.interval(leaf)
    bounds = f" [{style.percent(low)}, {style.percent(high)}]" if low == low else ""
    return f"{style.percent(leaf['value'])}{bounds}, n {leaf['n']}"
