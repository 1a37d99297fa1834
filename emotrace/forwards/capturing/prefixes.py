"""Prefixes: which prompts of a batch share their first tokens, so that these are computed once."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from emotrace.forwards.beginnings import MIN_PREFIX

MIN_PROMPTS = 4
"""A shared prefix is worth a pass of its own from `MIN_PREFIX` tokens on and this many prompts."""
PASS_COST = 64
"""What one more pass costs, in tokens: its own fixed time, and the smaller batches it leaves."""
MAX_DEPTH = 200
"""Forks looked at inside each other, e.g. in conversations that grow turn by turn."""
PADDED = 4
"""Prefixes run together of which the shorter ones are padded by at most one token in so many."""
MIN_DEEPER = 1
"""Tokens per prompt that splitting a prefix must save beyond that: else its batches are cut for a single common word."""


class Prefix(NamedTuple):
    """Prompts that share their first ``length`` tokens (0: nothing is shared; behind another prefix: no more than it)."""

    length: int
    members: tuple[int, ...]


def prefixes(sequences: Sequence[Sequence[int]], first_wanted: Sequence[int]) -> list[Prefix]:
    """A partition of the prompts by shared prefixes, in the order of their first members.

    A prefix never reaches the first wanted position of any of its prompts, so every wanted activation is computed.
    Prompts split into deeper prefixes where that saves clearly more tokens than the extra pass costs.

    Args:
        sequences: token ids of each prompt.
        first_wanted: first position of each prompt whose activations are wanted.
    """

    def best(members: list[int], depth: int) -> tuple[int, list[Prefix]]:
        """Tokens saved, and the prefixes that save them."""
        reach = _common(sequences, members, depth, min(first_wanted[i] for i in members))
        branches: dict[Any, list[int]] = defaultdict(list)
        for i in members:
            branches[sequences[i][reach] if reach < first_wanted[i] else None].append(i)
        saved, chosen, stay = 0, [], []
        for token, branch in branches.items():
            if token is not None and MIN_PROMPTS <= len(branch) < len(members):
                deeper, parts = best(branch, reach)
                if deeper > (reach + MIN_DEEPER) * len(branch):
                    saved, chosen = saved + deeper, chosen + parts
                    continue
            stay += branch
        worth = reach >= MIN_PREFIX and len(stay) >= MIN_PROMPTS
        if stay:
            chosen.append(Prefix(reach if worth else 0, tuple(sorted(stay))))
        return saved + (reach * (len(stay) - 1) - PASS_COST if worth else 0), chosen

    chosen = best(list(range(len(sequences))), 0)[1] if sequences else []
    return sorted(chosen, key=lambda prefix: prefix.members[0])


def _common(sequences: Sequence[Sequence[int]], members: Sequence[int], start: int, limit: int) -> int:
    """Length of the common prefix of some sequences, at most ``limit``."""
    first = sequences[members[0]]
    reach = limit
    for i in members[1:]:
        other = sequences[i]
        n = start
        while n < reach and first[n] == other[n]:
            n += 1
        reach = n
    return reach


def branches(sequences: Sequence[Sequence[int]], first_wanted: Sequence[int], start: int) -> list[Prefix]:
    """Prompts of one prefix that share more than it: few each, so their prefixes are computed as rows of one batch.

    Args:
        sequences: token ids of each prompt.
        first_wanted: first position of each prompt whose activations are wanted.
        start: length of the prefix.

    Returns:
        A partition of the prompts that saves most tokens; a prompt that shares nothing further is one of its own of
        length ``start``.
    """
    order = sorted(range(len(sequences)), key=lambda i: (list(sequences[i]), i))
    shared = [_common(sequences, p, start, min(first_wanted[i] for i in p)) for p in itertools.pairwise(order)]

    def best(low: int, high: int, depth: int) -> tuple[int, list[Prefix]]:
        if high - low == 1:
            return 0, [Prefix(start, (order[low],))]
        reach = min(shared[low : high - 1])
        whole = (reach - start) * (high - low - 1)
        saved, chosen = 0, []
        if depth < MAX_DEPTH:
            cuts = [low, *(i + 1 for i in range(low, high - 1) if shared[i] == reach), high]
            parts = [best(a, b, depth + 1) for a, b in itertools.pairwise(cuts)]
            saved, chosen = sum(n for n, _ in parts), [branch for _, branches in parts for branch in branches]
        if whole >= saved and reach - start >= MIN_PREFIX:
            return whole, [Prefix(reach, tuple(order[low:high]))]
        return saved, chosen or [Prefix(start, (i,)) for i in order[low:high]]

    return best(0, len(order), 0)[1] if order else []


class PrefixBatch(NamedTuple):
    """Prefixes whose tokens are computed as rows of one batch, and the prompts behind them.

    Attributes:
        prefixes: of similar length, each one row.
        several: ``(row of its prefix, branch)`` of prompts that share more, as numbers among all prompts.
        alone: ``(row of its prefix, prompt)`` of the others.
    """

    prefixes: tuple[Prefix, ...]
    several: list[tuple[int, Prefix]]
    alone: list[tuple[int, int]]


def prefix_batches(
    found: Sequence[Prefix], sequences: Sequence[Sequence[int]], first_wanted: Sequence[int], size: int
) -> list[PrefixBatch]:
    """Prefixes in batches of similar length, with the branches behind them where these save more than their passes cost.

    Args:
        found: from `prefixes`, each of at least one token.
        sequences: token ids of each prompt.
        first_wanted: first position of each prompt whose activations are wanted.
        size: most rows of a batch.
    """
    out: list[PrefixBatch] = []
    left = sorted(found, key=lambda prefix: (-prefix.length, prefix.members))
    while left:
        widest = left[0].length
        n = sum(1 for p in left[:size] if p.length * PADDED >= widest * (PADDED - 1))
        several, alone = _behind(left[:n], sequences, first_wanted, size)
        out.append(PrefixBatch(tuple(left[:n]), several, alone))
        left = left[n:]
    return out


def _behind(
    found: Sequence[Prefix], sequences: Sequence[Sequence[int]], first_wanted: Sequence[int], size: int
) -> tuple[list[tuple[int, Prefix]], list[tuple[int, int]]]:
    """Branches of several prompts, those of most tokens first, and the other prompts; no branches where they save too little."""
    several: list[tuple[int, Prefix]] = []
    for row, (start, members) in enumerate(found):
        parts = branches([sequences[i] for i in members], [first_wanted[i] for i in members], start)
        several += [
            (row, Prefix(b.length, tuple(members[m] for m in b.members)))
            for b in parts
            if b.length > start and len(b.members) > 1
        ]
    saved = sum((b.length - found[row].length) * (len(b.members) - 1) for row, b in several)
    if saved < PASS_COST * -(-len(several) // size):
        several = []
    inside = {i for _, b in several for i in b.members}
    alone = [(row, i) for row, prefix in enumerate(found) for i in prefix.members if i not in inside]

    def place(one: tuple[int, Prefix]) -> tuple[int, int, tuple[int, ...]]:
        row, branch = one
        rests = sum(len(sequences[i]) - branch.length for i in branch.members)
        return found[row].length - branch.length, -rests, branch.members

    return sorted(several, key=place), alone
