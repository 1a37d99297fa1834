"""A continued file of replies holds what a fresh run would, or is refused by the row and what differs."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import emotrace as et
from emotrace.judges import LexiconJudge
from emotrace.labels import EmotraceError
from tests.helpers import loaded

IDS = [list(range(10 + 7 * i, 10 + 7 * i + n)) for i, n in enumerate((4, 9, 6, 4))]
PROMPTS = [
    {"key": k, "token_ids": ids, "emotion": e} for k, ids, e in zip("abcd", IDS, ("fear", "joy") * 2, strict=True)
]
SAMPLED = {"do_sample": True, "temperature": 2.0, "seed": 3}


def run(prompts, out=None, lm=None, **options):
    return et.generate(
        lm or loaded(), prompts, out=out, **{"max_new_tokens": 3, "batch_size": 2, "progress": False, **options}
    )


def changed(key, **fields):
    return [{**p, **(fields if p["key"] == key else {})} for p in PROMPTS]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (changed("c", token_ids=IDS[0]), {}, r"row 'c' \(none\) .*prompt: '\w{16}' there, '\w{16}' now"),
        (changed("c", emotion="joy"), {}, r"row 'c' .*labels\.emotion: 'fear' there, 'joy' now"),
        (changed("c", theme="work"), {}, r"row 'c' .*labels\.theme: '\(nothing\)' there, 'work' now"),
        (PROMPTS, {"max_new_tokens": 4}, r"decoding\.max_new_tokens: 3 there, 4 now"),
        (PROMPTS, {"lm": 1}, "model: .*weights: "),
        (
            PROMPTS,
            {"edits": [et.Scale("resid_post", layers=[0], strength=0.5)], "method": "none"},
            "edits: 'none' there",
        ),
    ],
)
def test_rows_of_other_prompts_settings_or_models_are_refused(tmp_path, prompts, options, message):
    out = tmp_path / "rows.jsonl"
    run(PROMPTS, out)
    before = out.read_bytes()
    lm = loaded(seed=options.pop("lm")) if "lm" in options else loaded()
    with pytest.raises(EmotraceError, match=rf"rows\.jsonl: .*{message}"):
        run(prompts, out, lm, **options)
    assert out.read_bytes() == before


def test_a_judged_file_is_continued_as_it_is(tmp_path):
    out = tmp_path / "rows.jsonl"
    judged = et.judges.judge_rows(run(PROMPTS[:2], out), LexiconJudge(), progress=False)
    for row in judged:
        row["ratings"], row["measures"], row["substring"] = {"calm": {"value": 1}}, {"length": 2.0}, 1
    out.write_text("".join(json.dumps(row) + "\n" for row in judged))
    rows = run(PROMPTS, out)
    assert [row["verdict"] for row in rows[:2]] == [row["verdict"] for row in judged]
    assert [row["key"] for row in rows] == list("abcd")


def test_rows_without_a_record_are_refused_only_where_they_are_wanted(tmp_path):
    out = tmp_path / "rows.jsonl"
    rows = run(PROMPTS[:2], out)
    for row in rows:
        del row["meta"]["made"]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(EmotraceError, match=r"row '[ab]' \(none\) was written by an earlier version"):
        run(PROMPTS, out)
    assert [r["key"] for r in run(PROMPTS[2:], out)] == ["c", "d"]


@pytest.mark.parametrize(
    "change", [{"gen_text": "So angry!"}, {"token_ids": [5, 6, 7]}, {"token_ids": None}, {"token_ids": "5"}]
)
def test_rows_that_somebody_edited_are_refused(tmp_path, change):
    out = tmp_path / "rows.jsonl"
    rows = run(PROMPTS, out)
    out.write_text("".join(json.dumps(row | (change if row["key"] == "b" else {})) + "\n" for row in rows))
    with pytest.raises(EmotraceError, match=r"row 'b' \(none\) was changed after it was written: its gen_text"):
        run(PROMPTS, out)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows if row["key"] != "b"))
    assert run(PROMPTS, out) == rows


def test_sampled_rows_of_another_batch_are_refused(tmp_path):
    out = tmp_path / "rows.jsonl"
    run(PROMPTS[:2], out, **SAMPLED)
    with pytest.raises(EmotraceError, match=r"row '[ab]' .*batch: '\w{16}' there"):
        run(PROMPTS, out, **SAMPLED)
    with pytest.raises(EmotraceError, match=r"row '[ab]' .*batch: "):
        run(PROMPTS[:2], out, batch_size=1, **SAMPLED)
    greedy = tmp_path / "greedy.jsonl"
    run(PROMPTS[:2], greedy, batch_size=1)
    assert run(PROMPTS, greedy) == run(PROMPTS)  # without sampling a reply does not depend on its batch


def test_labels_that_edits_gather_by_are_part_of_a_row(tmp_path):
    table = xr.DataArray(np.eye(2, 32) * 9, dims=("emotion", "dim"), coords={"emotion": ["fear", "joy"]})
    edits = [et.Add("resid_post", layers=[1], vector=table.astype("float32"))]
    out = tmp_path / "rows.jsonl"
    run(PROMPTS, out, edits=edits)
    with pytest.raises(EmotraceError, match=r"row 'a' .*labels\.emotion"):
        run(changed("a", emotion="joy"), out, edits=edits)


def test_a_label_never_takes_the_place_of_a_field():
    row = run([{**PROMPTS[0], "method": "steer", "draw": 7, "gen_text": "no"}])[0]
    assert (row["method"], row["draw"]) == ("none", 0)
    assert row["gen_text"] != "no"


@cache
def fresh(sampled):
    with TemporaryDirectory() as folder:
        rows = run(PROMPTS, Path(folder, "rows"), **(SAMPLED if sampled else {}))
        return rows, Path(folder, "rows").read_bytes().splitlines(keepends=True)


@settings(max_examples=6, deadline=None)
@given(st.sets(st.sampled_from("abcd"), max_size=3), st.booleans(), st.integers(0, 60))
def test_after_any_subset_of_rows_the_file_ends_as_a_fresh_one(kept, sampled, cut):
    rows, lines = fresh(sampled)
    with TemporaryDirectory() as folder:
        part = Path(folder, "part.jsonl")
        chosen = [line for line in lines if json.loads(line)["key"] in kept]
        part.write_bytes(b"".join(chosen) + lines[0][:cut])  # killed in the middle of a line
        assert run(PROMPTS, part, **(SAMPLED if sampled else {})) == rows
        assert sorted(part.read_bytes().splitlines(keepends=True)) == sorted(lines)
