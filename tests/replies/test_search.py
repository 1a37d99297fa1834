"""Search: successive halving, lines that are left, layer ranges, the dose that is best and the one that collapses."""

import numpy as np
import pandas as pd
import pytest

from emotrace import replies
from emotrace.labels import EmotraceError


@pytest.mark.parametrize("n", [1, *range(2, 81)])
def test_layer_windows_are_contiguous_distinct_and_inside_the_model(n):
    windows = replies.layer_windows(n)
    assert all(w == list(range(w[0], w[-1] + 1)) for w in windows)
    assert all(w[0] >= 0 and w[-1] < n for w in windows)
    assert len({tuple(w) for w in windows}) == len(windows)
    half = list(range(min(n - 1, round(n / 4)), max(1, round(3 * n / 4))))
    assert half in windows, "the middle half"
    if n >= 3:
        assert any(0 in w for w in windows)
        assert any(n - 1 in w for w in windows)
        assert len(windows) >= 3


def searched(scores, sizes=(1, 2, 3), keep=(2, 1), accuracy=None):
    """Points and choice where setting (line, i) scores ``scores[line][i][size]``; and what was measured."""
    asked = []

    def measure(setting, size):
        asked.append((setting, size))
        line, i = setting
        found = scores[line][i]
        score = found[size] if isinstance(found, dict) else found
        return {
            "setting": setting,
            "size": size,
            "accuracy_fluent": score,
            "accuracy": (accuracy or {}).get(setting, score),
        }

    lines = [[(line, i) for i in range(len(row))] for line, row in enumerate(scores)]
    points, best = replies.search(lines, measure, sizes, keep)
    return points, best, asked


def test_search_measures_all_on_few_and_the_best_on_more():
    points, best, asked = searched([[0.1, 0.5], [0.6, 0.4, 0.55]])
    assert [s for s, size in asked if size == 1] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [s for s, size in asked if size == 2] == [(1, 0), (1, 2)]
    assert [s for s, size in asked if size == 3] == [(1, 0)]
    assert best["setting"] == (1, 0)
    assert {p["setting"]: p["size"] for p in points} == {(0, 0): 1, (0, 1): 1, (1, 0): 3, (1, 1): 1, (1, 2): 2}


def test_search_does_not_compare_scores_of_samples_of_different_size():
    lucky = {1: 0.9, 2: 0.95, 3: 0.3}
    points, best, _ = searched([[lucky, {1: 0.8, 2: 0.7, 3: 0.6}, 0.75]], keep=(3, 2))
    assert best["setting"] == (0, 2)
    assert max(p["accuracy_fluent"] for p in points) == 0.75
    points, best, _ = searched([[{1: 0.99, 2: 0.2, 3: 0.99}, 0.5]], keep=(2, 1))
    assert best["setting"] == (0, 1)


def test_search_leaves_a_line_after_two_collapsed_doses():
    points, _, asked = searched([[0.2, 0.8, 0.3, 0.7, 0.3, 0.39, 0.9]], sizes=(1,), keep=())
    assert [s[1] for s, _ in asked] == [0, 1, 2, 3, 4, 5]
    assert len(points) == 6


def test_search_breaks_ties_by_matches_and_then_by_order():
    _, best, _ = searched([[0.5, 0.5, 0.5]], sizes=(4,), keep=(), accuracy={(0, 1): 0.6, (0, 2): 0.6})
    assert best["setting"] == (0, 1)


def doubled(setting, up):
    return (setting[0], setting[1] * (2 if up else 0.5))


def gone_beyond(of_dose, doses=(1, 2, 4), other=(1, 2, 4)):
    """Doses measured on the largest sample beyond two lines, and the chosen one, where a dose scores ``of_dose(dose)``."""
    asked = []

    def measure(setting, size):
        asked.append((setting, size))
        score = of_dose(setting[1]) if setting[0] == "a" else 0.01
        return {"setting": setting, "accuracy_fluent": score, "accuracy": score}

    lines = [[("a", d) for d in doses], [("b", d) for d in other]]
    points, best = replies.search(lines, measure, (1, 2), (2,), doubled)
    within = {("a", d) for d in doses} | {("b", d) for d in other}
    assert {p["setting"] for p in points} == {setting for setting, _ in asked}
    return [s[1] for s, size in asked if s not in within and size == 2], best["setting"][1]


@pytest.mark.parametrize(
    ("peak", "tried", "best"),
    [
        (2, [], 2),
        (0.5, [0.5, 0.25], 0.5),
        (0.01, [0.5, 0.25, 0.125], 0.125),
        (8, [8, 16], 8),
        (100, [8, 16, 32], 32),
        (1, [0.5], 1),
    ],
)  # fmt: skip
def test_a_search_whose_best_dose_is_an_end_goes_on_beyond_it_while_that_helps(peak, tried, best):
    assert gone_beyond(lambda dose: 1 / (1 + abs(np.log2(dose / peak)))) == (tried, best)


def test_a_single_setting_or_a_line_that_was_left_early_has_no_end_to_go_beyond():
    assert gone_beyond(lambda _: 1.0, doses=(3,)) == ([], 3)
    left = {1: 0.6, 2: 1.0, 4: 0.1, 8: 0.1, 16: 2.0}
    assert gone_beyond(left.get, doses=(1, 2, 4, 8, 16)) == ([], 2)


def test_search_leaves_out_samples_that_are_no_larger():
    _, _, asked = searched([[0.5, 0.6]], sizes=(2, 2, 2), keep=(1, 1))
    assert [size for _, size in asked] == [2, 2]


@pytest.mark.parametrize(
    "wrong", [{"lines": []}, {"sizes": (1, 2)}, {"keep": (0,), "sizes": (1, 2)}, {"sizes": (0,), "keep": ()}]
)
def test_search_refuses_what_does_not_fit(wrong):
    given = {"lines": [["a"]], "measure": lambda s, n: {"accuracy_fluent": 1, "accuracy": 1}, "sizes": (1,), "keep": ()}
    with pytest.raises(EmotraceError, match="search"):
        replies.search(**{**given, **wrong})


def test_search_takes_an_unjudged_point_as_the_worst():
    _, best, _ = searched([[None, 0.1]], sizes=(1,), keep=())
    assert best["setting"] == (0, 1)


def test_the_best_dose_and_the_first_above_it_that_collapses():
    fluent = {-1.0: 0.9, 0.0: 1.0, 0.5: 0.6, 1.0: 0.6, 2.0: 0.31, 3.0: 0.29, 4.0: 0.1}
    lines = [{"dose": d, "emotion": "all", "on_target_fluent": v} for d, v in fluent.items()]
    lines += [{"dose": 2.0, "emotion": "fear", "on_target_fluent": 0.99}]
    table = pd.DataFrame(lines)
    assert replies.best_dose(table) == 0.5
    assert replies.collapse(table) == {"best": 0.5, "on_target_fluent": 0.6, "at": 3.0, "there": 0.29}
    held = table.loc[table["dose"] < 3]
    assert replies.collapse(held)["at"] is None
    assert replies.best_dose(table.iloc[::-1]) == 0.5
    for bad in (table.assign(on_target_fluent=np.nan), table.loc[table["dose"] <= 0], table.drop(columns="dose")):
        with pytest.raises(EmotraceError, match="dose"):
            replies.best_dose(bad)
    with pytest.raises(EmotraceError, match="at least 1"):
        replies.layer_windows(0)
