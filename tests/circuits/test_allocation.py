"""How many components each layer gives: the published rule, and plans of one number per layer."""

import math
from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from emotrace.circuits.allocation import allocate, even_allocation, published_allocation
from emotrace.labels import EmotraceError

PUBLISHED_HEADS = [2] * 10 + [3, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 11, 12, 12, 11, 11, 10, 9]
PUBLISHED_NEURONS = [4, 4, 4, 4, 5, 4, 4, 4, 4, 5, 6, 6, 10, 13, 14, 17, 19, 22, 23, 25, 26, 28, 28, 27, 25, 23, 21, 17]
"""Specification §7, 06/5: the plan of anger."""


def literal(weights, total, minimum, cap=0.4, available=None):
    """The specification read aloud, without arrays and in exact numbers; None where its two rounds leave something over."""
    n = len(weights)
    base = minimum
    if total < minimum * n:
        base = 1 if total >= n and minimum > 1 else 0
    positive = [max(w, 0) for w in weights]
    whole = sum(positive)
    share = [Fraction(w) / whole for w in positive] if whole > 0 else [Fraction(1, n)] * n
    raw = [s * (total - base * n) for s in share]
    limit = math.floor(Fraction(str(cap)) * total)
    add = [min(math.floor(r), limit) for r in raw]
    left = total - base * n - sum(add)
    by_fraction = sorted(range(n), key=lambda i: (-(raw[i] - math.floor(raw[i])), i))
    for _ in range(2):
        for i in by_fraction:
            if left and add[i] < limit:
                add[i] += 1
                left -= 1
    if left:
        return None
    planned = [base + a for a in add]
    available = available or planned
    used = [min(p, a) for p, a in zip(planned, available, strict=True)]
    deficit = sum(planned) - sum(used)
    for i in sorted(range(n), key=lambda i: (-planned[i], i)):
        while deficit and used[i] < available[i]:
            used[i] += 1
            deficit -= 1
    return used


whole_numbers = st.lists(st.integers(-3, 50), min_size=1, max_size=12)


def test_equal_fractions_are_taken_in_order():
    """152 shared out by 11 and 20 of 342 leaves 8/9 of one to both, which floating point tells apart."""
    weights = [0, 0, 0, 11, 20, 36, 36, 43, 46, 50, 50, 50]
    assert allocate(weights, 200, 4, 0.1).tolist() == literal(weights, 200, 4, 0.1)


@given(whole_numbers, st.integers(1, 200), st.integers(0, 5), st.sampled_from([0.1, 0.4, 1.0]), st.data())
def test_equals_the_literal_twin(weights, total, minimum, cap, data):
    room = data.draw(st.none() | st.lists(st.integers(0, 40), min_size=len(weights), max_size=len(weights)))
    expected = literal(weights, total, minimum, cap, room)
    if expected is not None:
        assert allocate(weights, total, minimum, cap, room).tolist() == expected


@given(whole_numbers, st.integers(1, 200), st.integers(0, 5), st.sampled_from([0.1, 0.4, 1.0]))
def test_total_minimum_and_cap(weights, total, minimum, cap):
    k = allocate(weights, total, minimum, cap)
    n, most = len(weights), math.floor(cap * total)
    least = minimum if total >= minimum * n else min(minimum, int(total >= n))
    assert k.sum() == min(total, n * (least + most))
    assert (k >= least).all()
    assert (k <= least + most).all()


@given(whole_numbers, st.integers(1, 200), st.integers(0, 5), st.data())
def test_availability(weights, total, minimum, data):
    room = np.array(data.draw(st.lists(st.integers(0, 40), min_size=len(weights), max_size=len(weights))))
    k = allocate(weights, total, minimum, 1.0, room)
    assert k.sum() == min(total, room.sum())
    assert ((k >= 0) & (k <= room)).all()


@given(whole_numbers, st.integers(1, 200), st.integers(0, 5), st.integers(1, 1000))
def test_scale_of_weights_does_not_matter(weights, total, minimum, scale):
    base = allocate(weights, total, minimum)
    np.testing.assert_array_equal(allocate(np.multiply(weights, scale), total, minimum), base)
    np.testing.assert_array_equal(allocate(np.multiply(weights, 2.0**900), total, minimum), base)


@given(whole_numbers, st.integers(1, 200), st.integers(0, 5))
def test_more_weight_never_gets_less(weights, total, minimum):
    k = allocate(weights, total, minimum)
    w = np.maximum(weights, 0)
    assert not ((w[:, None] > w) & (k[:, None] < k)).any()


def test_by_hand():
    # R = 10 − 3 = 7; raw 3.5, 2.33, 1.17 → 3, 2, 1, and the one that is left to the largest fraction
    assert allocate([3, 2, 1], 10, 1).tolist() == [5, 3, 2]
    # equal fractions: the lower layers first
    assert allocate([1, 1, 1, 1], 6).tolist() == [2, 2, 1, 1]
    # no positive weight: uniform
    assert allocate([-1, 0, 0], 6).tolist() == [2, 2, 2]
    # the cap: ⌊0.4·10⌋ = 4, so 6 go on to the layers without weight
    assert allocate([1, 0, 0, 0], 10).tolist() == [4, 2, 2, 2]
    # too few for the minimum of 4: one each, then none
    assert allocate([0, 0, 1], 5, 4).tolist() == [1, 1, 3]
    assert allocate([0, 0, 1], 2, 4, cap=1.0).tolist() == [0, 0, 2]
    # planned 6, 2, 2; layer 0 has 3: its deficit goes to the largest plan with room, the lower layer first
    assert allocate([3, 1, 1], 10, cap=1.0).tolist() == [6, 2, 2]
    assert allocate([3, 1, 1], 10, cap=1.0, available=[3, 4, 9]).tolist() == [3, 4, 3]


def influence(n_layers=28, seed=0):
    rng = np.random.default_rng(seed)
    rising = np.linspace(-0.2, 1, n_layers)[:, None] * rng.uniform(0.5, 2, (2, n_layers, 2))
    coords = {"emotion": ["anger", "fear"], "layer": range(n_layers), "sublayer": ["attn_out", "mlp_out"]}
    return xr.DataArray(rising, coords, name="influence")


def test_published_totals():
    """K = 560: 392 neurons and 168 heads, of which 280 and 112 above the minima."""
    table = influence()
    plan = published_allocation(table.to_dataset(), available={"neuron": 8192, "head": 24})
    assert plan.dims == ("emotion", "kind", "layer")
    assert (plan.attrs["total"], plan.attrs["mlp_share"]) == (560, 0.7)
    assert plan.sum("layer").sel(kind="neuron").values.tolist() == [392, 392]
    assert plan.sum("layer").sel(kind="head").values.tolist() == [168, 168]
    extra = plan - xr.DataArray([4, 2], {"kind": ["neuron", "head"]})
    assert int(extra.min()) == 0
    assert extra.sum("layer").sel(emotion="fear").values.tolist() == [280, 112]
    for emotion in ("anger", "fear"):
        one = table.sel(emotion=emotion)
        k = literal(one.sel(sublayer="attn_out").values.tolist(), 168, 2)
        assert plan.sel(emotion=emotion, kind="head").values.tolist() == k
        k = literal(one.sel(sublayer="mlp_out").values.tolist(), 392, 4)
        assert plan.sel(emotion=emotion, kind="neuron").values.tolist() == k


@pytest.mark.parametrize(("k", "total", "minimum"), [(PUBLISHED_HEADS, 168, 2), (PUBLISHED_NEURONS, 392, 4)])
def test_published_numbers_obey_the_rule(k, total, minimum):
    """What each layer got above the minimum, taken as its weight, gives the published plan back."""
    assert sum(k) == total
    assert allocate(np.subtract(k, minimum), total, minimum).tolist() == k


def test_published_allocation_of_a_small_model():
    plan = published_allocation(influence(6), available={"neuron": 704, "head": [8, 8, 8, 8, 8, 2]})
    assert plan.attrs["total"] == 120
    assert plan.sum("layer").sel(emotion="anger").values.tolist() == [84, 36]
    assert int(plan.sel(kind="head", layer=5).max()) == 2
    without = published_allocation(influence(6), available={"head": [0, 8, 8, 8, 8, 8]})
    assert int(without.sel(kind="neuron").sum()) == 0
    assert int(without.sel(kind="head", layer=0).max()) == 0
    assert int(without.sel(kind="head").sum()) == 2 * 36


def test_even_allocation():
    room = {"neuron": [48, 48, 0], "head": 4}
    plan = even_allocation(["anger", "fear"], [0, 1, 2], room, 20, 2)
    assert plan.sel(kind="neuron").values.tolist() == [[20, 20, 0]] * 2
    assert plan.sel(kind="head").values.tolist() == [[2, 2, 2]] * 2
    shares = even_allocation(["anger"], [0, 1, 2], room, 0.25, 0.1)
    assert shares.sel(kind="neuron").values.tolist() == [[12, 12, 0]]
    assert shares.sel(kind="head").values.tolist() == [[1, 1, 1]]
    assert int(even_allocation(["anger"], [0], {"head": 4}, 20, 0).sum()) == 0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: allocate([], 3), "one finite number per layer"),
        (lambda: allocate([1.0, np.nan], 3), "finite"),
        (lambda: allocate([[1.0]], 3), "one finite number per layer"),
        (lambda: allocate([1.0], 0), "total=0"),
        (lambda: allocate([1.0], 2.5), "total=2.5"),  # type: ignore[arg-type]
        (lambda: allocate([1.0], 3, -1), "minimum=-1"),
        (lambda: allocate([1.0], 3, cap=0), "cap=0"),
        (lambda: allocate([1.0, 2.0], 3, available=[4]), "available.*2 layers"),
        (lambda: allocate([1.0], 3, available=[-4]), "from 0"),
        (lambda: published_allocation(influence().rename(layer="block")), "layer"),
        (lambda: published_allocation(influence().rename(emotion="feeling")), "emotion"),
        (lambda: published_allocation(influence().isel(sublayer=[0])), "mlp_out"),
        (lambda: published_allocation(influence(), mlp_share=1.2), "mlp_share=1.2"),
        (lambda: even_allocation(["a"], [0, 1], {"neuron": [9, 3]}, 4, 0), "layer 1 has 3 neurons"),
        (lambda: even_allocation(["a"], [0], {"head": 4}, 0, 2.5), "neither a whole number nor a share"),
        (lambda: even_allocation(["a"], [0], {"head": 4}, 0, -1), "heads_per_layer=-1"),
        (lambda: even_allocation(["a"], [0], {"head": 4}, 0, float("nan")), "heads_per_layer=nan"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(EmotraceError, match=word):
        call()


def test_rounding_takes_no_component_away():
    """0.1 + 0.2 of 0.3 is all of it, and 29 of 100 are 29, in floating point too."""
    for weights, total in (([0.1, 0.2, 0.7], 10), ([0.29, 0.71], 100), ([1 / 3, 2 / 3], 3)):
        exact = [round(w / sum(weights) * total) for w in weights]
        assert allocate(weights, total, cap=1.0).tolist() == exact
