"""SEV: our format, the published rows, every schema error with its line, and the prompts made of them."""

import json

import pytest

from emotrace.datasets import Skeleton, read_jsonl, read_sev, sev
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError

EVENTS = {"positive": "It went well.", "neutral": "It went on.", "negative": "It went wrong."}
ROW = {"theme": "Work/Job", "scenario": "I began a task", "event": EVENTS, "skeleton_id": "work_00"}


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def generated(**more):
    """Rows of the published ``generated/*.jsonl``: one per skeleton, valence and emotion."""
    return [
        {
            "key": f"work_00__{v}__{e}",
            **{k: ROW[k] for k in ("skeleton_id", "theme", "scenario")},
            "valence": v,
            "emotion": e,
            "event": EVENTS[v],
            "gen_text": f"A reply in {e}.",
            "meta": {"model_id": "m", "seed": 1234, "input_len": 82},
            **more,
        }
        for v in VALENCES
        for e in EMOTIONS
    ]


def steered():
    """Rows of the second published variant of step 03: one per skeleton and valence."""
    about = {k: ROW[k] for k in ("skeleton_id", "theme", "scenario")}
    return [
        {**about, "event_valence": v, "event": EVENTS[v], "emotion_texts": dict.fromkeys(EMOTIONS, "Text.")}
        for v in VALENCES
    ]


WHOLE = [Skeleton("work_00", "Work/Job", "I began a task", EVENTS)]


@pytest.mark.parametrize(
    "rows",
    [[ROW], generated(), generated(judge={"match": 1, "reason": "r"}), steered(), [ROW, *generated()]],
    ids=["data", "generated", "labelled", "03", "both"],
)
def test_every_published_schema_gives_the_same_skeletons(rows, tmp_path):
    assert read_sev(write(tmp_path / "f.jsonl", rows)) == WHOLE


def test_a_missing_theme_follows_from_the_id_and_blank_lines_are_skipped(tmp_path):
    rows = ["", {k: v for k, v in ROW.items() if k != "theme"}, "   "]
    assert read_sev(write(tmp_path / "f.jsonl", rows)) == WHOLE


def test_line_separators_inside_text_and_a_byte_order_mark_are_read(tmp_path):
    odd = {**ROW, "scenario": "I began\u2028a\x85task\u2029"}
    path = tmp_path / "f.jsonl"
    path.write_text("\ufeff" + json.dumps(odd, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_sev(path)[0].scenario == odd["scenario"]


def without(name):
    return {k: v for k, v in ROW.items() if k != name}


BROKEN = {
    "not JSON": ([ROW, "{oops"], ":2: not JSON"),
    "not an object": ([ROW, "[1]"], ":2: a row is a JSON object, not list"),
    "no id": ([without("skeleton_id")], ":1: field 'skeleton_id' is missing.*the row has: theme, scenario, event"),
    "number as id": ([{**ROW, "skeleton_id": 7}], ":1: field 'skeleton_id'"),
    "no scenario": (["", {**ROW, "scenario": " "}], ":2: field 'scenario'"),
    "no event": ([without("event")], ":1: field 'event' of 'work_00' is missing"),
    "no valence": ([{**ROW, "event": "It went."}], ":1: field 'valence' of 'work_00' is missing"),
    "no events": ([{**ROW, "event": {}}], ":1: field 'event' of 'work_00' is empty"),
    "valence": ([{**ROW, "event": {"positve": "x"}}], ":1.*Did you mean 'positive'"),
    "empty event": (
        [{**ROW, "event": {**EVENTS, "neutral": ""}}],
        ":1: the neutral event of 'work_00' is missing or empty",
    ),
    "event of numbers": ([{**ROW, "event": {"neutral": 3}}], ":1: the neutral event"),
    "twice": ([ROW, ROW], ":2: skeleton_id 'work_00' occurs twice"),
    "other scenario": (
        [ROW, {**generated()[0], "scenario": "other"}],
        ":2: skeleton 'work_00' has another theme or scenario",
    ),
    "other event": ([ROW, {**generated()[0], "event": "other"}], ":2: the positive event of 'work_00' differs"),
    "unknown theme": (
        [{**without("theme"), "skeleton_id": "zoo_1"}],
        ":1: field 'theme' is missing and the id 'zoo_1'",
    ),
    "steered texts only": (
        [{**without("event"), "event_valences": {"positive": {"anger": "text"}}}],
        ":1: these are steered outputs without their events",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_schema_errors_name_file_and_line(case, tmp_path):
    rows, message = BROKEN[case]
    with pytest.raises(EmotraceError, match=rf"f\.jsonl{message}"):
        read_sev(write(tmp_path / "f.jsonl", rows))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(EmotraceError, match=r"absent\.jsonl: no such file"):
        read_sev(tmp_path / "absent.jsonl")
    with pytest.raises(EmotraceError, match="is a directory"):
        read_sev(tmp_path)
    with pytest.raises(EmotraceError, match="has no rows"):
        read_sev(write(tmp_path / "empty.jsonl", [""]))
    (tmp_path / "latin.jsonl").write_bytes('{"scenario": "é"}'.encode("latin-1"))
    with pytest.raises(EmotraceError, match="not UTF-8"):
        read_sev(tmp_path / "latin.jsonl")


TWO = [*WHOLE, Skeleton("a/b_01", "My own", "I left", {"positive": "Good.", "negative": "Bad."})]


def test_prompts_with_and_without_the_instruction():
    asked, plain = sev(TWO), sev(TWO, instruction=False)
    assert (len(asked), len(plain)) == (5 * 6, 5)
    assert asked.keys[:2] == ("work_00__positive__anger", "work_00__positive__sadness")
    assert asked.keys[-1] == "a_b_01__negative__disgust"
    assert plain.keys[:4] == ("work_00__positive", "work_00__neutral", "work_00__negative", "a_b_01__positive")
    assert asked.label_names == ("skeleton_id", "theme", "valence", "emotion", "scenario", "event")
    assert "emotion" not in plain.label_names
    assert [dict(m) for m in asked[0].messages or ()] == [
        {"role": "system", "content": "Always reply in anger.\nKeep the reply to at most two sentences."},
        {"role": "user", "content": "I began a task\nIt went well."},
    ]
    assert dict((plain[0].messages or ())[0]) == {
        "role": "system",
        "content": "Keep the reply to at most two sentences.",
    }
    aimed = plain.for_each(emotion=EMOTIONS)
    assert aimed.keys == asked.keys
    assert [dict(p.labels) for p in aimed] == [dict(p.labels) for p in asked]


def test_choices_of_emotions_and_valences():
    few = sev(TWO, emotions=["joy", "fear"], valences=["negative"])
    assert few.keys == tuple(f"{s}__negative__{e}" for s in ("work_00", "a_b_01") for e in ("happiness", "fear"))
    assert len(sev(TWO, limit=1)) == 18
    own = sev(TWO, emotions=["Stolz", "envy"], valences=["negative"])
    assert {p.labels["emotion"] for p in own} == {"Stolz", "envy"}
    assert "Always reply in Stolz." in own[0].messages[0]["content"]
    for wrong, message in (
        ({"emotions": ["angry"]}, "unknown emotion 'angry'.*Did you mean 'anger'"),
        ({"emotions": "anger"}, "a list of names"),
        ({"emotions": []}, "at least one"),
        ({"emotions": ["fear", "fear"]}, "each once"),
        ({"valences": ["good"]}, "unknown valence 'good'"),
        ({"limit": -1}, "limit=-1"),
    ):
        with pytest.raises(EmotraceError, match=message):
            sev(TWO, **wrong)


def test_published_files(oracles):
    data = read_sev(oracles.path("emotion_circuits/sev.jsonl"))
    assert len(data) == 160
    assert all(set(s.events) == set(VALENCES) for s in data)
    themes = [s.theme for s in data]
    assert {themes.count(t) for t in themes} == {20}
    accepted = oracles.path("emotion_circuits/labeled_sev/accepted.jsonl")
    again = {s.skeleton_id: s for s in read_sev(accepted)}
    assert len(again) == 160
    for s in data:
        other = again[s.skeleton_id]
        assert (other.theme, other.scenario) == (s.theme, s.scenario)
        assert other.events.items() <= s.events.items()
    keys = {row["key"] for _, row in read_jsonl(accepted)}
    assert len(keys) == 2847
    assert keys < set(sev(data).keys)
