"""The judge that a --judge flag names."""

from pathlib import Path
from typing import Any

import pytest

from emotrace import judges
from emotrace.judges import making
from emotrace.judges.base import Judge, TargetJudge
from emotrace.judges.lexicon import LexiconJudge
from emotrace.labels import ANSWERS, EmotraceError


def test_lexicon(capsys: pytest.CaptureFixture[str]) -> None:
    judge = judges.make("lexicon")
    assert isinstance(judge, Judge)
    assert not isinstance(judge, TargetJudge)
    assert type(judge) is LexiconJudge
    assert judge.choices == ANSWERS
    texts = ["How dare you waste my time!", "The meeting starts at three in the main hall."]
    verdicts = judge.judge(texts, progress=True)
    assert [v["predicted"] for v in verdicts] == ["anger", "neutral"]
    assert {v["judge"] for v in verdicts} == {judge.name}
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "model"), [("openai", "gpt-4o-mini"), ("openai:llama3", "llama3"), ("openai:ft:gpt-4o:me", "ft:gpt-4o:me")]
)
def test_openai(monkeypatch: pytest.MonkeyPatch, spec: str, model: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    judge: Any = judges.make(spec, concurrency=2)
    assert (judge.model, judge.name, judge.concurrency) == (model, f"openai:{model}", 2)
    judge.close()
    assert isinstance(judge, TargetJudge)


@pytest.mark.parametrize("key", [None, "", "  "])
def test_a_missing_key_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    if key is None:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    else:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EmotraceError, match="OPENAI_API_KEY"):
        judges.make("openai:gpt-4o")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("lexicn", {}, r"unknown judge 'lexicn' in --judge. Did you mean 'lexicon'\? Choices: lexicon, fitted:FOLDER"),
        ("", {}, "unknown judge ''"),
        ("lexicon:v2", {}, "lexicon takes nothing after it"),
        ("classifier", {}, "name a model id or directory"),
        ("classifier:", {}, "name a model id or directory"),
        ("classifier:./missing", {}, "no directory './missing'"),
        ("lexicon", {"seed": 1}, "unknown option 'seed' in the judge 'lexicon'"),
        ("openai", {"prices": (1, 2)}, "unknown option 'prices' .*Did you mean 'price'"),
    ],
)  # fmt: skip
def test_bad_specs(spec: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(EmotraceError, match=message):
        judges.make(spec, **options)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmotraceError, match="no directory"):
        judges.make(f"classifier:{tmp_path / 'gone'}")


def test_command_line_flags_become_options() -> None:
    assert judges.flags() == {}
    assert judges.flags("LABEL_0=anger, LABEL_1=none", "0.15,0.6") == {
        "label_map": {"LABEL_0": "anger", "LABEL_1": None},
        "price": (0.15, 0.6),
    }


class _Named:
    """A judge that calls its place in ``prefix:PLACE`` by a name of its own."""

    def __init__(self, checkpoint: str, *, strict: bool = False) -> None:
        self.name, self.strict = f"named:{checkpoint}", strict

    def judge(self, texts: list[str], *, progress: bool = False) -> list[Any]:
        return [{"predicted": None, "judge": self.name, "reason": ""} for _ in texts]


def test_what_stands_behind_the_colon_is_no_option() -> None:
    built = making._build(_Named, "named:x", ("x",), {"strict": True})
    assert (built.name, getattr(built, "strict", None)) == ("named:x", True)
    with pytest.raises(EmotraceError, match=r"unknown option 'checkpoint' in the judge 'named:x'. Choices: strict"):
        making._build(_Named, "named:x", ("x",), {"checkpoint": "y"})


@pytest.mark.parametrize("label_map", ["", "LABEL_0", "LABEL_0=", "=anger"])
def test_a_label_map_of_another_form_is_refused(label_map: str) -> None:
    with pytest.raises(EmotraceError, match="LABEL=EMOTION"):
        judges.flags(label_map)


def test_a_price_of_another_form_is_refused() -> None:
    with pytest.raises(EmotraceError, match="two numbers"):
        judges.flags(None, "0.15")
