"""Chat through a pipe, and the suite from file to file."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import emotrace as et
from emotrace.cli import app, mixes
from emotrace.datasets import read_jsonl
from emotrace.interop import write_emotion_vectors
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.cli.forked import Forked
from tests.cli.inner import refused
from tests.suite.test_paired import vectors
from tests.suite.test_truthful import FILE
from tests.test_cli import run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    tiny.save("llama", folder / "model")
    et.directions.save(vectors(), folder / "vectors")
    (folder / "queries.json").write_text(
        json.dumps({"anger": ["Who took it?", "Why late?"], "joy": ["You won?", "A cake?"]})
    )
    return folder


def talked(folder, said, *more):
    args = ["chat", str(folder / "model"), "--vectors", str(folder / "vectors"), "--max-new-tokens", "5", *more]
    result = CliRunner().invoke(app, args, input=said)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_chat_changes_the_mixture_between_turns(place):
    said = "Hello\n/mix anger=0.5,joy=-1\nHello\n/strength 0\n/mix none\n/mix\n/help\n/reset\n/quit\nnever read\n"
    lines = talked(place, said, "--mix", "joy=1", "--strength", "3")
    assert lines[0].endswith("joy=1 ×3. /help for commands.")
    assert lines[1].startswith("joy=1 ×3: ")
    assert lines[2] == "anger=0.5,joy=-1 ×3"
    assert lines[3].startswith("anger=0.5,joy=-1 ×3: ")
    assert lines[4:7] == ["base"] * 3
    assert sum(line.startswith("/") for line in lines[1:]) == 7
    assert lines[-1] == "forgotten"


def test_chat_shows_both_side_by_side_and_survives_mistakes(place):
    lines = talked(
        place, "/side on\nHello\n/side maybe\n/mix boredom=1\n/strength x\n/nope\n", "--mix", "joy=1", "--sample"
    )
    assert lines[1] == "side by side: on"
    assert lines[2].startswith("base: ")
    assert lines[3].startswith("joy=1: ")
    errors = lines[4:]
    assert len(errors) == 4
    assert all(line.startswith("error: ") for line in errors)


def test_chat_in_a_real_pipe(place, tmp_path):
    more = ["--mix", "joy=1", "--max-new-tokens", "3"]
    status, said, error = Forked(
        tmp_path, "chat", place / "model", "--vectors", place / "vectors", *more, said="Hi\n"
    ).end()
    assert status == 0, error
    assert said.splitlines()[1].startswith("joy=1: ")


def test_vectors_are_found_where_emotrace_and_the_authors_put_them(place, tmp_path):
    whole = vectors().isel(layer=[0, 0, 1]).assign_coords(layer=[0, 1, 2])
    write_emotion_vectors(whole, tmp_path / "ev", "tiny")
    np.testing.assert_array_equal(mixes.vectors_of(tmp_path / "ev").sel(emotion=whole["emotion"].values), whole)
    et.directions.save(vectors(), tmp_path / "made" / "vectors")
    np.testing.assert_array_equal(mixes.vectors_of(tmp_path / "made"), vectors())
    with pytest.raises(EmotraceError, match="no folder"):
        mixes.vectors_of(tmp_path / "absent")
    et.directions.save(vectors().sel(emotion="joy", drop=True), tmp_path / "one")
    with pytest.raises(EmotraceError, match="emotion and layer"):
        mixes.vectors_of(tmp_path / "one")


def test_from_queries_to_a_table(place):
    common = ("--model", place / "model", "--vectors", place / "vectors")
    args = (
        *common,
        "--queries",
        place / "queries.json",
        "--part",
        "all",
        "--mix",
        "joy=1",
        "--draws",
        2,
        "--max-new-tokens",
        5,
    )
    said = run("arms", *args, "--strength", 3, "--out", place / "arms")
    assert said.startswith("24 replies")
    said = run("evaluate", place / "arms" / "rows.jsonl", "--model", place / "model", "--out", place / "eval")
    table = pd.read_csv(place / "eval" / "summary.csv")
    assert set(table["method"]) == {"none", "steer", "random", "wrong_emotion"}
    assert {"perplexity", "topic", "intensity", "on_target", "distinct_2", "lexicon_fear"} <= set(table["measure"])
    words = table[(table["measure"] == "words") & (table["emotion"] == "all")].set_index("method")
    rows = [row for _, row in read_jsonl(place / "eval" / "measured.jsonl")]
    for method in words.index:
        counts = [len(row["gen_text"].split()) for row in rows if row["method"] == method]
        assert words.loc[method, "value"] == pytest.approx(np.mean(counts))
    signed = json.loads((place / "eval" / "evaluation.json").read_text())["signed"]
    assert signed["topic"] == "proxy:content-words"
    assert "wrong_emotion" in said.splitlines()[0]


def test_truthfulqa_plain_and_steered(place):
    args = ("--model", place / "model", "--data", FILE, "--limit", 3, "--substring")
    said = run("truthfulqa", *args, "--vectors", place / "vectors", "--mix", "joy=1", "--out", place / "tqa")
    assert "plumbing" in said.splitlines()[-1]
    found = json.loads((place / "tqa" / "summary.json").read_text())
    assert set(found) >= {"none", "steer", "note"}
    assert found["steer"]["mc1"]["n"] == 3
    assert len(list(read_jsonl(place / "tqa" / "rows.jsonl"))) == 6


def test_mistakes_are_one_line(place, monkeypatch, capsys, tmp_path):
    common = ("--model", place / "model", "--data", FILE, "--out", tmp_path / "x")
    assert "belong together" in refused(monkeypatch, capsys, "truthfulqa", *common, "--mix", "joy=1")
    args = ("evaluate", place / "none.jsonl", "--out", tmp_path / "x")
    assert "none.jsonl" in refused(monkeypatch, capsys, *args)
    chat = ("chat", place / "model", "--vectors", place / "vectors", "--scale", "huge")
    assert "unknown scale" in refused(monkeypatch, capsys, *chat)


def test_rows_of_own_labels_are_refused_before_a_model_is_loaded_and_the_flag_is_named(monkeypatch, capsys, tmp_path):
    row = {"key": "a", "method": "none", "gen_text": "Ein Satz.", "token_ids": [1], "emotion": "Freude"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row))
    args = ("evaluate", rows, "--model", tmp_path / "no_model", "--judge", "none", "--out", tmp_path / "x")
    assert "--topic none" in refused(monkeypatch, capsys, *args)
    assert "--intensity none" in refused(monkeypatch, capsys, *args, "--topic", "none")
    assert "no_model" in refused(monkeypatch, capsys, *args, "--topic", "none", "--intensity", "none")
