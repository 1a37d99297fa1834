"""Overlap: texts that occur twice, texts of one set that leak into another, sets that must share none, and parts that do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from emotrace import arguments
from emotrace.datasets.prompts import Prompt, Prompts, spread
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed

SHOWN: Final = 3
"""Names of what two sets share that a message shows."""


def normalised(text: str) -> str:
    """A text by its letters and digits alone, in lower case: two that differ in marks and blanks are the same."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def repeated(texts: Sequence[str]) -> list[int]:
    """Places of the texts that stand earlier in the list already."""
    seen: set[str] = set()
    out = []
    for i, text in enumerate(texts):
        name = normalised(text)
        if name in seen:
            out.append(i)
        seen.add(name)
    return out


def leaked(texts: Sequence[str], other: Iterable[str]) -> list[int]:
    """Places of the texts that are among the others."""
    known = {normalised(text) for text in other}
    return [i for i, text in enumerate(texts) if normalised(text) in known]


@typed
def shared(test: Iterable[Any], fit: Iterable[Any]) -> list[str]:
    """What two sets have in common: skeleton ids, and the names of skeletons, prompts, queries and texts that say the same.

    A scenario counts as one text whatever its events and emotions are; texts are compared as `normalised`.

    Args:
        test: skeletons, prompts, queries, labelled texts or plain texts.
        fit: the others, of the same or of another kind.

    Returns:
        Names as in ``test``, each once.
    """
    known = [_named(item) for item in fit]
    ids, texts = {i for i, _, _ in known if i}, {normalised(text) for _, _, text in known}
    found = [name for i, name, text in map(_named, test) if i in ids or normalised(text) in texts]
    return list(dict.fromkeys(found))


@typed
def refuse_shared(
    test: Iterable[Any], fit: Iterable[Any], tested: str = "the test set", fitted: str = "training"
) -> None:
    """Refuse to measure on what was fitted on: the same file, a copy of it, or one that shares a part.

    Args:
        test: what is measured on: skeletons, prompts, queries, labelled texts or plain texts.
        fit: what is fitted on, of the same or of another kind.
        tested: how messages name the first.
        fitted: how they name the second.

    Raises:
        EmotraceError: saying how many are in both, and which.
    """
    test = list(test)
    both = shared(test, fit)
    if both:
        n = len({name for _, name, _ in map(_named, test)})
        some = ", ".join(both[:SHOWN]) + (", …" if len(both) > SHOWN else "")
        raise EmotraceError(
            f"{tested} and {fitted} share {len(both)} of {n}: {some}. What is fitted on cannot be tested on; give other data."
        )


def _named(item: object) -> tuple[str, str, str]:
    """Skeleton id (or nothing), name and text of whatever holds a text."""
    if isinstance(item, str):
        return "", repr(item[:40]), item
    if isinstance(item, Prompt):
        skeleton, scenario = (str(item.labels.get(name) or "") for name in ("skeleton_id", "scenario"))
        return skeleton, skeleton or item.key, scenario or content(item)
    for ident, text in (
        ("skeleton_id", "scenario"),
        ("query_id", "text"),
        ("text_id", "text"),
        ("question_id", "question"),
    ):
        if hasattr(item, ident) and hasattr(item, text):
            name = str(getattr(item, ident))
            return name if ident == "skeleton_id" else "", name, str(getattr(item, text))
    raise EmotraceError(f"shared: {type(item).__name__} is no skeleton, prompt, query or text.")


@typed
def hold_out(prompts: Prompts, share: float = 0.25, seed: int = 0, by: str = "emotion") -> tuple[Prompts, Prompts]:
    """Two parts that share no text, each with about the same share of every value of a label.

    Args:
        prompts: prompts of plain text, or with chat messages (of which the last counts).
        share: of the distinct texts of each value that go into the second part; at least one of each value, and not all.
        seed: of the draw.
        by: the label.

    Returns:
        (part to fit on, part held out), each in the order of the prompts.

    Raises:
        EmotraceError: for a share outside (0, 1), an unknown label, or a value with fewer than two distinct texts.
    """
    arguments.share("hold_out(share)", share)
    if by not in prompts.label_names:
        raise unknown("label", by, prompts.label_names, "hold_out(by=…)")
    texts = [normalised(content(p)) for p in prompts]
    value_of: dict[str, object] = {}  # a text that stands under two values goes with the first
    for text, prompt in zip(texts, prompts, strict=True):
        value_of.setdefault(text, prompt.labels.get(by))
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    for value in dict.fromkeys(value_of.values()):
        mine = [text for text, v in value_of.items() if v == value]
        if len(mine) < 2:
            raise EmotraceError(f"hold_out: {by} {value!r} has one distinct text; it cannot be in both parts.")
        n = min(len(mine) - 1, max(1, round(share * len(mine))))
        held |= {mine[i] for i in rng.permutation(len(mine))[:n]}
    fit, out = ([p for p, t in zip(prompts, texts, strict=True) if (t in held) == side] for side in (False, True))
    return Prompts(fit), Prompts(out)


@typed
def split(prompts: Prompts, share: float, seed: int = 0) -> tuple[set[str], set[str]]:
    """Skeletons in two disjoint parts, the second holding about ``share`` of them, spread evenly over themes.

    Skeletons that tell the same scenario under two ids stay in one part.

    Args:
        prompts: with the label ``skeleton_id``.
        share: of the second part, between 0 and 1.
        seed: of the drawing.

    Raises:
        EmotraceError: if there are fewer than two skeletons, or prompts without one.
    """
    arguments.share("split(share)", share)
    if any("skeleton_id" not in p.labels for p in prompts):
        raise EmotraceError("split needs prompts with the label 'skeleton_id'.")
    first: dict[str, str] = {}  # skeletons that tell the same scenario go together, under the first of them
    group = {}
    for p in prompts:
        name = str(p.labels["skeleton_id"])
        scenario = normalised(str(p.labels.get("scenario") or name))
        group[name] = group.get(name) or first.setdefault(scenario, name)
    themes = {str(p.labels["skeleton_id"]): str(p.labels.get("theme", "")) for p in prompts}
    themes = {name: theme for name, theme in themes.items() if group[name] == name}
    if len(themes) < 2:
        raise EmotraceError(f"{len(themes)} skeleton cannot be split into a part to fit and a part to choose doses on.")
    names = np.random.default_rng(seed).permutation(sorted(themes)).tolist()
    held = spread({name: themes[name] for name in names}, min(len(names) - 1, max(1, round(share * len(names)))))
    other = {name for name in group if group[name] in held}
    return set(group) - other, other


def content(prompt: Prompt) -> str:
    """What a prompt says: its text, or its last message.

    Raises:
        EmotraceError: for a prompt of token ids.
    """
    if prompt.text is not None:
        return prompt.text
    if prompt.messages is None:
        raise EmotraceError(f"prompt {prompt.key!r} is token ids; its text is not known.")
    return prompt.messages[-1]["content"]
