"""Areas against their integrals written out, and equal cost against settings whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from emotrace import replies
from emotrace.labels import EmotraceError
from emotrace.replies.frontiers import Point

SKELETONS = 10


def point(method, size, accuracy, fluent, kl, chosen=False, n=20):
    """Per skeleton n replies, of which the first share is read as asked, and the first share of all is fluent."""
    rows = [
        {"key": f"s{s}_{i}", "skeleton_id": f"s{s}", "verdict": {"match": int(i < accuracy * n)},
         "meta": {"fluent": i < fluent * n}}
        for s in range(SKELETONS) for i in range(n)
    ]  # fmt: skip
    return Point(method, size, rows, {r["key"]: kl for r in rows}, chosen)


BASE = point("none", 0, 0.2, 1, 0).rows
STEER = [point("steer", 1, 0.5, 0.9, 1), point("steer", 2, 0.8, 0.6, 3, True), point("steer", 3, 0.3, 0.2, 8)]
CIRCUIT = [
    point("circuit", 0.1, 0.7, 0.9, 0.5),
    point("circuit", 0.2, 0.9, 0.8, 2, True),
    point("circuit", 0.3, 0.5, 0.4, 6),
]


def test_areas_are_integrals_of_the_best_that_a_cost_allows():
    found = replies.frontiers([*STEER, *CIRCUIT], BASE)
    assert found["kl_limit"] == 6
    at = {(p["method"], p["size"]): p for p in found["points"]}
    assert (
        at["steer", 2] | {"accuracy": 0.8, "accuracy_fluent": 0.6, "fluency": 0.6, "kl": 3.0, "n": 200}
        == at["steer", 2]
    )
    grid = np.linspace(0, 1, 60_001)[1:]
    for method in ("steer", "circuit"):
        mine = [p for p in found["points"] if p["method"] in ("none", method)]
        by_kl = np.mean([max(p["accuracy_fluent"] for p in mine if p["kl"] <= k) for k in 6 * grid[::20]])
        by_fluency = np.mean([max((p["accuracy"] for p in mine if p["fluency"] >= f), default=0) for f in grid[::20]])
        area = found["area"][method]
        assert (area["kl"]["value"], area["fluency"]["value"]) == (
            pytest.approx(by_kl, abs=1e-3),
            pytest.approx(by_fluency, abs=1e-3),
        )
        for one in area.values():
            assert one["ci95"] == pytest.approx([one["value"]] * 2), "skeletons are alike, so the interval has no width"


def test_methods_are_compared_at_the_kl_of_the_cheaper_choice():
    (test,) = replies.frontiers([*STEER, *CIRCUIT], BASE, pairs=[("circuit", "steer"), ("circuit", "prompt")])["pairs"]
    steer = 0.5 + (0.6 - 0.5) / 2  # halfway between its points at 1 and 3 nats
    assert (test["a"], test["b"], test["kl"], test["difference"]) == ("circuit", "steer", 2, pytest.approx(0.8 - steer))
    assert test["p"] == 2 / 2**SKELETONS
    (test,) = replies.frontiers([STEER[0], CIRCUIT[1]], BASE, pairs=[("circuit", "steer")])["pairs"]
    assert test["kl"] == 1  # steering was not tried beyond, and the circuit is taken halfway from the un-edited model
    assert test["difference"] == pytest.approx((0.2 + 0.8) / 2 - 0.5)


def test_intervals_come_from_skeletons():
    rng = np.random.default_rng(0)

    def noisy(one):
        luck = {f"s{s}": rng.normal(0, 0.3) for s in range(SKELETONS)}
        rows = [{**r, "verdict": {"match": int(rng.random() < 0.6 + luck[r["skeleton_id"]])}} for r in one.rows]
        return one._replace(rows=rows)

    found = replies.frontiers([noisy(p) for p in STEER], BASE, pairs=[("steer", "circuit")])
    lo, hi = found["area"]["steer"]["kl"]["ci95"]
    assert lo < found["area"]["steer"]["kl"]["value"] < hi
    assert hi - lo > 0.05
    assert found["pairs"] == []


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(EmotraceError, match="no points"):
        replies.frontiers([], BASE)
    with pytest.raises(EmotraceError, match="steer at 1 has 200 judged replies and the KL of 0 prompts"):
        replies.frontiers([STEER[0]._replace(kl={})], BASE)
