"""Acceptance: what share of a model's replies express what was asked, for each way to ask; and the way that does best.

Measured on training skeletons before anything is fitted. It chooses how to ask and is shown beside every figure; it takes no
emotion out: where asking fails, steering may work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypedDict

import numpy as np

from emotrace import replies
from emotrace.datasets import Elicitation, Prompts, Skeleton, sev
from emotrace.evaluation import Evaluation
from emotrace.labels import EmotraceError
from emotrace.replies import Row
from emotrace.replies.accuracy import Share
from emotrace.sites import LanguageModel

ENOUGH: Final = 0.9
"""A way without worked examples whose mean acceptance reaches this ends the comparison: no further way is tried."""
ELICITED: Final = 0.5
"""An emotion of which at least this share of prompted replies is accepted counts as elicited."""


class Tried(NamedTuple):
    """A way to ask, and how it was taken.

    Attributes:
        way: the way.
        accepted: by emotion; empty where it was not measured.
        why_not: why it was not measured; empty where it was.
    """

    way: Elicitation
    accepted: Mapping[str, Share]
    why_not: str = ""

    @property
    def mean(self) -> float:
        """Mean over emotions of the shares accepted; −1 where there is none."""
        known = [share["value"] for share in self.accepted.values() if share["value"] is not None]
        return float(np.mean(known)) if known else -1.0


def unfit(model: LanguageModel, way: Elicitation, skeletons: Sequence[Skeleton], max_new_tokens: int) -> str:
    """Why a model cannot be asked in a way; empty where it can."""
    encoder = model.sites.encoder
    if way.chat and not encoder.has_template:
        return "it needs a chat template, and this model has none"
    try:
        asked, plain = (encoder.ids(sev(skeletons, instruction=i, elicit=way)) for i in (True, False))
    except EmotraceError as error:  # longer than the model takes, in the encoder's own words
        return str(error).rstrip(".")
    longest = max(map(len, asked)) + max_new_tokens
    if encoder.max_length is not None and longest > encoder.max_length:
        return f"prompts and replies of {longest} tokens do not fit the {encoder.max_length} positions of this model"
    ends = {ids[-1] for ids in (*asked, *plain)}
    if len(ends) > 1:
        return f"its prompts end in different tokens, {', '.join(map(repr, encoder.token_texts(sorted(ends))))}"
    return ""


def tried(
    study: Evaluation, ways: Sequence[Elicitation], skeletons: Sequence[Skeleton], max_new_tokens: int
) -> list[Tried]:
    """Every way to ask, measured on a few training skeletons; rows are kept in ``elicit_{name}.jsonl`` of the study.

    The ways are tried in order, until the mean over emotions reaches `ENOUGH` without worked examples; of these all sets are
    tried, so that what depends on their choice is seen.

    Raises:
        EmotraceError: where the model can be asked in none of the ways.
    """
    found: list[Tried] = []
    for way in ways:
        enough = next((one.way.name for one in found if one.mean >= ENOUGH and not one.way.examples), None)
        why = f"{enough} reached {ENOUGH:.0%}" if enough else unfit(study.model, way, skeletons, max_new_tokens)
        found.append(Tried(way, {}, why) if why else Tried(way, _accepted(study, way, sev(skeletons, elicit=way))))
    if not any(one.accepted for one in found):
        said = "; ".join(f"{one.way.name}: {one.why_not}" for one in found)
        raise EmotraceError(
            f"--elicit: this model cannot be asked so: {said}. Give --elicit fewshot, auto, or a JSON file."
        )
    return found


def _accepted(study: Evaluation, way: Elicitation, prompts: Prompts) -> Mapping[str, Share]:
    name = f"elicit_{way.name}"
    rows = study.judged(name, study.generated(name, prompts, method="prompt", stop=way.stop))
    return replies.accuracy_table(rows)["by_emotion"]


def best(found: Sequence[Tried]) -> Tried:
    """The way with the highest mean over emotions; the first among equals."""
    return max((one for one in found if one.accepted), key=lambda one: one.mean)


def said(found: Sequence[Tried]) -> list[str]:
    """One line for each way: how it was taken, the chosen one marked."""
    chosen, lines = best(found), []
    for one in found:
        counts = ", ".join(f"{e} {round((s['value'] or 0) * s['n'])}/{s['n']}" for e, s in one.accepted.items())
        told = f"{one.mean:.0%} accepted ({counts})" if one.accepted else f"not measured: {one.why_not}"
        lines.append(f"asked by {one.way.name}: {told}{' <- chosen' if one is chosen else ''}")
    return lines


def record(found: Sequence[Tried], asked: str, n_skeletons: int) -> dict[str, Any]:
    """For report.json: ``chosen``, ``asked``, ``n_skeletons``, and of each way ``accepted`` by emotion, ``mean`` and what it is.

    ``spread`` says, by emotion, the lowest and highest share among ways of one kind (sets of worked examples).
    """
    ways = {
        one.way.name: {
            **one.way.record, "accepted": dict(one.accepted), "mean": one.mean if one.accepted else None,
            **({"not_measured": one.why_not} if one.why_not else {}),
        }
        for one in found
    }  # fmt: skip
    shown = [one.accepted for one in found if one.way.examples and one.accepted]
    spread = {}
    for emotion in shown[0] if len(shown) > 1 else ():
        values = [share["value"] for of in shown if (share := of[emotion])["value"] is not None]
        spread[emotion] = {"lowest": min(values), "highest": max(values), "n_sets": len(values)}
    return {"chosen": best(found).way.name, "asked": asked, "n_skeletons": n_skeletons, "spread": spread, **ways}


def elicited(accepted: Mapping[str, Share]) -> list[str]:
    """The emotions of which at least the share `ELICITED` of prompted replies is accepted."""
    return [emotion for emotion, share in accepted.items() if (share["value"] or 0.0) >= ELICITED]


def apart(rows: Sequence[Row], used: Collection[str]) -> dict[str, Any]:
    """Acceptance where nothing was chosen: of the prompted replies to the skeletons on which neither examples nor a way were.

    Args:
        rows: judged prompted replies to the training file.
        used: ids of the skeletons on which something was chosen.

    Returns:
        ``value``, ``n``, ``ci95`` and ``by_emotion``; ``n_skeletons``, and ``optimistic``: no other skeleton is left, so that
        these are the ones that it was chosen on.
    """
    left = [row for row in rows if row["skeleton_id"] not in used]
    found = replies.accuracy_table(left or rows)
    skeletons = len({row["skeleton_id"] for row in left or rows})
    overall = {name: found["overall"][name] for name in ("value", "n", "ci95")}
    return {**overall, "by_emotion": found["by_emotion"], "n_skeletons": skeletons, "optimistic": not left}


class OverElicited(TypedDict):
    """The emotions that asking elicits, and by method the shares over them."""

    emotions: list[str]
    accuracy: dict[str, Share]
    accuracy_fluent: dict[str, Share]


def over_elicited(rows: Iterable[Row], accepted: Mapping[str, Share]) -> OverElicited:
    """What stands beside the figures of all emotions: accuracy over those that asking elicits, by method.

    Args:
        rows: replies of all methods, judged and marked as fluent.
        accepted: of the prompted replies to the training file.

    Returns:
        `OverElicited`, its emotions those of `elicited`.
    """
    emotions, of = elicited(accepted), defaultdict(list)
    for row in rows:
        if row.get("emotion") in emotions:
            of[row.get("method", "none")].append(row)

    def shares(fluent: bool) -> dict[str, Share]:
        return {m: replies.accuracy_over_draws(mine, fluent=fluent)["overall"] for m, mine in of.items()}

    return {"emotions": emotions, "accuracy": shares(False), "accuracy_fluent": shares(True)}
