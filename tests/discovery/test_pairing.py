"""Pairs: who is compared with whom, and which token with which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import emotrace as et
from emotrace import discovery
from emotrace.discovery.aligned import SPANS, Pair, Pairs, align_pair
from emotrace.labels import EmotraceError
from emotrace.testing.planted import planted

tokens = st.lists(st.integers(3, 6), min_size=1, max_size=8).map(tuple)


@pytest.fixture(scope="module")
def known():
    return planted("llama", skeletons=2)


def test_another_emotion_word_in_the_same_scenario(known):
    found = discovery.other_emotion(known.model, known.prompts, seed=1)
    assert len(found) == len(known.prompts)
    for p in found:
        assert p.labels["skeleton_id"] == p.against["skeleton_id"]
        assert p.labels["valence"] == p.against["valence"]
        assert p.labels["emotion"] != p.against["emotion"]
        assert [i for i, (a, b) in enumerate(zip(p.clean, p.counterfactual, strict=True)) if a != b] == [
            i for i, s in enumerate(p.spans) if SPANS[s] == "changed"
        ]
    assert len(discovery.other_emotion(known.model, known.prompts, each="all")) == 5 * len(known.prompts)
    assert list(found) == list(discovery.other_emotion(known.model, known.prompts, seed=1))
    assert list(found) != list(discovery.other_emotion(known.model, known.prompts, seed=2))


def test_another_valence_is_aligned_at_both_ends(known):
    for p in discovery.other_valence(known.model, known.prompts.where(emotion="anger")):
        assert p.labels["valence"] != p.against["valence"]
        assert p.labels["emotion"] == p.against["emotion"] == "anger"
        assert len(p.index) == len(p.clean)
        assert p.index[-1] == len(p.counterfactual) - 1
        assert SPANS[p.spans[-1]] == "last"


def test_lengths_that_differ_are_shown_with_the_first_difference(known):
    with pytest.raises(
        et.EmotraceError, match=r"4 tokens against 5. They first differ at position 2: '.+' against '.+'"
    ):
        discovery.pairs(known.model, [[1, 50, 60, 7]], [[1, 50, 61, 62, 7]])
    (pair,) = discovery.pairs(known.model, [[1, 50, 60, 7]], [[1, 50, 61, 62, 7]], align="spans")
    assert pair.index == (0, 1, 2, 4)
    assert [SPANS[s] for s in pair.spans] == ["before", "before", "changed", "last"]


@given(tokens, tokens, tokens, tokens)
def test_alignment_is_monotone_and_equal_outside_the_difference(head, one, other, tail):
    clean, against = head + one + tail, head + other + tail
    if clean == against:
        return
    pair = align_pair(Pair("p", clean, against), "spans")
    assert len(pair.index) == len(pair.spans) == len(clean)
    assert list(pair.index) == sorted(pair.index)
    assert 0 <= min(pair.index) <= max(pair.index) < len(against)
    for i, (j, span) in enumerate(zip(pair.index, pair.spans, strict=True)):
        if SPANS[span] in ("before", "after"):
            assert clean[i] == against[j]
    if len(clean) == len(against):
        assert pair.index == tuple(range(len(clean)))


def test_what_is_no_pair_is_refused(known):
    m = known.model
    with pytest.raises(et.EmotraceError, match="the same tokens"):
        discovery.pairs(m, [[1, 50, 7]], [[1, 50, 7]])
    with pytest.raises(et.EmotraceError, match="2 prompts and 1"):
        discovery.pairs(m, [[1, 50, 7], [1, 51, 7]], [[1, 50, 7]])
    with pytest.raises(et.EmotraceError, match="has no counterfactual"):
        discovery.other_emotion(m, known.prompts.where(emotion="anger"))
    with pytest.raises(et.EmotraceError, match="unknown label 'emotion'"):
        discovery.other_emotion(m, known.plain)
    with pytest.raises(et.EmotraceError, match="unknown align"):
        discovery.pairs(m, [[1, 50, 7]], [[1, 51, 7]], align="left")
    with pytest.raises(et.EmotraceError, match="no pairs"):
        discovery.Pairs([])


def test_pairs_that_are_not_aligned_are_refused():
    for wrong in (Pair("a", (1, 2), (1, 3)), Pair("a", "text", "other"), "text"):
        with pytest.raises(EmotraceError, match=r"pair .*discovery.pairs\(model, clean, counterfactual\) makes them"):
            Pairs([wrong])
