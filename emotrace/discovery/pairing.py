"""Pairing: prompts against others that differ in one thing: the emotion asked for, or the valence of the event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import numpy as np

from emotrace import arguments
from emotrace.datasets import Prompt, Prompts, PromptsLike
from emotrace.discovery.aligned import ALIGNS, Pair, PairKeys, Pairs, align_pair
from emotrace.discovery.held import Held
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.store import Activations

if TYPE_CHECKING:
    from emotrace.sites import LanguageModel  # not at run time: with activations no model library is needed


@overload
def other_emotion(
    model: Activations,
    *,
    each: Literal["one", "all"] = "one",
    align: str = "equal",
    seed: int = 0,
    label: str = "emotion",
    within: Sequence[str] = ("skeleton_id", "valence"),
) -> Pairs: ...
@overload
def other_emotion(
    model: LanguageModel,
    prompts: PromptsLike,
    *,
    each: Literal["one", "all"] = "one",
    align: str = "equal",
    seed: int = 0,
    label: str = "emotion",
    within: Sequence[str] = ("skeleton_id", "valence"),
) -> Pairs: ...
@typed
def other_emotion(
    model: LanguageModel | Activations,
    prompts: PromptsLike | None = None,
    *,
    each: Literal["one", "all"] = "one",
    align: str = "equal",
    seed: int = 0,
    label: str = "emotion",
    within: Sequence[str] = ("skeleton_id", "valence"),
) -> Pairs:
    """Each prompt against the same scenario and event with another emotion word, or what else a label of your own tells apart.

    Args:
        model: from `emotrace.load`, for its tokens; or activations of all tokens of the prompts, in place of model and prompts.
        prompts: with ``label`` and the labels ``within``, as `emotrace.datasets.sev` makes them.
        each: ``one`` other emotion for each prompt, drawn so that every emotion is drawn alike; or ``all`` of them.
        align: ``equal`` asserts equal lengths; ``spans`` aligns beginning and end.
        seed: of the draw.
        label: in what a prompt and its counterfactual differ.
        within: in what they are alike.

    Raises:
        EmotraceError: for prompts without these labels, a prompt with no counterfactual, or lengths that differ.
    """
    told = _told(model, prompts, "other_emotion")
    return _matched(told, tuple(within), label, each, align, seed)


@overload
def other_valence(
    model: Activations, *, each: Literal["one", "all"] = "one", align: str = "spans", seed: int = 0
) -> Pairs: ...
@overload
def other_valence(
    model: LanguageModel,
    prompts: PromptsLike,
    *,
    each: Literal["one", "all"] = "one",
    align: str = "spans",
    seed: int = 0,
) -> Pairs: ...
@typed
def other_valence(
    model: LanguageModel | Activations,
    prompts: PromptsLike | None = None,
    *,
    each: Literal["one", "all"] = "one",
    align: str = "spans",
    seed: int = 0,
) -> Pairs:
    """Each prompt against the same scenario (and emotion word, where there is one) with the event of another valence.

    Args:
        model: from `emotrace.load`, for its tokens; or activations of all tokens of the prompts, in place of model and prompts.
        prompts: with the labels ``skeleton_id`` and ``valence``.
        each: ``one`` other emotion for each prompt, drawn so that every emotion is drawn alike; or ``all`` of them.
        align: events are sentences, so their lengths differ: ``spans`` is the default.
        seed: of the draw.

    Raises:
        EmotraceError: for prompts without these labels, a prompt with no counterfactual, or lengths that differ.
    """
    told = _told(model, prompts, "other_valence")
    same = ("skeleton_id", *(n for n in ("emotion",) if n in told.prompts.label_names))
    return _matched(told, same, "valence", each, align, seed)


@typed
def pairs(model: LanguageModel, clean: PromptsLike, counterfactual: PromptsLike, *, align: str = "equal") -> Pairs:
    """Prompts against counterfactuals of your own, one to one.

    Args:
        model: from `emotrace.load`, for its tokens.
        clean: `Prompts`, or whatever `Prompts.of` takes.
        counterfactual: as many of them.
        align: ``equal`` asserts equal lengths; ``spans`` aligns beginning and end.

    Raises:
        EmotraceError: for another number of counterfactuals, a pair without a difference, or lengths that differ.
    """
    if align not in ALIGNS:
        raise unknown("align", align, ALIGNS, "pairs(align=…)")
    one, other = Prompts.of(clean), Prompts.of(counterfactual)
    if len(one) != len(other):
        raise EmotraceError(f"pairs: {len(one)} prompts and {len(other)} counterfactuals.")
    return _coded(_told(model, one, "pairs"), list(zip(one, other, strict=True)), align)


class _Told(NamedTuple):
    """Prompts, and what makes tokens of them: of a model, or of activations that hold them."""

    prompts: Prompts
    ids: Callable[[Prompts], Sequence[Sequence[int]]]
    texts: Callable[[list[int]], list[str]]
    place: str


def _told(model: LanguageModel | Activations, prompts: PromptsLike | None, place: str) -> _Told:
    if isinstance(model, Activations):
        if prompts is not None:
            raise EmotraceError(
                f"{place}: activations hold their prompts already; give {place}(acts), or a model and prompts."
            )
        held = Held(model, place)
        return _Told(held.prompts(), lambda some: [p.token_ids or () for p in some], held.texts, place)
    if not hasattr(model, "sites"):
        raise EmotraceError(
            f"{arguments.said(f'{place}(model)', model)}: a model of emotrace.load, or activations, are due."
        )
    if prompts is None:
        raise EmotraceError(f"{place}: a model tells tokens, not prompts; give {place}(model, prompts).")
    return _Told(Prompts.of(prompts), model.sites.encoder.ids, model.sites.encoder.token_texts, place)


def _matched(told: _Told, same: tuple[str, ...], differ: str, each: str, align: str, seed: int) -> Pairs:
    if each not in ("one", "all"):
        raise unknown("each", each, ("one", "all"), f"{told.place}(each=…)")
    if align not in ALIGNS:
        raise unknown("align", align, ALIGNS, f"{told.place}(align=…)")
    prompts = told.prompts
    for name in (*same, differ):
        if name not in prompts.label_names:
            raise unknown("label", name, prompts.label_names, told.place)
    groups: dict[tuple, list[Prompt]] = {}
    for p in prompts:
        groups.setdefault(tuple(p.labels.get(n) for n in same), []).append(p)
    rng, found = np.random.default_rng(seed), []
    for members in groups.values():
        if len({p.labels[differ] for p in members}) < 2:
            raise EmotraceError(
                f"{told.place}: prompt {members[0].key!r} has no counterfactual: no other prompt has the same "
                f"{' and '.join(same)} and another {differ}."
            )
        for i, p in enumerate(members):
            others = [q for q in members[i + 1 :] + members[:i] if q.labels[differ] != p.labels[differ]]
            chosen = others if each == "all" else [others[int(rng.integers(len(others)))]]
            found += [(p, q) for q in chosen]
    return _coded(told, found, align)


def _coded(told: _Told, matched: list[tuple[Prompt, Prompt]], align: str) -> Pairs:
    sides = []
    for side in range(2):  # each side by itself: two sets of prompts may count their keys alike
        unique = {pair[side].key: pair[side] for pair in matched}
        coded = dict(zip(unique, told.ids(Prompts(unique.values())), strict=True))
        sides.append([tuple(coded[pair[side].key]) for pair in matched])
    found = []
    for (a, b), clean, other in zip(matched, *sides, strict=True):
        key = f"{a.key}|{b.key}"
        if a.reply_ids or b.reply_ids:
            raise EmotraceError(f"pair {key!r} carries a reply; pairs are prompts, read at their last token.")
        pair = Pair(key, clean, other, dict(a.labels), dict(b.labels), keys=PairKeys(a.key, b.key))
        found.append(align_pair(pair, align, told.texts))
    return Pairs(found)
