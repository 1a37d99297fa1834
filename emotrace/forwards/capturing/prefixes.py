"""Prefixes: which prompts of a batch share their first tokens, so that these are computed once."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

MIN_TOKENS = 8
"""A shared prefix is worth a pass of its own from this many tokens on …"""
MIN_PROMPTS = 4
"""… and this many prompts."""
PASS_COST = 64
"""What one more pass costs, in tokens: its own fixed time, and the smaller batches it leaves."""
MAX_DEPTH = 200
"""Forks looked at inside each other, e.g. in conversations that grow turn by turn."""
MIN_DEEPER = 1
"""Tokens per prompt that splitting a stem must save beyond that: else its batches are cut for a single common word."""


class Stem(NamedTuple):
    """Prompts that share their first ``length`` tokens (0: nothing is shared)."""

    length: int
    members: tuple[int, ...]


def stems(sequences: Sequence[Sequence[int]], first_wanted: Sequence[int]) -> list[Stem]:
    """A partition of the prompts by shared prefixes, in the order of their first members.

    A prefix never reaches the first wanted position of any of its prompts, so every wanted activation is computed.
    Prompts split into deeper stems where that saves clearly more tokens than the extra pass costs.

    Args:
        sequences: token ids of each prompt.
        first_wanted: first position of each prompt whose activations are wanted.
    """

    def best(members: list[int], depth: int) -> tuple[int, list[Stem]]:
        """Tokens saved, and the stems that save them."""
        reach = _common(sequences, members, depth, min(first_wanted[i] for i in members))
        branches: dict[Any, list[int]] = defaultdict(list)
        for i in members:
            branches[sequences[i][reach] if reach < first_wanted[i] else None].append(i)
        saved, found, stay = 0, [], []
        for token, branch in branches.items():
            if token is not None and MIN_PROMPTS <= len(branch) < len(members):
                deeper, parts = best(branch, reach)
                if deeper > (reach + MIN_DEEPER) * len(branch):
                    saved, found = saved + deeper, found + parts
                    continue
            stay += branch
        worth = reach >= MIN_TOKENS and len(stay) >= MIN_PROMPTS
        if stay:
            found.append(Stem(reach if worth else 0, tuple(sorted(stay))))
        return saved + (reach * (len(stay) - 1) - PASS_COST if worth else 0), found

    found = best(list(range(len(sequences))), 0)[1] if sequences else []
    return sorted(found, key=lambda stem: stem.members[0])


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


class Twig(NamedTuple):
    """Prompts behind one stem that share their first ``length`` tokens."""

    length: int
    members: tuple[int, ...]


def twigs(sequences: Sequence[Sequence[int]], first_wanted: Sequence[int], start: int) -> list[Twig]:
    """Prompts of one stem that share more than it: few each, so their prefixes are computed as rows of one batch.

    Args:
        sequences: token ids of each prompt.
        first_wanted: first position of each prompt whose activations are wanted.
        start: length of the stem.

    Returns:
        A partition of the prompts that saves most tokens; a prompt that shares nothing further is a twig of its own of
        length ``start``.
    """
    order = sorted(range(len(sequences)), key=lambda i: (list(sequences[i]), i))
    shared = [_common(sequences, p, start, min(first_wanted[i] for i in p)) for p in itertools.pairwise(order)]

    def best(low: int, high: int, depth: int) -> tuple[int, list[Twig]]:
        if high - low == 1:
            return 0, [Twig(start, (order[low],))]
        reach = min(shared[low : high - 1])
        whole = (reach - start) * (high - low - 1)
        saved, found = 0, []
        if depth < MAX_DEPTH:
            cuts = [low, *(i + 1 for i in range(low, high - 1) if shared[i] == reach), high]
            parts = [best(a, b, depth + 1) for a, b in itertools.pairwise(cuts)]
            saved, found = sum(n for n, _ in parts), [twig for _, twigs in parts for twig in twigs]
        if whole >= saved and reach - start >= MIN_TOKENS:
            return whole, [Twig(reach, tuple(order[low:high]))]
        return saved, found or [Twig(start, (i,)) for i in order[low:high]]

    return best(0, len(order), 0)[1] if order else []


def batches(found: Sequence[Twig], sequences: Sequence[Sequence[int]], start: int, size: int) -> list[list[Twig]]:
    """Twigs of several prompts in batches of at most ``size`` prompts with similar ends; none if that saves too little.

    Args:
        found: from `twigs`.
        sequences: token ids of each prompt.
        start: length of the stem.
        size: most prompts of a batch.
    """
    several = [t for t in found if t.length > start and len(t.members) > 1]
    saved = sum((t.length - start) * (len(t.members) - 1) for t in several)
    if saved < PASS_COST * -(-sum(len(t.members) for t in several) // size):
        return []
    pieces = [Twig(t.length, t.members[i : i + size]) for t in several for i in range(0, len(t.members), size)]
    pieces.sort(key=lambda t: (-max(len(sequences[i]) - t.length for i in t.members), t.members))
    out: list[list[Twig]] = []
    room = 0
    for piece in pieces:
        if len(piece.members) > room:
            out.append([])
            room = size
        out[-1].append(piece)
        room -= len(piece.members)
    return out
