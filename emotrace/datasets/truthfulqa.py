"""TruthfulQA: questions with true and false answers, in the generation and the multiple-choice form.

Source: Lin et al. 2022, arXiv 2109.07958. MC1: one true choice among false ones; MC2: several true ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emotrace import arguments
from emotrace.datasets.prompts import Prompt, Prompts
from emotrace.datasets.tables import open_table, text_of
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed

FORMS: Final = ("generation", "multiple_choice")
TEMPLATE: Final = "Question: {question}\nAnswer:"
"""The prompt of the GoEmotions pipeline."""
_HEADER: Final = {
    "Question": "question",
    "Category": "category",
    "Best Answer": "best_answer",
    "Correct Answers": "correct_answers",
    "Incorrect Answers": "incorrect_answers",
}
"""Columns of the authors' CSV → fields of the hub's rows; lists are joined by semicolons there."""


@dataclass(frozen=True)
class Choices:
    """Answers to choose from.

    Attributes:
        texts: the answers.
        true: of each, whether it is right; at least one is and one is not.
    """

    texts: tuple[str, ...]
    true: tuple[bool, ...]


@dataclass(frozen=True)
class Question:
    """A question and what may be answered.

    Attributes:
        question_id: ``q{place}`` in its file.
        question: the question.
        category: the file's, or empty.
        best: the best answer (generation form), or the true choice of MC1.
        correct: true answers.
        incorrect: false answers; empty where the file holds none.
        mc1: one true choice; None in the generation form.
        mc2: several; None in the generation form.
    """

    question_id: str
    question: str
    category: str
    best: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    mc1: Choices | None = None
    mc2: Choices | None = None


@typed
def read_truthfulqa(source: str | Path, form: str = "generation", *, split: str = "validation") -> list[Question]:
    """The questions of a file or data set, checked row by row.

    Args:
        source: generation: rows with ``question, best_answer, correct_answers, incorrect_answers`` (the hub's), with
            ``question, answers`` (the GoEmotions pipeline's JSON), or the authors' ``TruthfulQA.csv``; multiple choice: rows
            with ``question, mc1_targets, mc2_targets``, each ``{choices, labels}``. A file in any form of
            `emotrace.datasets.tables`, or a hub id, e.g. ``truthfulqa/truthful_qa``.
        form: ``generation`` or ``multiple_choice``.
        split: of a data set that has several.

    Raises:
        EmotraceError: naming the place, for an unknown form, a missing field, choices and labels that do not fit, or no
            rows.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS, "read_truthfulqa")
    table = open_table(source, split=split, config=form)
    out = []
    for where, found in table.rows:
        row = {_HEADER.get(name, name): value for name, value in found.items()}
        ident, question = f"q{len(out):03d}", text_of(row, "question", where)
        category = str(row.get("category") or "")
        if form == "generation":
            right = _answers(row, "correct_answers" if "correct_answers" in row else "answers", where)
            wrong = _answers(row, "incorrect_answers", where) if "incorrect_answers" in row else ()
            best = text_of(row, "best_answer", where) if "best_answer" in row else right[0]
            out.append(Question(ident, question, category, best, right, wrong))
            continue
        mc1, mc2 = (_choices(row, name, where) for name in ("mc1_targets", "mc2_targets"))
        if sum(mc1.true) != 1:
            raise EmotraceError(f"{where}: mc1_targets has {sum(mc1.true)} true choices; MC1 needs exactly one.")
        sides = [tuple(t for t, ok in zip(mc2.texts, mc2.true, strict=True) if ok == side) for side in (True, False)]
        best = mc1.texts[mc1.true.index(True)]
        out.append(Question(ident, question, category, best, sides[0], sides[1], mc1, mc2))
    if not out:
        raise EmotraceError(f"{table.name} has no rows.")
    return out


@typed
def truthfulqa(
    source: str | Path | Sequence[Question],
    form: str = "generation",
    *,
    template: str | None = TEMPLATE,
    split: str = "validation",
    limit: int | None = None,
) -> Prompts:
    """The questions as prompts.

    Args:
        source: a file or hub id that `read_truthfulqa` reads, or questions that it read.
        form: of a file.
        template: plain text with ``{question}``; None asks in a chat message.
        split: of a data set.
        limit: the first so many questions.

    Returns:
        Prompts with the labels ``question_id`` and ``category``; the key is the question's id.

    Raises:
        EmotraceError: as `read_truthfulqa`; for a template without its place, or a limit below 1.
    """
    if template is not None and "{question}" not in template:
        raise EmotraceError(f"truthfulqa(template={template!r}): it has no {{question}}.")
    if limit is not None:
        arguments.whole("truthfulqa(limit)", limit, 1)
    questions = read_truthfulqa(source, form, split=split) if isinstance(source, (str, Path)) else list(source)
    prompts = []
    for q in questions[:limit]:
        about = {"question_id": q.question_id, "category": q.category}
        if template is None:
            prompts.append(Prompt(q.question_id, messages=({"role": "user", "content": q.question},), labels=about))
        else:
            prompts.append(Prompt(q.question_id, text=template.replace("{question}", q.question), labels=about))
    return Prompts(prompts)


def _answers(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = row.get(name)
    items = [part.strip() for part in value.split(";")] if isinstance(value, str) else value
    items = [] if items is None else [x for x in items if x != ""]
    if not items or not all(isinstance(x, str) and x.strip() for x in items):
        have = ", ".join(map(str, row))
        raise EmotraceError(f"{where}: field {name!r} is no list of answers (the row has: {have}).")
    return tuple(items)


def _choices(row: Mapping[str, Any], name: str, where: str) -> Choices:
    value = row.get(name)
    if not isinstance(value, Mapping) or "choices" not in value or "labels" not in value:
        raise EmotraceError(f"{where}: field {name!r} is no {{choices, labels}} (the row has: {', '.join(row)}).")
    texts, true = list(value["choices"]), list(value["labels"])
    if len(texts) != len(true) or not all(isinstance(t, str) and t.strip() for t in texts):
        raise EmotraceError(
            f"{where}: {name} has {len(texts)} choices and {len(true)} labels, or a choice without text."
        )
    if not set(true) <= {0, 1} or len(set(true)) != 2:
        raise EmotraceError(f"{where}: {name} needs labels 0 and 1, at least one of each, not {true}.")
    return Choices(tuple(texts), tuple(bool(t) for t in true))
