"""Numbers that differ by rounding alone are one number."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace.stats import ties


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12), st.sampled_from([0.1, 1 / 3, 1e-9, 7e8]))
def test_differences_tie_where_exact_ones_do(tenths, unit):
    x = np.array(tenths) * unit
    i, j = np.triu_indices(len(x), 1)
    exact = [abs(Fraction(tenths[a]) - Fraction(tenths[b])) for a, b in zip(i, j, strict=True)]
    found = ties.tied(np.abs(x[i] - x[j]), noise=ties.EPS * np.abs(x).max())
    assert len(np.unique(found)) == len(set(exact))
    assert np.argsort(found, kind="stable").tolist() == sorted(range(len(exact)), key=lambda k: exact[k])


def test_other_numbers_stay_as_they_are():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 4))
    for axis in (0, 1, 2, -1):
        assert (ties.tied(x, axis=axis) == x).all()
    odd = np.array([[np.nan, 1.0, np.inf, -np.inf, 1 + 1e-15]])
    np.testing.assert_array_equal(ties.tied(odd), [[np.nan, 1, np.inf, -np.inf, 1]])
    assert ties.descending(odd[0]).tolist() == [2, 1, 4, 3, 0]
    assert ties.tied([0.1]).tolist() == [0.1]


def test_order_of_equals_is_theirs():
    assert ties.descending([0.3, 0.1 + 0.2, 0.3, 0.4]).tolist() == [3, 0, 1, 2]
    assert ties.descending([[1.0, 2.0], [3.0, 0.0]], axis=0).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("value", [0.0, 0.3, 1 / 3, 1e-200, -1e200])
def test_a_constant_is_constant_whatever_its_value(value):
    assert ties.constant(np.full(7, value))
    assert ties.constant(np.full(7, value) * (1 + 1e-15 * np.arange(7)))
    assert not ties.constant(np.full(7, value) + np.arange(7) * max(abs(value), 1e-200) * 1e-6)
