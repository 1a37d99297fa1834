"""Sheets: replies for people to judge, blinded and shuffled, and what they answered, beside each other and other judges."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np

from emotrace import arguments, disk, shown
from emotrace.files import read_json, read_text, to_file
from emotrace.judges.base import named
from emotrace.labels import ANSWERS, EmotraceError
from emotrace.replies.row import NAMED_BY, Row, cluster_of
from emotrace.signatures import typed
from emotrace.stats import Agreement, cohen_kappa, krippendorff_alpha

COLUMNS: Final = ("id", "text", "answer")
"""Of a sheet: nothing in it says which method made a text, or for which emotion."""
SPLIT: Final = "the annotators differ"
BLANK: Final = "no annotator answered"


class Sheet(NamedTuple):
    """Files that `write_sheet` made."""

    sheet: Path
    key: Path
    n: int


@dataclass(frozen=True)
class Annotated:
    """What people answered.

    Attributes:
        rows: the replies on the sheet, each with the verdict of most of them (None where they differ) as ``verdict``.
        annotators: their names, of the files they filled.
        answers: ``[annotator][text]``; None where one left it empty.
        alpha: Krippendorff's α among them; None for one annotator, or where no text has two answers.
        kappa: name of a verdict that the rows had → Cohen's κ of the people's verdict with it.
    """

    rows: list[Row]
    annotators: list[str]
    answers: list[list[str | None]]
    alpha: Agreement | None
    kappa: Mapping[str, Agreement]
    __repr__ = shown.brief

    @property
    def record(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "annotators": self.annotators, "n": len(self.rows),
            "n_answered": [sum(a is not None for a in one) for one in self.answers],
            "alpha": self.alpha and self.alpha._asdict(), "kappa": {k: v._asdict() for k, v in self.kappa.items()},
        }  # fmt: skip


@typed
def write_sheet(
    rows: Sequence[Row], path: str | Path, *, choices: Sequence[str] = ANSWERS, n: int | None = None, seed: int = 0
) -> Sheet:
    """A CSV of texts for people to judge, in an order drawn by lot, and beside it the key that says whose they are.

    The sheet has an id, the text and an empty column for the answer. Each text is on it once, however many rows have it. Every
    annotator fills a copy, without seeing the key: ``NAME.key.json``, beside the sheet ``NAME.csv``.

    Args:
        rows: replies with ``gen_text``.
        path: of the sheet.
        choices: what may be answered; in the key, for `read_sheets`.
        n: so many texts, drawn by lot; None for all.
        seed: of the draw.

    Returns:
        The two paths, and how many texts there are.

    Raises:
        EmotraceError: for no rows, more texts than there are, or a file that is there already: it may hold answers.
    """
    where = to_file(path, "--sheet")
    key = where.with_suffix(".key.json")
    for file in (where, key):
        if file.exists():
            raise EmotraceError(f"{file} is there already, and may hold answers; name another sheet.")
    choices = arguments.names("write_sheet(choices)", choices)
    of_text: dict[str, list[Row]] = {}
    for row in rows:
        if row["gen_text"].strip():
            of_text.setdefault(row["gen_text"], []).append(row)
    if not of_text:
        raise EmotraceError("write_sheet: no reply has a text to judge.")
    count = len(of_text) if n is None else arguments.whole("write_sheet(n)", n, 1, len(of_text))
    texts = list(of_text)
    order = np.random.default_rng(arguments.seed("write_sheet(seed)", seed)).permutation(len(texts))[:count]
    drawn = [texts[i] for i in order]
    width = len(str(count))
    ids = [f"{i + 1:0{width}d}" for i in range(count)]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    writer.writerows((i, text, "") for i, text in zip(ids, drawn, strict=True))
    disk.write_json(key, {
        "kind": "key of a sheet", "choices": list(choices), "seed": seed,
        "texts": {i: _digest(text) for i, text in zip(ids, drawn, strict=True)},
        "rows": {i: [_name(row) for row in of_text[text]] for i, text in zip(ids, drawn, strict=True)},
    })  # fmt: skip
    disk.replace_file(where, out.getvalue().encode("utf-8-sig"))
    return Sheet(where, key, count)


@typed
def read_sheets(
    sheets: Sequence[str | Path], rows: Sequence[Row], key: str | Path, *, cluster: str | None = None, seed: int = 0
) -> Annotated:
    """What people answered on copies of a sheet, joined to the replies by its key, and how far they agree.

    Args:
        sheets: the filled copies, one of each annotator, who is called as the file is.
        rows: the replies that the sheet was made of, perhaps with verdicts of a judge.
        key: of the sheet.
        cluster: what is drawn for the intervals; None: the first usual label that all rows have.
        seed: of these draws.

    Raises:
        EmotraceError: naming file and line, for another text than the key's, an id twice, an answer that is no choice; for a
            row of the key that is not there, or sheets of one name.
    """
    about = _key(key)
    names = [Path(sheet).stem for sheet in sheets]
    if not sheets or len(set(names)) != len(names):
        raise EmotraceError(f"read_sheets: {names}; one file or more, each with the name of its annotator.")
    filled = [_filled(Path(sheet), about) for sheet in sheets]
    at = {tuple(_name(row)): row for row in rows}
    clusters = cluster_of(rows, cluster)
    found: list[Row] = []
    first: list[Row] = []  # of each text, on which people and judges agree once, however many rows have it
    answers = [[one.get(ident) for ident in about["rows"]] for one in filled]
    for ident, of_text in about["rows"].items():
        given = [one.get(ident) for one in filled]
        for n, name in enumerate(of_text):
            row = at.get(tuple(name))
            if row is None:
                raise EmotraceError(
                    f"{key}: the row {dict(zip(NAMED_BY, name, strict=True))} is not among the replies."
                )
            if _digest(row["gen_text"]) != about["texts"][ident]:
                raise EmotraceError(f"{key}: the reply {row['key']!r} has another text than the sheet had.")
            found.append(_judged(row, given, names, about["choices"]))
            first += [row] if n == 0 else []
    drawn = np.array([str(row.get(clusters)) for row in first])
    people = [_most(given)[0] for given in zip(*answers, strict=True)]
    kappa = {}
    for field in ("verdict", "verdict_second"):
        theirs = [cast("Mapping[str, Any]", row.get(field) or {}) for row in first]
        said = [one.get("predicted") for one in theirs]
        if any(a is not None and b is not None for a, b in zip(people, said, strict=True)):
            kappa[str(next(one["judge"] for one in theirs if one))] = cohen_kappa(people, said, drawn, seed=seed)
    two = len(names) > 1 and any(sum(a is not None for a in column) > 1 for column in zip(*answers, strict=True))
    return Annotated(found, names, answers, krippendorff_alpha(answers, drawn, seed=seed) if two else None, kappa)


def _name(row: Mapping[str, Any]) -> list[Any]:
    return [row.get(name) for name in NAMED_BY]


def _digest(text: str) -> str:
    """Of a text's words: spreadsheets write line ends and blanks in ways of their own."""
    return disk.digest(" ".join(text.split()))


def _key(path: str | Path) -> dict[str, Any]:
    about = read_json(path)
    if not isinstance(about, dict) or about.get("kind") != "key of a sheet":
        raise EmotraceError(f"{path} is no key of a sheet.")
    return about


def _filled(path: Path, about: Mapping[str, Any]) -> dict[str, str]:
    """The answers of one annotator: id → choice."""
    lines = csv.DictReader(io.StringIO(read_text(path).lstrip("\ufeff"), newline=""))
    missing = [name for name in COLUMNS if name not in (lines.fieldnames or ())]
    if missing:
        raise EmotraceError(f"{path}: the column {missing[0]!r} is missing; a sheet has {', '.join(COLUMNS)}.")
    found: dict[str, str] = {}
    seen: set[str] = set()
    for line in lines:
        where, ident = f"{path}, line {lines.line_num}", line["id"].strip()
        ident = (
            ident if ident in about["texts"] else ident.zfill(len(next(iter(about["texts"]))))
        )  # spreadsheets drop zeros
        if ident not in about["texts"] or ident in seen:
            raise EmotraceError(
                f"{where}: the id {line['id']!r} {'is there twice' if ident in seen else 'is not of the key'}."
            )
        seen.add(ident)
        if _digest(line["text"] or "") != about["texts"][ident]:
            raise EmotraceError(f"{where}: the text of {ident!r} is not the one that was given.")
        if answer := (line["answer"] or "").strip():
            found[ident] = named(answer, about["choices"], where)
    return found


def _most(given: Sequence[str | None]) -> tuple[str | None, list[str]]:
    """What most answered, None where several answers are the most; and these answers."""
    counts = Counter(answer for answer in given if answer is not None)
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return (best[0] if len(best) == 1 else None), best


def _judged(row: Row, given: Sequence[str | None], names: Sequence[str], choices: Sequence[str]) -> Row:
    """The row with what most annotators said."""
    predicted, best = _most(given)
    said = "; ".join(f"{name}: {answer}" for name, answer in zip(names, given, strict=True) if answer)
    reason = BLANK if not best else said if predicted else f"{SPLIT} ({said})"
    asked = row.get("emotion")
    match = None if predicted is None or not asked else int(predicted == named(asked, choices, f"row {row['key']!r}"))
    verdict = {"predicted": predicted, "match": match, "judge": f"people:{','.join(names)}", "reason": reason}
    return cast("Row", {**row, "verdict": verdict})
