"""Openings: the first tokens that a model's own replies most often begin with. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.replies.row import Row, label_of
from emotrace.replies.table import match_of
from emotrace.signatures import typed


class Opening(NamedTuple):
    """What most replies of one label begin with.

    Attributes:
        token_ids: the tokens.
        share: of the replies counted that begin so.
        n: replies counted.
        accepted: whether only replies that were read as asked were counted.
    """

    token_ids: tuple[int, ...]
    share: float
    n: int
    accepted: bool


@typed
def openings(rows: Iterable[Row], n: int, label: str = "emotion") -> dict[Any, Opening]:
    """The commonest first n tokens of the replies of every label that were read as asked.

    A shorter reply counts with all it has, an empty one is left out. Among equally frequent openings that with the smaller ids is
    taken. Of a label none of whose replies was read as asked, all replies are counted.

    Args:
        rows: judged replies of the un-edited model, e.g. of method ``prompt`` to the training prompts.
        n: tokens.
        label: by which replies belong together.

    Raises:
        EmotraceError: for a row without the label or tokens, or a label all of whose replies are empty.
    """
    arguments.whole("openings(n)", n, 1)
    by_label: dict[Any, list[Row]] = {}
    for row in rows:
        by_label.setdefault(label_of(row, label), []).append(row)
    if not by_label:
        raise EmotraceError("openings: there are no rows.")
    found = {}
    for value, members in by_label.items():
        said = [row for row in members if len(label_of(row, "token_ids"))]
        if not said:
            raise EmotraceError(f"openings: every reply of {label} {value!r} is empty.")
        good = [row for row in said if match_of(row) == 1]
        counts = Counter(tuple(row["token_ids"][:n]) for row in good or said)
        ids, times = min(counts.items(), key=lambda item: (-item[1], item[0]))
        found[value] = Opening(ids, times / counts.total(), counts.total(), bool(good))
    return found
