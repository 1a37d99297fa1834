"""Queries: the published shapes, repeats and leaks counted, parts that share no text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace.datasets import Prompt, Prompts, emotion_query, hold_out, query_report, read_queries
from emotrace.datasets.overlap import leaked, normalised, repeated
from emotrace.datasets.queries import Query
from emotrace.labels import EMOTIONS_EV, EmotraceError

QUERIES = {"anger": ["Who did it?", "Why?", "who  did it", "When?"], "joy": ["You won?", "A party!", "Cake?", "Sun?"]}


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_both_published_shapes_and_rows(tmp_path):
    labelled = read_queries(write(tmp_path / "a.json", QUERIES))
    assert labelled[2] == Query("anger_002", "who  did it", "anger")
    assert [q.emotion for q in labelled] == ["anger"] * 4 + ["joy"] * 4
    assert read_queries(write(tmp_path / "b.json", ["x?", "y?"])) == [
        Query("query_000", "x?"),
        Query("query_001", "y?"),
    ]
    rows = [{"text": "x?", "emotion": "Awe"}, {"text": "y?"}]
    assert read_queries(write(tmp_path / "c.json", rows)) == [Query("awe_000", "x?", "awe"), Query("query_000", "y?")]
    (tmp_path / "d.csv").write_text("emotion,query\nfear,x?\n")
    assert read_queries(tmp_path / "d.csv") == [Query("fear_000", "x?", "fear")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"anger": "x"}, "'anger' is str, not an emotion's list"),
        ({"anger": ["x", 3]}, "query 1 of 'anger' is 3"),
        (["x", " "], "query 1 of 'query' is ' '"),
        ({}, "has no queries"),
        (3, "not int"),
        ([{"emotion": "fear"}], "field 'query' is missing"),
        ([{"query": "x", "emotion": 3}], "field 'emotion' is 3"),
    ],
)
def test_other_shapes_are_refused(value, message, tmp_path):
    with pytest.raises(EmotraceError, match=message):
        read_queries(write(tmp_path / "f.json", value))


def test_repeats_are_dropped_and_a_part_is_held_out(tmp_path):
    path = write(tmp_path / "a.json", QUERIES)
    every = emotion_query(path, part="all")
    assert every.keys == ("anger_000", "anger_001", "anger_003", "joy_000", "joy_001", "joy_002", "joy_003")
    assert len(emotion_query(path, part="all", duplicates=True)) == 8
    assert every[0].messages == ({"role": "user", "content": "Who did it?"},)
    assert every[0].labels == {"query_id": "anger_000", "emotion": "anger", "query": "Who did it?"}
    fit, held = emotion_query(path), emotion_query(path, part="held_out")
    assert set(fit.keys) | set(held.keys) == set(every.keys)
    assert not set(fit.keys) & set(held.keys)
    assert {p.labels["emotion"] for p in held} == {"anger", "joy"}
    assert emotion_query(path, emotions=["happiness"], part="all", limit=2).keys == ("joy_000", "joy_001")
    known = read_queries(path)[:2]
    assert "anger_000" not in emotion_query(path, part="all", exclude=known).keys
    for wrong, message in (
        ({"part": "test"}, "unknown part 'test'"),
        ({"emotions": "joy"}, "a list of names"),
        ({"emotions": ["fear"]}, "unknown emotion 'fear'"),
        ({"limit": 0}, "limit=0"),
        ({"held_out": 1.0}, "share=1.0"),
        ({"exclude": read_queries(path)}, "no prompts"),
    ):
        with pytest.raises(EmotraceError, match=message):
            emotion_query(path, **wrong)


def test_repeats_held_out_stay_on_one_side(tmp_path):
    path = write(tmp_path / "a.json", QUERIES)
    for seed in range(6):
        fit, held = (emotion_query(path, part=p, duplicates=True, seed=seed) for p in ("fit", "held_out"))
        assert ("anger_000" in fit.keys) == ("anger_002" in fit.keys)
        assert not leaked([p.labels["query"] for p in held], [p.labels["query"] for p in fit])


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 8)), min_size=1, max_size=40),
    st.floats(0.05, 0.95),
    st.integers(0, 3),
)
def test_parts_share_no_text_and_keep_order(pairs, share, seed):
    prompts = Prompts(Prompt(str(i), text=f"{e} {t}", labels={"emotion": e}) for i, (e, t) in enumerate(pairs))
    distinct = {e: {t for x, t in pairs if x == e} for e, _ in pairs}
    if min(map(len, distinct.values())) < 2:
        with pytest.raises(EmotraceError, match="one distinct text"):
            hold_out(prompts, share, seed)
        return
    fit, held = hold_out(prompts, share, seed)
    assert sorted([*fit.keys, *held.keys], key=int) == list(prompts.keys)
    assert list(held.keys) == sorted(held.keys, key=int)
    assert not {p.text for p in fit} & {p.text for p in held}
    for e, texts in distinct.items():
        n = len({p.text for p in held if p.labels["emotion"] == e})
        assert n == min(len(texts) - 1, max(1, round(share * len(texts))))


def test_hold_out_refuses():
    prompts = Prompts([Prompt("a", token_ids=(1,), labels={"emotion": "x"})])
    with pytest.raises(EmotraceError, match="is token ids"):
        hold_out(prompts)
    with pytest.raises(EmotraceError, match="unknown label 'theme'"):
        hold_out(prompts, by="theme")


def test_what_counts_as_the_same_text():
    assert normalised("  Who did it?! ") == normalised("who DID it") == "who did it"
    assert normalised("Straße") == normalised("STRASSE")
    assert repeated(["a b", "c", "A, b!", "a b"]) == [2, 3]
    assert leaked(["a b", "c"], ["A B."]) == [0]


def test_report_counts_repeats_and_leaks(tmp_path):
    queries = read_queries(write(tmp_path / "a.json", {**QUERIES, "fear": ["Why?", "Dark?"]}))
    other = read_queries(write(tmp_path / "b.json", ["when", "Else?"]))
    report = query_report(queries, other)
    assert (report["n"], report["n_distinct"], report["n_across_emotions"]) == (10, 8, 1)
    assert report["by_emotion"]["anger"] == {"n": 4, "n_distinct": 3}
    assert report["repeated"] == ["anger_002", "fear_000"]
    assert (report["n_leaked"], report["leaked"]) == (1, ["anger_003"])
    assert query_report(other, queries)["leaked"] == ["query_000"]


def test_the_samples_have_the_published_shapes_and_do_not_leak():
    queries = read_queries("data/emotion_query_sample.json")
    plus = read_queries("data/emotion_query_plus_sample.json")
    report = query_report(queries, plus)
    assert tuple(report["by_emotion"]) == EMOTIONS_EV
    assert (report["n"], report["n_distinct"], report["n_leaked"]) == (120, 120, 0)
    assert query_report(plus)["n_distinct"] == len(plus) == 54


def test_published_queries(oracles):
    """§C1: counts, distinct texts and the leak of the query set into the evaluation set."""
    queries = read_queries(oracles.path("emotion_vectors/EmotionQuery.json"))
    plus = read_queries(oracles.path("emotion_vectors/EmotionQueryPlus.json"))
    report = query_report(queries)
    assert tuple(report["by_emotion"]) == EMOTIONS_EV
    assert (report["n"], report["n_distinct"], report["n_across_emotions"]) == (500, 448, 0)
    assert [report["by_emotion"][e]["n_distinct"] for e in EMOTIONS_EV] == [99, 98, 98, 69, 84]
    assert {report["by_emotion"][e]["n"] for e in EMOTIONS_EV} == {100}
    assert sum(not q.text.endswith("?") for q in queries) == 2
    found = query_report(plus, queries)
    assert (found["n"], found["n_distinct"], found["n_leaked"]) == (400, 379, 249)
    places = [int(i.removeprefix("query_")) for i in found["leaked"]]
    assert max(places) < 250, "none of the daily queries is among them"
    assert [query_report(part)["n_distinct"] for part in (plus[:250], plus[250:])] == [234, 145]
    assert sum(q.text.endswith("?") for q in plus[250:]) == 109
    words = [len(q.text.split()) for q in plus]
    assert sum(words) / len(words) == 15.25
    fit, held = (emotion_query(queries, part=p) for p in ("fit", "held_out"))
    assert len(fit) + len(held) == 448
    clean = emotion_query(plus, part="all", exclude=queries)
    assert len(clean) == 1 + 145
