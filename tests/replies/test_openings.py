"""The commonest first tokens of accepted replies, counted by hand."""

from __future__ import annotations

import pytest

from emotrace import replies
from emotrace.labels import EmotraceError


def row(i, emotion, ids, match=1):
    return {"key": f"{emotion}{i}", "emotion": emotion, "token_ids": ids, "verdict": {"match": match}}


ROWS = [
    *(row(i, "anger", ids) for i, ids in enumerate([[5, 6, 7], [5, 6, 8], [4, 6, 8], [4, 6, 9], [5]])),
    *(row(9 + i, "anger", [1, 1, 1], match=0) for i in range(9)),
    *(row(i, "fear", [2, 3], match=0) for i in range(2)),
    row(5, "fear", [2, 2], match=None),
]


def test_openings_are_the_commonest_of_accepted_replies():
    one, two = replies.openings(ROWS, 1), replies.openings(ROWS, 2)
    assert one["anger"] == ((5,), 3 / 5, 5, True)
    assert two["anger"] == ((4, 6), 2 / 5, 5, True)  # as many begin with 5 6
    assert two["fear"] == ((2, 3), 2 / 3, 3, False)  # none was accepted
    assert replies.openings(ROWS, 3)["fear"] == ((2, 3), 2 / 3, 3, False)  # all that there is
    with pytest.raises(EmotraceError, match="every reply of emotion 'joy' is empty"):
        replies.openings([*ROWS, row(0, "joy", [])], 3)
    with pytest.raises(EmotraceError, match="no rows"):
        replies.openings([], 1)
