"""Aligned: a prompt and its counterfactual, token by token, with what each token is there for.

Where both have the same number of tokens, position i stands against position i. Where they do not, their common beginning and
their common end are aligned, and the tokens between them are matched in proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from emotrace.datasets import Prompt, Prompts
from emotrace.datasets.prompts import Ordered, having
from emotrace.labels import AGAINST, EmotraceError

SPANS: Final = ("before", "changed", "after", "last")
"""Of a token: before what differs, in it (first to last difference), after it, or the last prompt token."""
ALIGNS: Final = ("equal", "spans")


class PairKeys(NamedTuple):
    """The keys of a prompt and of its counterfactual."""

    clean: str
    counterfactual: str


@dataclass(frozen=True)
class Pair:
    """One prompt and what it is compared with.

    Attributes:
        key: of the prompt and, after a bar, of its counterfactual.
        clean: token ids of the prompt.
        counterfactual: token ids of the counterfactual.
        labels: of the prompt.
        against: labels of the counterfactual.
        index: for every clean position the position of the counterfactual that stands against it.
        spans: for every clean position its place in `SPANS`.
        keys: of both prompts by themselves; None where nobody said.
    """

    key: str
    clean: tuple[int, ...]
    counterfactual: tuple[int, ...]
    labels: dict[str, Any] = field(default_factory=dict)
    against: dict[str, Any] = field(default_factory=dict)
    index: tuple[int, ...] = ()
    spans: tuple[int, ...] = ()
    keys: PairKeys | None = None


class Pairs(Ordered[Pair]):
    """An ordered set of pairs with unique keys.

    Raises:
        EmotraceError: if there are none, one is not aligned, or two share a key.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__(pairs)
        if not self._items:
            raise EmotraceError("there are no pairs.")
        for i, p in enumerate(self._items):
            if not isinstance(p, Pair) or isinstance(p.clean, str) or not len(p.clean) == len(p.index) == len(p.spans):
                raise EmotraceError(
                    f"pair {p.key if isinstance(p, Pair) else i!r}: token ids with their alignment are due; "
                    "discovery.pairs(model, clean, counterfactual) makes them of any prompts."
                )
        keys = [p.key for p in self._items]
        if len(set(keys)) < len(keys):
            raise EmotraceError(f"two pairs have the key {next(k for k in keys if keys.count(k) > 1)!r}.")

    def __repr__(self) -> str:
        return f"Pairs({len(self)})"

    def where(self, **labels: Any) -> Pairs:
        """The pairs whose prompt has the given labels: of each, one value or several."""
        return Pairs([self[i] for i in having([p.labels for p in self], labels, "Pairs.where")])

    def prompts(self) -> Prompts:
        """Every prompt and counterfactual once, as token ids: what `attribution_patching` needs the activations of.

        A prompt carries the labels in which what it is compared with differs as ``against_NAME`` (a counterfactual that is no
        prompt of another pair, those of its prompt), where all of its pairs agree, so that metrics of pairs can be captured.

        Raises:
            EmotraceError: where two different prompts have one key, or a pair does not say the keys of its prompts.
        """
        clean = {p.keys.clean for p in self if p.keys}
        ids: dict[str, tuple[int, ...]] = {}
        labels: dict[str, dict[str, Any]] = {}
        against: dict[str, list[dict[str, Any]]] = {}
        for p in self:
            if p.keys is None:
                raise EmotraceError(f"pair {p.key!r} does not say the keys of its prompts (Pair(keys=…)).")
            sides = (
                (p.keys.clean, p.clean, p.labels, p.against),
                (p.keys.counterfactual, p.counterfactual, p.against, p.labels),
            )
            for side, (key, tokens, mine, theirs) in enumerate(sides):
                if ids.setdefault(key, tokens) != tokens:
                    raise EmotraceError(
                        f"two prompts of these pairs have the key {key!r}: capture prompts and counterfactuals apart."
                    )
                if side == 0 or key not in clean:
                    labels[key] = dict(mine)
                    against.setdefault(key, []).append(theirs)
        found = []
        for key, (first, *more) in against.items():
            differ = {k: v for k, v in first.items() if v != labels[key].get(k)}
            agreed = {f"{AGAINST}{k}": v for k, v in differ.items() if all(one.get(k) == v for one in more)}
            found.append(Prompt(key, token_ids=ids[key], labels={**labels[key], **agreed}))
        return Prompts(found)


def align_pair(
    pair: Pair, align: str, texts: Callable[[list[int]], list[str]] = lambda ids: [str(i) for i in ids]
) -> Pair:
    """The pair with ``index`` and ``spans``.

    Raises:
        EmotraceError: where both are the same, or their lengths differ under ``align="equal"``: with the first difference.
    """
    one, other = pair.clean, pair.counterfactual
    if one == other:
        raise EmotraceError(f"pair {pair.key!r}: prompt and counterfactual are the same tokens.")
    short = min(len(one), len(other))
    head = next((i for i in range(short) if one[i] != other[i]), short)
    if len(one) != len(other) and align == "equal":
        mine, theirs = (texts(list(ids[head : head + 1])) or ["(its end)"] for ids in (one, other))
        raise EmotraceError(
            f"pair {pair.key!r}: {len(one)} tokens against {len(other)}. They first differ at position {head}: "
            f"{mine[0]!r} against {theirs[0]!r}. align='spans' aligns what is equal before and after the difference."
        )
    tail = next((i for i in range(short - head) if one[-1 - i] != other[-1 - i]), short - head)
    n, m = len(one) - head - tail, len(other) - head - tail
    if n == 0 or m == 0:  # one is the other with tokens put in: one aligned token beside them takes part
        shift = 1 if head else 0
        head, tail = head - shift, tail - (1 - shift)
        n, m = n + 1, m + 1
    middle = [head + min(m - 1, i * m // n) for i in range(n)] if len(one) != len(other) else range(head, head + n)
    index = (*range(head), *middle, *range(len(other) - tail, len(other)))
    spans = [0] * head + [1] * n + [2] * tail
    spans[-1] = 3
    return replace(pair, index=tuple(index), spans=tuple(spans))
