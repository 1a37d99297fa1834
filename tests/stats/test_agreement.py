"""Cohen's κ and Krippendorff's α against worked examples, scikit-learn, and draws made one by one."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from emotrace import stats
from emotrace.labels import EmotraceError

FOUR = (
    ("1", "2", "3", "3", "2", "1", "4", "1", "2", None, None, None),
    ("1", "2", "3", "3", "2", "2", "4", "1", "2", "5", None, "3"),
    (None, "3", "3", "3", "2", "3", "4", "2", "2", "5", "1", None),
    ("1", "2", "3", "3", "2", "4", "4", "1", "2", "5", "1", None),
)
"""Twelve units of four observers (Krippendorff 2011); the last has one answer."""


def test_alpha_of_the_published_example() -> None:
    found = stats.krippendorff_alpha(FOUR)
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.n == 11
    assert found.lo < found.value < found.hi


def test_kappa_is_that_of_scikit_learn_and_unanswered_units_do_not_count() -> None:
    rng = np.random.default_rng(0)
    a = rng.choice(list("xyz"), 80).tolist()
    b = [one if rng.random() < 0.6 else str(rng.choice(list("xyz"))) for one in a]
    expected = cohen_kappa_score(a, b)
    assert stats.cohen_kappa(a, b).value == pytest.approx(expected)
    more = stats.cohen_kappa([*a, "x", None], [*b, None, "y"])
    assert (more.value, more.n) == (pytest.approx(expected), 80)


def test_draws_of_clusters_are_those_made_one_by_one() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(12), 4)
    a = rng.choice(list("xy"), 48)
    b = np.where(rng.random(48) < 0.7, a, rng.choice(list("xy"), 48))
    found = stats.cohen_kappa(a.tolist(), b.tolist(), clusters, n=200, seed=3)
    slow = []
    for draw in stats.cluster_weights(12, 200, 3).astype(int):
        rows = np.repeat(np.arange(48), draw[clusters])
        slow.append(cohen_kappa_score(a[rows], b[rows]))
    assert (found.lo, found.hi) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
    alone = stats.cohen_kappa(a.tolist(), b.tolist(), n=200, seed=3)
    assert alone.value == found.value
    assert (alone.lo, alone.hi) != (found.lo, found.hi)


def test_perfect_opposite_and_nothing_to_disagree_about() -> None:
    a = list("xyxyxy")
    assert stats.cohen_kappa(a, a)[:3] == (1, 1, 1)
    assert stats.krippendorff_alpha([a, a]).value == 1
    assert stats.cohen_kappa(a, list("yxyxyx")).value == -1
    assert np.isnan(stats.cohen_kappa(["x"] * 4, ["x"] * 4).value)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: stats.cohen_kappa(["x"], ["x", "y"]), "1 and 2 answers"),
        (lambda: stats.cohen_kappa(["x", None], [None, "y"]), "no unit"),
        (lambda: stats.cohen_kappa(["x"], ["x"], [1, 2]), "clusters"),
        (lambda: stats.krippendorff_alpha([["x"]]), "at least two judges"),
        (lambda: stats.cohen_kappa(["x"], ["x"], level=1.0), "level"),
    ],
)
def test_refused(call, word: str) -> None:
    with pytest.raises(EmotraceError, match=word):
        call()
