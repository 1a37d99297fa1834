"""Example data, the tiny model and the studies are found from any folder; what lies here comes first."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import emotrace as et
from emotrace import cli, shipped
from emotrace.datasets import read_sev
from emotrace.identity import identity
from emotrace.judges import LexiconJudge, measured

ROOT = Path(__file__).parents[1]


def test_from_an_empty_folder_the_examples_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find("data/sev.jsonl") == ROOT / "data" / "sev.jsonl"
    assert shipped.find("tiny") == ROOT / "data" / "tiny_model"
    assert len(read_sev("data/test_set.jsonl")) == 160
    assert len(et.datasets.sev("data/sev.jsonl", limit=1)) == 18


@pytest.mark.parametrize(
    "name", ["data/sevv.jsonl", "other/sev.jsonl", "data", "sev.jsonl", "data/tiny_model/config.json", "Tiny"]
)
def test_no_other_path_is_taken_for_an_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find(name) == Path(name)
    with pytest.raises(et.EmotraceError, match=r"no such file|is a directory"):
        read_sev(name)


def test_what_lies_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sev.jsonl").write_text("{}")
    (tmp_path / "tiny").mkdir()
    assert shipped.find("data/sev.jsonl") == Path("data/sev.jsonl")
    assert shipped.find("tiny") == Path("tiny")


def test_a_wheel_keeps_them_inside_the_package(tmp_path, monkeypatch):
    inside = tmp_path / "shipped_files"
    (inside / "data").mkdir(parents=True)
    (inside / "data" / "mine.csv").write_text("text\nHello\n")
    monkeypatch.setattr(shipped, "_INSIDE", inside)
    monkeypatch.chdir(tmp_path)
    assert shipped.find("data/mine.csv") == inside / "data" / "mine.csv"
    assert shipped.find("data/sev.jsonl") == Path("data/sev.jsonl")


@pytest.mark.parametrize("dtype", shipped.WEIGHTS)
def test_the_shipped_model_is_known_by_its_weights_under_any_name(dtype):
    module = AutoModelForCausalLM.from_pretrained(ROOT / "data" / "tiny_model", dtype=dtype)
    known = identity(module, "someone/renamed", None)
    assert known["weights_hash"] == shipped.WEIGHTS[dtype]
    assert shipped.is_shipped(known)
    judge = LexiconJudge()
    assert measured.doubt(judge, known) == ""
    with torch.no_grad():
        module.lm_head.weight[0, 0] += 1
    other = identity(module, str(ROOT / "data" / "tiny_model"), None)  # of its name, with other weights
    assert other["model_id"] == "tiny_model"
    assert not shipped.is_shipped(other)
    assert measured.doubt(judge, other) == measured.standing(judge).why
    assert measured.warning(judge, other).startswith("WARNING")


def test_every_study_is_listed_with_its_first_line():
    said = CliRunner().invoke(cli.app, ["run"]).output
    named = {line.split()[0] for line in said.splitlines()}
    assert named == set(shipped.studies())
    assert {
        "emotion-circuits",
        "emotion-vectors",
        "goemotions-steering",
        "emotion-knowledge",
        "circuit-discovery",
    } <= named
    assert "Emotion circuits: find where a model computes emotion" in said
    assert not named & {"circuit-study", "house-figures", "train-tiny-model"}


def test_a_study_runs_with_its_own_flags(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "beside.py").write_text("VALUE = 7\n")
    (tmp_path / "experiments" / "a_study.py").write_text(
        '"""A study."""\nfrom pathlib import Path\nimport beside\nimport emotrace as et\n'
        "def main(*, model: str = 'tiny', out: Path = Path('no'), n: int = 1) -> None:\n"
        "    out.write_text(f'{model} {n + beside.VALUE}')\n"
        "if __name__ == '__main__':\n    et.cli.experiment(main)\n"
    )
    monkeypatch.setattr(shipped, "_INSIDE", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    result = CliRunner().invoke(cli.app, ["run", "a_study", "--n", "4", "--out", str(tmp_path / "out.txt")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.txt").read_text() == "tiny 11"


def test_an_unknown_study_is_refused_with_the_choices():
    with pytest.raises(et.EmotraceError, match="Did you mean 'emotion-circuits'"):
        CliRunner().invoke(cli.app, ["run", "emotion-circuitz"], catch_exceptions=False)
