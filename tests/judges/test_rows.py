"""Judged rows: order, sharing of identical texts, commits, resume, refusals."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emotrace.judges import make
from emotrace.judges import rows as room
from emotrace.judges.base import Verdict
from emotrace.judges.openai_compatible import OpenAIJudge
from emotrace.judges.rows import judge_rows
from emotrace.labels import EmotraceError
from emotrace.runlog import Log
from emotrace.testing import openai_server as srv

Row = dict[str, Any]


class FirstWord:
    """A judge that answers with the first word, and remembers what it was asked; ``?`` is unjudged."""

    def __init__(self, name: str = "first-word", fail_at: str | None = None) -> None:
        self.name, self.fail_at, self.asked = name, fail_at, list[str]()

    def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
        out: list[Verdict] = []
        for text in texts:
            if text == self.fail_at:
                raise EmotraceError("no more")
            self.asked.append(text)
            word = text.split()[0]
            reason = "endpoint: away" if word == "away" else "said so"
            out.append({"predicted": None if word in ("?", "away") else word, "judge": self.name, "reason": reason})
        return out


class Streaming(FirstWord):
    def iter_judge(self, texts: Sequence[str], *, progress: bool = False) -> Iterator[Verdict]:
        for text in texts:
            yield from self.judge([text])


class Memory:
    """The part of a log that judge_rows uses."""

    named_by = ("key", "method", "draw")

    def __init__(self) -> None:
        self.held: list[Row] = []
        self.commits = 0

    def rows(self) -> list[Row]:
        return self.held

    def append(self, rows: Sequence[Row]) -> None:
        self.held.extend(dict(row) for row in rows)
        self.commits += 1


def reply(key: str, text: str, emotion: str = "anger", method: str = "prompt", draw: int = 0) -> Row:
    return {"key": key, "method": method, "draw": draw, "emotion": emotion, "gen_text": text}


ROWS = [
    reply("a", "anger one"),
    reply("b", "fear two", "fear"),
    reply("c", "? three"),
    reply("d", "fear four"),
    reply("e", "happiness five", "joy"),
]


def test_verdicts_in_order_and_rows_untouched() -> None:
    before = [dict(row) for row in ROWS]
    judged = judge_rows(ROWS, FirstWord(), progress=False)
    assert before == ROWS
    assert [row["key"] for row in judged] == list("abcde")
    assert [row["verdict"]["match"] for row in judged] == [1, 1, None, 0, 1]
    assert judged[3]["verdict"] == {"predicted": "fear", "match": 0, "judge": "first-word", "reason": "said so"}
    assert "verdict_target" not in judged[0]
    assert judge_rows([], FirstWord(), progress=False) == []


@pytest.mark.parametrize("kind", [FirstWord, Streaming])
def test_identical_texts_are_judged_once(kind: Callable[[], FirstWord]) -> None:
    judge = kind()
    rows = [reply(str(i), f"fear {i % 5}", "fear" if i % 2 else "anger") for i in range(200)]
    judged = judge_rows(rows, judge, progress=False)
    assert judge.asked == [f"fear {i}" for i in range(5)]
    assert [row["verdict"]["match"] for row in judged] == [0, 1] * 100
    assert judged[0]["verdict"] is not judged[5]["verdict"]


@pytest.mark.parametrize("kind", [FirstWord, Streaming])
def test_resume_judges_only_what_is_missing(kind: Callable[..., FirstWord]) -> None:
    rows = [reply(str(i), f"anger {i}") for i in range(150)]
    whole = judge_rows(rows, kind(), progress=False)
    log = Memory()
    with pytest.raises(EmotraceError, match="no more"):
        judge_rows(rows, kind(fail_at="anger 100"), log, progress=False)
    done = len(log.held)
    assert done == (100 if kind is Streaming else room.CHUNK)
    assert log.held == whole[:done]
    second = kind()
    assert judge_rows(rows, second, log, progress=False) == whole
    assert second.asked == [f"anger {i}" for i in range(done, 150)]
    assert log.held == whole
    third = kind()
    commits = log.commits
    assert judge_rows(rows, third, log, progress=False) == whole
    assert (third.asked, log.commits) == ([], commits)


def test_rows_are_committed_as_they_arrive() -> None:
    log = Memory()
    judge_rows([reply(str(i), f"anger {i}") for i in range(3 * room.COMMIT + 1)], Streaming(), log, progress=False)
    assert log.commits == 4


def test_a_row_is_named_by_key_method_and_draw() -> None:
    log = Memory()
    rows = [reply("a", "anger 1"), reply("a", "anger 2", method="steer"), reply("a", "anger 3", draw=1)]
    judge_rows(rows[:1], FirstWord(), log, progress=False)
    judge = FirstWord()
    judge_rows(rows, judge, log, progress=False)
    assert judge.asked == ["anger 2", "anger 3"]


def test_a_run_log_resumes_and_names_rows_without_a_name_first(tmp_path: Path) -> None:
    path, judge = tmp_path / "judged.jsonl", FirstWord()
    with Log(path) as log:
        judge_rows(ROWS[:3], judge, log, progress=False)
    with Log(path) as log:
        judged = judge_rows(ROWS, judge, log, progress=False)
        assert log.rows() == judged
        with pytest.raises(EmotraceError, match="method"):
            judge_rows([{"key": "z", "emotion": "fear", "gen_text": "fear new"}], judge, log, progress=False)
    assert judge.asked == [row["gen_text"] for row in ROWS]


def test_a_failure_on_the_way_is_returned_but_not_committed() -> None:
    log = Memory()
    rows = [reply("a", "away now"), reply("b", "? unclear"), reply("c", "anger")]
    judged = judge_rows(rows, FirstWord(), log, progress=False)
    assert [row["verdict"]["match"] for row in judged] == [None, None, 1]
    assert [row["key"] for row in log.held] == ["b", "c"]
    again = FirstWord()
    judge_rows(rows, again, log, progress=False)
    assert again.asked == ["away now"]


@pytest.mark.parametrize(
    ("change", "judge", "target", "message"),
    [
        ({"gen_text": "other"}, "first-word", False, r"row {'key': 'b', .*\(text: '\w{16}' there, '\w{16}' now\)"),
        ({"emotion": "sadness"}, "first-word", False, r"row {'key': 'b', .*emotion: 'fear' there, 'sadness' now"),
        ({}, "second", False, "judge: 'first-word' there, 'second' now"),
    ],
)
def test_a_log_of_other_verdicts_is_refused(change: Row, judge: str, target: bool, message: str) -> None:
    log = Memory()
    judge_rows(ROWS, FirstWord(), log, progress=False)
    asked = FirstWord(judge)
    with pytest.raises(EmotraceError, match=message):
        judge_rows([*ROWS[:1], {**ROWS[1], **change}], asked, log, target, progress=False)
    assert asked.asked == []


def test_a_verdict_belongs_to_the_settings_of_its_judge_and_rows_are_those_of_now() -> None:
    class Set(FirstWord):
        temperature = 0.0

        @property
        def depends_on(self) -> Row:
            return {"temperature": self.temperature}

    log, judge = Memory(), Set()
    judge_rows(ROWS, judge, log, progress=False)
    now = [{**row, "theme": "work", "meta": {"made": {"prompt": "p"}}} for row in ROWS]
    again = judge_rows(now, judge, log, progress=False)
    assert [row["theme"] for row in again] == ["work"] * 5
    assert [row["meta"]["made"]["prompt"] for row in again] == ["p"] * 5
    assert len(judge.asked) == 5
    judge.temperature = 1.0
    with pytest.raises(EmotraceError, match=r"row {'key': 'a', .*judge_settings: '\w{16}' there"):
        judge_rows(ROWS, judge, log, progress=False)
    for row in log.held:
        del row["meta"]["made"]["verdict"]
    with pytest.raises(EmotraceError, match=r"row {'key': 'a', .*was written by an earlier version"):
        judge_rows(ROWS, judge, log, progress=False)


def test_without_depends_on_the_code_of_a_judge_stands_for_it(tmp_path: Path) -> None:
    class Other(FirstWord):
        def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
            return [{"predicted": "fear", "judge": self.name, "reason": "always"} for _ in texts]

    log = Memory()
    judge_rows(ROWS[:2], FirstWord(), log, progress=False)
    judge_rows(ROWS[:2], FirstWord(), log, progress=False)
    with pytest.raises(EmotraceError, match=r"row {'key': 'a', .*judge_settings: '\w{16}' there, '\w{16}' now"):
        judge_rows(ROWS[:2], Other(), log, progress=False)


def test_a_judge_that_may_be_any_judges_but_continues_nothing() -> None:
    unread = SimpleNamespace(name="first-word", judge=FirstWord().judge)
    judged = judge_rows(ROWS, unread, progress=False)
    assert [row["verdict"] for row in judged] == [
        row["verdict"] for row in judge_rows(ROWS, FirstWord(), progress=False)
    ]
    log = Memory()
    judge_rows(ROWS[:2], unread, log, progress=False)
    with pytest.raises(
        EmotraceError, match=r"row {'key': 'a', .*'first-word' has no 'depends_on', nor can its code be read"
    ):
        judge_rows(ROWS, unread, log, progress=False)
    known = SimpleNamespace(**vars(unread), depends_on={"word": 1})
    kept = Memory()
    judge_rows(ROWS[:2], known, kept, progress=False)
    assert len(judge_rows(ROWS, known, kept, progress=False)) == len(ROWS)


def test_a_log_of_unjudged_rows_is_refused() -> None:
    log = Memory()
    log.append(ROWS)
    with pytest.raises(EmotraceError, match="without a verdict: judged rows need a log of their own"):
        judge_rows(ROWS, FirstWord(), log, progress=False)
    with pytest.raises(EmotraceError, match="row 1: a second row with"):
        judge_rows([ROWS[0], ROWS[0]], FirstWord(), Memory(), progress=False)


def test_emotions_of_ones_own_are_judged_by_a_judge_of_ones_own() -> None:
    rows = [{"key": e, "gen_text": f"{said} !", "emotion": e} for e, said in (("Freude", "Freude"), ("Wut", "Freude"))]
    found = judge_rows([*rows, {"key": "j", "gen_text": "joy", "emotion": "happiness"}], FirstWord(), progress=False)
    assert [row["verdict"]["match"] for row in found] == [1, 0, 1]
    choosy = FirstWord()
    choosy.choices = ("Freude", "joy", "happiness")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(EmotraceError, match=r"unknown emotion 'Wut' in row 1.*Choices: Freude, joy, happiness"):
        judge_rows(rows, choosy, progress=False)
    many = [*rows, *({**rows[0], "key": str(i), "emotion": e} for i, e in enumerate(("Wut", "Angst")))]
    with pytest.raises(
        EmotraceError, match=r"no name for the emotion of 3 of 4 rows \('Wut', 'Angst'\): leave these rows out"
    ):
        judge_rows(many, choosy, progress=False)
    kept = [row for row in many if row["emotion"] in choosy.choices]  # pyright: ignore[reportAttributeAccessIssue]
    assert [row["verdict"]["match"] for row in judge_rows(kept, choosy, progress=False)] == [1]
    two = [{"key": e, "gen_text": "joy", "emotion": e} for e in ("joy", "happiness")]
    assert [row["verdict"]["match"] for row in judge_rows(two, choosy, progress=False)] == [1, 0]
    with pytest.raises(EmotraceError, match=r"unknown emotion 'Freude' in row 0.*Choices: anger"):
        judge_rows(rows, make("lexicon"), progress=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"key": "a", "emotion": "anger"},
            r"row 1 \(key 'a'\): 'gen_text' must be a text, not None; it has key, emotion",
        ),
        ({"gen_text": "x"}, r"row 1 \(key 'missing'\): 'emotion' must be a text"),
        ({"key": "a", "gen_text": "x", "emotion": "angry"}, r"unknown emotion 'angry' in row 1 \(key 'a'\)"),
    ],
)
def test_bad_rows_are_named_before_the_first_judgement(row: Row, message: str) -> None:
    judge = FirstWord()
    with pytest.raises(EmotraceError, match=message):
        judge_rows([ROWS[0], row], judge, progress=False)
    assert judge.asked == []


def test_a_judge_without_target_question_is_refused() -> None:
    with pytest.raises(EmotraceError, match="'first-word' has no target-aware question"):
        judge_rows(ROWS, FirstWord(), target=True)


def test_a_judge_that_gives_too_little_is_named() -> None:
    class Lazy(FirstWord):
        def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
            return []

    with pytest.raises(EmotraceError, match="gave 0 answers to 5 texts"):
        judge_rows(ROWS, Lazy(), progress=False)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    judge_rows(ROWS, FirstWord())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "5/5" in captured.err


def test_both_questions_over_an_endpoint_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    texts = ["t0", "t1", "t2"]
    rows = [reply(f"{t}-{e}", t, e, "none") for t in texts for e in ("anger", "fear")]

    def step(request: srv.Request) -> srv.Reply:
        if request.text.startswith("Target emotion: "):
            return srv.matches(int("Target emotion: fear" in request.text))
        return srv.says("fear") if "t1" not in request.text else srv.outside_enum()

    log = Memory()
    with srv.OpenAIServer(default=step) as server, OpenAIJudge(base_url=server.url, concurrency=3) as judge:
        judged = judge_rows(rows, judge, log, target=True, progress=False)
        assert server.count == 2 + 3 + 6  # blind: t0 and t2 once, t1 three times; six pairs
        assert server.most_in_flight <= 3
        assert judge_rows(rows, judge, log, target=True, progress=False) == judged
        assert server.count == 11
    assert [row["verdict"]["match"] for row in judged] == [0, 1, None, None, 0, 1]
    assert [row["verdict_target"]["match"] for row in judged] == [0, 1] * 3
    assert log.held == judged


def test_a_log_without_the_target_question_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    log = Memory()
    with srv.OpenAIServer() as server, OpenAIJudge(base_url=server.url) as judge:
        judge_rows(ROWS, judge, log, progress=False)
        with pytest.raises(EmotraceError, match="without 'verdict_target'"):
            judge_rows(ROWS, judge, log, target=True, progress=False)


class Own:
    """A judge of a user's own, whose answers a function makes of the texts."""

    name = "own"

    def __init__(self, answers: Callable[[Sequence[str]], Any]) -> None:
        self.judge = lambda texts, *, progress=False: answers(texts)


MANY = [{"key": f"k{i}", "method": "m", "emotion": "anger", "gen_text": f"text {i}"} for i in range(room.CHUNK + 3)]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda texts: [{"predicted": "anger"}] * (len(texts) - 1), "63 answers to 64 texts"),
        (lambda texts: [{"predicted": "anger"}] * (len(texts) + 1), "65 answers to 64 texts"),
        (lambda texts: iter([{"predicted": "anger"}] * (len(texts) + 1)), "more answers"),
        (lambda texts: iter([{"predicted": "anger"}]), "fewer answers"),
        (lambda texts: None, "one answer for each"),
        (lambda texts: ["anger"] * len(texts), "an object with predicted"),
        (lambda texts: [{"predicted": "angr"}] * len(texts), "Did you mean 'anger'"),
    ],
)
def test_answers_of_a_judge_of_ones_own_are_one_for_each_text(answers: Any, message: str) -> None:
    with pytest.raises(EmotraceError, match=message):
        judge_rows(MANY, Own(answers), progress=False)


def test_answers_of_numpy_and_aliases_are_kept_as_json_holds_them(tmp_path: Path) -> None:
    words = np.array(["anger", "joy"])
    judge = Own(lambda texts: [{"predicted": words[int(t.split()[1]) % 2]} for t in texts])
    with Log(tmp_path / "log.jsonl") as log:
        found = judge_rows(MANY, judge, log=log, progress=False)
        assert [row["verdict"] for row in log.rows()] == [row["verdict"] for row in found]
    assert [row["verdict"]["predicted"] for row in found[:2]] == ["anger", "happiness"]
    assert [row["verdict"]["match"] for row in found[:2]] == [1, 0]
    assert found[0]["verdict"]["judge"] == "own"
