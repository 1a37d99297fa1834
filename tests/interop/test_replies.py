"""Replies in all published schemas as rows, and rows of ours as their scripts count them."""

import json

import pytest

from emotrace import directions, interop, replies
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError
from tests.interop import literal

REASONS = {0: "The tone is flat.", 1: "It is clear."}


def flat(skeleton, valence, emotion, match=1, reason=None, **extra):
    return {
        "key": f"{skeleton}__{valence}__{emotion}", "skeleton_id": skeleton, "theme": "Work/Job", "valence": valence,
        "emotion": emotion, "scenario": "I sent it", "event": f"A {valence} answer came.", "gen_text": f"{emotion}!",
        "judge": {"match": match, "reason": reason or REASONS[match]}, "meta": {"seed": 1234, "input_len": 82, "time": 5},
        **extra,
    }  # fmt: skip


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def labelled(tmp_path):
    rows = [flat(s, v, e) for s in ("work_00", "work_01") for v in VALENCES for e in EMOTIONS]
    rows[3] = flat("work_00", "positive", "fear", 0)
    rows[8] = flat("work_00", "neutral", "happiness", 0, "json-decode-error: Expecting ',' delimiter: line 3")
    rows[20] = flat("work_01", "positive", "happiness", 0, "invalid-json", label_time=7)
    lines(tmp_path / "sev" / "accepted.jsonl", [r for r in rows if r["judge"]["match"]])
    lines(tmp_path / "sev" / "rejected.jsonl", [r for r in rows if not r["judge"]["match"]])
    return tmp_path / "sev", rows


def test_labelled_replies_become_rows_in_one_order(labelled):
    folder, rows = labelled
    got = interop.read_replies(folder)
    assert [r["key"] for r in got] == [r["key"] for r in rows]
    assert list(got[0]) == [
        "key", "method", "draw", "skeleton_id", "theme", "valence", "emotion", "scenario", "event", "gen_text",
        "verdict_target", "meta",
    ]  # fmt: skip
    assert got[0]["method"] == "prompt"
    assert got[0]["verdict_target"] == {"match": 1, "judge": "openai:gpt-4o-mini", "reason": "It is clear."}
    assert got[0]["meta"] == {"seed": 1234, "prompt_length": 82, "time": 5}
    assert got[3]["verdict_target"]["match"] == 0
    assert got[20]["meta"]["label_time"] == 7


def test_a_judge_that_failed_has_not_judged(labelled):
    got = interop.read_replies(labelled[0])
    assert [r["verdict_target"]["match"] for r in (got[8], got[20])] == [None, None]
    table = replies.accuracy_table(got, "verdict_target")["overall"]
    assert (table["n"], table["n_unjudged"], table["value"]) == (34, 2, 33 / 34)
    assert len(directions.accepted(got, "verdict_target")) == 33


def test_rows_written_back_are_their_files(labelled, tmp_path):
    folder, rows = labelled
    del rows[20]["label_time"]
    interop.write_replies(interop.read_replies(folder), tmp_path / "new", verdict="verdict_target")
    for name, match in (("accepted", 1), ("rejected", 0)):
        written = [json.loads(x) for x in (tmp_path / "new" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        theirs = [r for r in rows if r["judge"]["match"] == match]
        for row in written:
            row["meta"].pop("label_time", None)
        assert written == theirs
    assert literal.accuracy(tmp_path / "new") == literal.accuracy(folder)
    groups, _ = directions.complete_groups([r for r in interop.read_replies(folder) if r["verdict_target"]["match"]])
    assert literal.complete_groups(tmp_path / "new") == {"__".join(g) for g in groups}


def test_our_rows_are_counted_by_their_script(tmp_path):
    verdicts = {e: {"predicted": e, "match": 1, "judge": "lexicon", "reason": "r"} for e in EMOTIONS}
    verdicts["fear"] = {"predicted": "anger", "match": 0, "judge": "lexicon", "reason": "r"}
    verdicts["disgust"] = {"predicted": None, "match": None, "judge": "lexicon", "reason": None}
    rows = [
        {**flat("work_00", v, e), "method": "steer", "draw": 0, "token_ids": [1], "verdict": verdicts[e]}
        for v in VALENCES
        for e in EMOTIONS
    ]
    accepted, rejected = interop.write_replies(rows, tmp_path)
    found = literal.accuracy(tmp_path)
    assert found["fear"] == {"total": 3, "accepted": 0, "rejected": 3, "accuracy": 0.0}
    assert found["disgust"]["accepted"] == 0
    assert found["positive"] == {"total": 6, "accepted": 4, "rejected": 2, "accuracy": 66.67}
    assert len(accepted.read_text().splitlines()) == 12
    last = json.loads(rejected.read_text().splitlines()[-1])
    assert last["judge"] == {"match": 0, "reason": "unjudged"}
    assert "token_ids" not in last


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda r: [r[0], {**r[1], "draw": 1}], "one method and draw"),
        (lambda r: [r[0], {**r[1], "method": "none"}], "one method and draw"),
        (lambda r: [r[0], r[0]], "two rows"),
        (lambda r: [{k: v for k, v in r[0].items() if k != "event"}], "no 'event'"),
        (lambda r: [{**r[0], "verdict": None}], "no 'verdict'"),
        (lambda r: [], "not none"),
    ],
)
def test_rows_that_are_not_theirs_to_read(tmp_path, change, word):
    verdict = {"predicted": "anger", "match": 1, "judge": "lexicon", "reason": ""}
    rows = [{**flat("work_00", v, "anger"), "method": "steer", "draw": 0, "verdict": verdict} for v in VALENCES]
    with pytest.raises(EmotraceError, match=word):
        interop.write_replies(change(rows), tmp_path / "x")
    assert not (tmp_path / "x").exists()


BASE = {"skeleton_id": "work_00", "theme": "Work/Job", "scenario": "I sent it"}
SEV = {**BASE, "event": {v: f"A {v} answer came." for v in VALENCES}}
TEXTS = {v: {e: f"{v} {e}" for e in (*EMOTIONS[:4], "disgust", "surprise")} for v in VALENCES}
MARKS = {v: {e: {"match": int(e != "fear"), "reason": "r"} for e in EMOTIONS} for v in VALENCES}


def as_pairs(rows):
    return {(r["valence"], r["emotion"]): (r["gen_text"], r.get("verdict_target", {}).get("match")) for r in rows}


WANTED = {(v, e): (f"{v} {e}", int(e != "fear")) for v in VALENCES for e in EMOTIONS}


def test_both_steered_schemas(tmp_path):
    stored = {**BASE, "event_valences": TEXTS, "valence_labels": MARKS, "parameters": {"alpha": 8.0}, "timestamp": 9}
    one = interop.read_replies(lines(tmp_path / "stored.jsonl", [stored]), data=lines(tmp_path / "sev.jsonl", [SEV]))
    shipped = [
        {**BASE, "event_valence": v, "event": SEV["event"][v], "emotion_texts": TEXTS[v], "emotion_labels": MARKS[v]}
        for v in VALENCES
    ]
    two = interop.read_replies(lines(tmp_path / "shipped.jsonl", shipped))
    for rows in (one, two):
        assert as_pairs(rows) == WANTED
        assert {r["method"] for r in rows} == {"steer"}
        assert rows[0]["key"] == "work_00__positive__anger"
        assert {r["event"] for r in rows} == set(SEV["event"].values())
    assert one[0]["meta"] == {"parameters": {"alpha": 8.0}, "timestamp": 9}
    strip = [{k: v for k, v in r.items() if k != "meta"} for r in one]
    assert strip == [{k: v for k, v in r.items() if k != "meta"} for r in two]
    bare = interop.read_replies(lines(tmp_path / "bare.jsonl", [{**BASE, "event_valences": TEXTS}]))
    assert "verdict_target" not in bare[0]
    assert "event" not in bare[0]


def test_circuit_texts_and_verdicts_lie_in_two_files(tmp_path):
    texts = lines(tmp_path / "outputs.jsonl", [{**BASE, "valence_results": TEXTS}])
    told = {**BASE, "valence_results": MARKS, "labeling_info": {"model": "gpt-9"}}
    labels = lines(tmp_path / "labels.jsonl", [told])
    got = interop.read_replies(texts, labels=labels)
    assert as_pairs(got) == WANTED
    assert got[0]["method"] == "circuit"
    assert got[0]["verdict_target"]["judge"] == "openai:gpt-9"
    assert [r["emotion"] for r in got[:6]] == list(TEXTS["positive"])  # their order: disgust before surprise
    with pytest.raises(EmotraceError, match="given as labels="):
        interop.read_replies(labels)
    with pytest.raises(EmotraceError, match="none of valence_labels"):
        interop.read_replies(texts, labels=lines(tmp_path / "x.jsonl", [BASE]))
    lines(tmp_path / "labels.jsonl", [{**told, "valence_results": {"positive": MARKS["positive"]}}])
    with pytest.raises(EmotraceError, match="no verdict on 'work_00__neutral__anger'"):
        interop.read_replies(texts, labels=labels)


def test_the_baseline_is_one_reply_for_every_emotion(tmp_path):
    base = {**BASE, "valence_results": {v: f"{v}." for v in VALENCES}, "parameters": {"injection_method": "baseline"}}
    got = interop.read_replies(lines(tmp_path / "b.jsonl", [base]))
    assert len(got) == 18
    assert {r["method"] for r in got} == {"none"}
    assert {(r["valence"], r["gen_text"]) for r in got} == {(v, f"{v}.") for v in VALENCES}


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({**BASE, "texts": {}}, "neither 'gen_text' nor"),
        (flat("w", "bad", "anger"), "unknown valence"),
        (flat("w", "positive", "calm"), "unknown emotion"),
        (flat("w", "positive", "anger", judge={"match": "maybe", "reason": ""}), "is no verdict"),
        ({k: v for k, v in flat("w", "positive", "anger").items() if k != "event"}, "'event' is missing"),
        ({**BASE, "event_valences": {"positive": 3}}, "not texts by emotion"),
        ({**BASE, "event_valences": 3}, "not a mapping of valences"),
        ({**BASE, "event_valences": TEXTS, "valence_labels": {"positive": MARKS["positive"]}}, "no verdict on neutral"),
        ({**BASE, "event_valences": TEXTS, "valence_labels": {"positive": 1}}, "not verdicts"),
    ],
)
def test_other_lines_are_refused_with_file_and_line(tmp_path, row, word):
    file = lines(tmp_path / "r.jsonl", [flat("first", "positive", "anger"), row])
    with pytest.raises(EmotraceError, match=word) as caught:
        interop.read_replies(file)
    assert "r.jsonl:2" in str(caught.value)


def test_other_bad_input(tmp_path):
    twice = lines(tmp_path / "twice.jsonl", [flat("w", "positive", "anger")] * 2)
    with pytest.raises(EmotraceError, match="a second reply"):
        interop.read_replies(twice)
    with pytest.raises(EmotraceError, match="unknown method"):
        interop.read_replies(twice, method="steering")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmotraceError, match=r"neither accepted\.jsonl"):
        interop.read_replies(tmp_path / "empty")
    with pytest.raises(EmotraceError, match="has no rows"):
        interop.read_replies(lines(tmp_path / "none.jsonl", []))
    other = lines(tmp_path / "sev.jsonl", [{**SEV, "skeleton_id": "work_07"}])
    with pytest.raises(EmotraceError, match="unknown skeleton 'work_00'"):
        interop.read_replies(lines(tmp_path / "b.jsonl", [{**BASE, "event_valences": TEXTS}]), data=other)
