"""TruthfulQA: both forms, every layout of them, and what is refused."""

import csv
import json

import pytest

from emotrace.datasets import read_truthfulqa, truthfulqa
from emotrace.datasets.truthfulqa import Choices, Question
from emotrace.labels import EmotraceError

GEN = {
    "type": "x", "category": "Odd", "question": "Is it?", "best_answer": "Yes", "correct_answers": ["Yes", "It is", ""],
    "incorrect_answers": ["No"],
}  # fmt: skip
MC = {
    "question": "Is it?",
    "mc1_targets": {"choices": ["No", "Yes"], "labels": [0, 1]},
    "mc2_targets": {"choices": ["Yes", "It is", "No"], "labels": [1, 1, 0]},
}


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_generation_in_three_layouts(tmp_path):
    (whole,) = read_truthfulqa(write(tmp_path / "a.json", [GEN]))
    assert whole == Question("q000", "Is it?", "Odd", "Yes", ("Yes", "It is"), ("No",))
    with (tmp_path / "b.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        table.writerow(["x", "Odd", "Is it?", "Yes", "Yes; It is; ", "No", "s"])
    assert read_truthfulqa(tmp_path / "b.csv") == [whole]
    short = [{"question": "Is it?", "answers": ["Yes", "It is"]}]
    assert read_truthfulqa(write(tmp_path / "c.json", short)) == [
        Question("q000", "Is it?", "", "Yes", ("Yes", "It is"), ())
    ]


def test_multiple_choice(tmp_path):
    (q,) = read_truthfulqa(write(tmp_path / "a.json", [MC]), "multiple_choice")
    assert q.mc1 == Choices(("No", "Yes"), (False, True))
    assert q.mc2 == Choices(("Yes", "It is", "No"), (True, True, False))
    assert (q.best, q.correct, q.incorrect) == ("Yes", ("Yes", "It is"), ("No",))


def test_both_forms_from_binary_files_of_the_hub(tmp_path):
    library = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    library.Dataset.from_list([MC]).to_parquet(str(tmp_path / "mc.parquet"))
    library.Dataset.from_list([GEN]).save_to_disk(str(tmp_path / "gen"))
    assert read_truthfulqa(tmp_path / "mc.parquet", "multiple_choice") == read_truthfulqa(
        write(tmp_path / "a.json", [MC]), "multiple_choice"
    )
    assert read_truthfulqa(tmp_path / "gen") == read_truthfulqa(write(tmp_path / "b.json", [GEN]))


BROKEN = {
    "form": ({}, "mc", "unknown form 'mc'"),
    "question": ({**GEN, "question": ""}, "generation", "row 0: field 'question'"),
    "answers": ({**GEN, "correct_answers": [""]}, "generation", "field 'correct_answers' is no list"),
    "no answers": ({"question": "x"}, "generation", "field 'answers' is no list"),
    "numbers": ({**GEN, "incorrect_answers": [1]}, "generation", "field 'incorrect_answers'"),
    "no targets": (GEN, "multiple_choice", "field 'mc1_targets' is no"),
    "lengths": (
        {**MC, "mc2_targets": {"choices": ["a"], "labels": [1, 0]}}, "multiple_choice", "1 choices and 2 labels",
    ),
    "labels": ({**MC, "mc1_targets": {"choices": ["a", "b"], "labels": [0, 2]}}, "multiple_choice", "labels 0 and 1"),
    "all true": ({**MC, "mc2_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "multiple_choice", "at least one"),
    "two right": (
        {**MC, "mc1_targets": {"choices": ["a", "b", "c"], "labels": [1, 1, 0]}}, "multiple_choice", "2 true choices",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_schema_errors_name_the_row(case, tmp_path):
    row, form, message = BROKEN[case]
    with pytest.raises(EmotraceError, match=message):
        read_truthfulqa(write(tmp_path / "f.json", [row]), form)


def test_prompts():
    questions = read_truthfulqa("data/truthfulqa_generation_sample.json")
    prompts = truthfulqa(questions, limit=2)
    assert prompts[0].text == f"Question: {questions[0].question}\nAnswer:"
    assert prompts[0].labels == {"question_id": "q000", "category": "Animals"}
    chat = truthfulqa(questions, template=None)
    assert chat[1].messages == ({"role": "user", "content": questions[1].question},)
    for wrong, message in (({"template": "x"}, "no {question}"), ({"limit": 0}, "limit=0")):
        with pytest.raises(EmotraceError, match=message):
            truthfulqa(questions, **wrong)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(EmotraceError, match="has no rows"):
        read_truthfulqa(write(tmp_path / "e.json", []))


def test_the_two_samples_hold_the_same_questions():
    gen = read_truthfulqa("data/truthfulqa_generation_sample.json")
    mc = read_truthfulqa("data/truthfulqa_mc_sample.json", "multiple_choice")
    assert len(gen) == 16
    assert [(q.question, q.best, q.correct, q.incorrect) for q in gen] == [
        (q.question, q.best, q.correct, q.incorrect) for q in mc
    ]
    assert all(q.mc1 is not None and sum(q.mc1.true) == 1 for q in mc)
