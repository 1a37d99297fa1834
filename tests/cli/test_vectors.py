"""`emotrace vectors`: the folder holds what extraction makes, and the commands after it read it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import emotrace as et
from emotrace import directions, extraction
from emotrace.cli import app, mixes
from emotrace.testing import tiny
from tests.cli.inner import refused
from tests.test_cli import run
from tests.test_extraction import TEXTS

TEMPLATES = {"neutral": "", "emotional": "Be {emotion}."}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tiny.save("llama", folder / "model")
    (folder / "queries.json").write_text(
        json.dumps({"fear": ["Who?", "Why?", "Dark?"], "joy": ["Won?", "Cake?", "Sun?"]})
    )
    rows = [{"id": p.key, "text": p.text, "labels": [p.labels["emotion"]]} for p in TEXTS]
    (folder / "texts.json").write_text(json.dumps(rows))
    return folder


def test_vectors_of_queries_are_those_of_python_and_chat_speaks_with_them(place):
    out = place / "answers"
    args = ("--model", place / "model", "--queries", place / "queries.json", "--max-new-tokens", 3, "--layers", "0,2")
    said = run("vectors", *args, "--neutral", "", "--emotional", "Be {emotion}.", "--out", out)
    assert "fear (2), joy (2) pairs of answers at o_proj_out" in said
    queries = et.datasets.emotion_query(place / "queries.json")
    wanted = extraction.answer_vectors(
        et.load(place / "model"),
        queries,
        templates=TEMPLATES,
        decoding={"max_new_tokens": 3},
        layers=[0, 2],
        progress=False,
    )
    found = mixes.vectors_of(out)
    np.testing.assert_array_equal(found.values, wanted.values)
    assert found["layer"].values.tolist() == [0, 2]
    np.testing.assert_allclose(directions.load(out, "base").values, wanted.mean("emotion").values, atol=1e-6)
    chat = ["chat", str(place / "model"), "--vectors", str(out), "--mix", "joy=1", "--max-new-tokens", "3"]
    result = CliRunner().invoke(app, chat, input="Hello\n")
    assert result.stdout.splitlines()[1].startswith("joy=1: ")


def test_arms_take_shuffled_labels_from_the_same_folder(place):
    args = (
        "--model",
        place / "model",
        "--queries",
        place / "queries.json",
        "--vectors",
        place / "answers",
        "--part",
        "all",
    )
    options = ("--controls", "shuffled", "--draws", 1, "--mix", "joy=1", "--max-new-tokens", 3)
    assert run("arms", *args, *options, "--out", place / "arms").startswith("18 replies")
    rows = [row for _, row in et.datasets.read_jsonl(place / "arms" / "rows.jsonl")]
    assert {row["method"] for row in rows} == {"none", "steer", "shuffled"}


def test_vectors_of_texts_keep_what_is_asked_for(place):
    args = ("--model", place / "model", "--texts", place / "texts.json", "--keep", 3, "--rank", "d")
    said = run("vectors", *args, "--emotions", "anger,fear", "--without-base", "--out", place / "texts")
    assert said.count("AUROC") == 2
    assert "texts at resid_post" in said
    made = extraction.text_vectors(et.load(place / "model"), TEXTS, progress=False)
    left = directions.orthogonal_to(made.vectors, directions.base_vector(made.vectors))
    wanted = directions.top_k(left, 3, made.statistics["d"])
    found = mixes.vectors_of(place / "texts")
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-6)
    assert ((found.values != 0).sum(-1) == 3).all()
    assert "top 3 by d" in found.attrs["selected"]


def test_a_dry_run_writes_nothing(place):
    args = ("--model", place / "model", "--texts", place / "texts.json", "--out", place / "dry", "--dry-run")
    assert "20" in run("vectors", *args)
    assert not (place / "dry").exists()


BAD = {
    "neither": ((), "not both"),
    "both": (("--queries", "@queries.json", "--texts", "@texts.json"), "not both"),
    "mean": (("--queries", "@queries.json", "--over", "mean"), "unknown mean 'mean' in --over"),
    "method": (("--texts", "@texts.json", "--method", "pcs"), "Did you mean 'pca'"),
    "d of answers": (("--queries", "@queries.json", "--rank", "d", "--keep", 3), "answers have no d"),
    "template": (("--queries", "@queries.json", "--emotional", "Be sad."), "has no {emotion}"),
    "one emotion": (
        ("--queries", "@queries.json", "--emotions", "joy", "--without-base"),
        "two or more emotions, not joy",
    ),
    "emotion": (("--queries", "@queries.json", "--emotions", "glee"), "unknown emotion 'glee'"),
    "site": (("--texts", "@texts.json", "--site", "logits"), "unknown site with layers 'logits'"),
    "width": (("--texts", "@texts.json", "--keep", 33), "32 coordinates"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line(place, monkeypatch, capsys, tmp_path, case):
    given, message = BAD[case]
    args = [str(a).replace("@", f"{place}/") for a in given]
    line = refused(monkeypatch, capsys, "vectors", "--model", place / "model", "--out", tmp_path / "x", *args)
    assert message in line
