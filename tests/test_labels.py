"""Vocabulary: aliases, position policies, and errors that name the closest choice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace import labels
from emotrace.labels import EMOTIONS, EMOTIONS_EV, POLICIES, EmotraceError


def test_vocabulary_is_consistent():
    assert len(EMOTIONS) == len(set(EMOTIONS)) == 6
    assert (*EMOTIONS, "neutral") == labels.ANSWERS
    assert set(EMOTIONS_EV) - set(EMOTIONS) == {"joy"}
    assert set(labels.SUBLAYERS) < set(labels.LAYER_SITES)
    assert len(set(labels.SITES)) == len(labels.SITES)
    assert issubclass(EmotraceError, ValueError)


@pytest.mark.parametrize(
    ("name", "among", "meant"),
    [
        ("anger", EMOTIONS, "anger"),
        (" Fear\n", EMOTIONS, "fear"),
        ("joy", EMOTIONS, "happiness"),
        ("happiness", EMOTIONS_EV, "joy"),
        ("joy", EMOTIONS_EV, "joy"),
        ("neutral", labels.ANSWERS, "neutral"),
    ],
)
def test_emotion_follows_the_alias_table(name, among, meant):
    assert labels.emotion(name, among) == meant


@pytest.mark.parametrize("name", ["neutral", "angry", "", 3, None])
def test_other_emotions_are_refused(name):
    with pytest.raises(EmotraceError, match=r"unknown emotion .* in here.*Choices: anger, sadness"):
        labels.emotion(name, place="here")


def test_unknown_offers_the_closest_choice_only_where_one_is_close():
    error = labels.unknown("site", "resid_pots", labels.SITES, "capture")
    assert str(error).startswith("unknown site 'resid_pots' in capture. Did you mean 'resid_post'?")
    assert "Did you mean" not in str(labels.unknown("site", "xyz", labels.SITES))
    assert str(labels.unknown("site", "x", ())).endswith("Choices: none.")


SPANS = [(2, 1), (1, 1), (-1, 2), (1,), (1, 2, 3), (0.5, 2), (True, 2), 3, None, "first"]


def test_unknown_offers_the_other_name_of_an_emotion():
    assert "Did you mean 'happiness'?" in str(labels.unknown("emotion", "joy", EMOTIONS))
    assert "Did you mean 'joy'?" in str(labels.unknown("emotion", "happiness", labels.EMOTIONS_EV))


@pytest.mark.parametrize("positions", SPANS, ids=repr)
def test_positions_that_are_none(positions):
    with pytest.raises(EmotraceError, match="here"):
        labels.check_positions(positions, "here")


def test_positions_that_are_some():
    assert [labels.check_positions(p) for p in POLICIES] == list(POLICIES)
    assert labels.check_positions([0, 5]) == (0, 5)


def test_policies_on_a_prompt_of_4_and_a_reply_of_3_tokens():
    chosen = {p: list(labels.positions_in(p, 4, 7)) for p in (*POLICIES, (2, 5), (5, 99), (9, 12))}
    assert chosen == {
        "last": [3],
        "generated": [4, 5, 6],
        "steer": [3, 4, 5, 6],
        "prompt": [0, 1, 2, 3],
        "all": [0, 1, 2, 3, 4, 5, 6],
        (2, 5): [2, 3, 4],
        (5, 99): [5, 6],
        (9, 12): [],
    }


@given(st.integers(1, 30), st.integers(0, 30))
def test_policies_partition_the_sequence(prompt, reply):
    n = prompt + reply
    parts = {p: set(labels.positions_in(p, prompt, n)) for p in POLICIES}
    assert parts["prompt"] | parts["generated"] == parts["all"] == set(np.arange(n))
    assert not parts["prompt"] & parts["generated"]
    assert parts["last"] | parts["generated"] == parts["steer"]
    assert parts["last"] == {prompt - 1}


@pytest.mark.parametrize("label", ["Wut", "喜び", "mild joy", "a.b", "joy=1", "naïve", "constant"])
def test_plain_labels_are_names_of_files_as_they_are(label):
    assert labels.filename(label, "here") == label


@pytest.mark.parametrize(
    "label",
    [
        "",
        " ",
        "..",
        "a/b",
        "../x",
        "/tmp/x",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        "x.",
        "CON",
        "nul.txt",
        "x" * 151,
        "\u202eb",
    ],
)
def test_labels_that_point_elsewhere_are_no_names_of_files(label):
    with pytest.raises(EmotraceError, match=r"^here: .*cannot be the name of a file"):
        labels.filename(label, "here")


@pytest.mark.parametrize("pair", [("Joy", "joy"), ("é", "e\u0301"), ("STRASSE", "straße"), ("joy", "joy")])
def test_two_labels_that_some_system_takes_for_one_file_are_refused(pair):
    with pytest.raises(EmotraceError, match="would be one file"):
        labels.filenames(pair, "here")
