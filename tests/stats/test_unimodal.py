import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from emotrace.labels import EmotraceError
from emotrace.stats import dip, dip_test


def literal(sample):
    """From the definition: for every mode, the linear program of the nearest function convex before it and concave after."""
    x = np.sort(sample)
    at, first = np.unique(x, return_index=True)
    before, after = first / len(x), np.append(first[1:], len(x)) / len(x)
    m, best = len(at), 1.0
    for mode in range(m):  # variables: G just before each value, G at the mode itself (it may jump there), the distance
        jump = np.zeros(m + 2)  # which is never downwards
        jump[[mode, m]] = 1, -1
        here = [m if i == mode else i for i in range(m)]
        rows, bounds = [jump], [0.0]
        for i in range(m):
            for variable, level in ((i, before[i]), (here[i], after[i])):
                for sign in (1, -1):
                    one = np.zeros(m + 2)
                    one[variable], one[-1] = sign, -1
                    rows.append(one)
                    bounds.append(sign * level)
        slopes = np.zeros((m - 1, m + 2))
        for i in range(m - 1):
            slopes[i, i + 1] += 1 / (at[i + 1] - at[i])
            slopes[i, here[i]] -= 1 / (at[i + 1] - at[i])
        rows += [-s for s in slopes]
        rows += [
            slopes[i] - slopes[i + 1] if i + 1 < mode else slopes[i + 1] - slopes[i]
            for i in range(m - 2)
            if i + 1 != mode
        ]
        cost = np.zeros(m + 2)
        cost[-1] = 1
        bounds += [0.0] * (len(rows) - len(bounds))
        found = linprog(cost, A_ub=np.array(rows), b_ub=bounds, bounds=[(0, 1)] * (m + 1) + [(0, None)])
        best = min(best, found.fun)
    return max(best, 1 / (2 * len(x)))


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(st.integers(0, 6).map(float), st.floats(-10, 10).map(lambda v: round(v, 2))), min_size=2, max_size=11
    )
)
def test_equals_the_definition(sample):
    assert dip(sample) == pytest.approx(literal(np.array(sample)), abs=1e-7)


def test_known_values():
    assert dip([3.0]) == 0.5
    assert dip(np.arange(50)) == pytest.approx(0.01)
    assert dip(np.repeat([0.0, 1.0], 50) + 1e-6 * np.arange(100)) == pytest.approx(0.25, abs=0.01)
    x = np.random.default_rng(0).normal(size=40)
    assert dip(3 - 5 * x) == pytest.approx(dip(x), abs=1e-12)


def test_p():
    rng = np.random.default_rng(1)
    two = np.concatenate([rng.normal(size=20), rng.normal(size=20) + 7])
    assert dip_test(two, draws=500)[1] < 0.01
    ps = [dip_test(rng.random(15), draws=300, seed=3)[1] for _ in range(200)]
    assert 0.35 < np.mean(ps) < 0.65
    assert np.mean(np.array(ps) <= 0.05) < 0.12


@pytest.mark.parametrize(("sample", "draws"), [([], 10), ([1.0, np.nan], 10), ([1.0, 2.0], 0)])
def test_bad_input(sample, draws):
    with pytest.raises(EmotraceError, match="dip"):
        dip_test(sample, draws)
