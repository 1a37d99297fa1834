"""Sheets for people: nobody on them can be told apart by what they show, and what people answer comes back to its row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from emotrace import judges, stats
from emotrace.labels import EmotraceError

EMOTIONS = ("anger", "joy", "fear")


def rows(n: int = 12) -> list[dict]:
    out = []
    for i in range(n):
        emotion = EMOTIONS[i % 3]
        verdict = {
            "predicted": {"joy": "happiness"}.get(emotion, emotion),
            "match": 1,
            "judge": "lexicon:v1",
            "reason": "x",
        }
        text = f"text of {i % 10}, so\nlong"
        out.append({"key": f"k{i}", "method": "steer", "draw": 0, "emotion": EMOTIONS[i % 10 % 3], "skeleton_id": f"s{i // 2}",
                    "gen_text": text, "verdict": verdict})  # fmt: skip
    return out


def filled(sheet: Path, name: str, answer) -> Path:
    """A copy of the sheet with answers of one annotator."""
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    copy = sheet.with_name(f"{name}.csv")
    with copy.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["answer", "text", "id"])
        writer.writeheader()
        writer.writerows({**line, "answer": answer(line["text"])} for line in reversed(lines))
    return copy


def by_number(text: str) -> str:
    return {"anger": "Anger ", "joy": "joy", "fear": "fear"}[EMOTIONS[int(text.split()[2].strip(",")) % 3]]


def test_a_sheet_shows_texts_alone_in_an_order_by_lot(tmp_path: Path) -> None:
    made = judges.write_sheet(rows(), tmp_path / "sheet.csv", seed=1)
    content = made.sheet.read_text("utf-8-sig")
    assert made.n == 10  # two of the twelve texts are there twice
    for word in ("steer", "anger", "joy", "k1", "s1", "lexicon"):
        assert word not in content
    with made.sheet.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == [f"{i:02d}" for i in range(1, 11)]
    assert [line["text"] for line in lines] != [row["gen_text"] for row in rows(10)]
    assert {line["answer"] for line in lines} == {""}
    other = judges.write_sheet(rows(), tmp_path / "other.csv", n=4, seed=2)
    assert other.n == 4
    assert other.sheet.read_text("utf-8-sig") != content
    with pytest.raises(EmotraceError, match="may hold answers"):
        judges.write_sheet(rows(), tmp_path / "sheet.csv")


def test_answers_come_back_to_every_row_with_their_agreement(tmp_path: Path) -> None:
    made = judges.write_sheet(rows(), tmp_path / "sheet.csv")
    ann = filled(made.sheet, "ann", by_number)
    bob = filled(made.sheet, "bob", lambda t: "" if " 1," in t else "fear" if " 0," in t else by_number(t))
    found = judges.read_sheets([ann, bob], rows(), made.key)
    assert found.annotators == ["ann", "bob"]
    assert len(found.rows) == 12
    by_key = {row["key"]: row["verdict"] for row in found.rows}
    assert by_key["k0"] == {
        "predicted": None, "match": None, "judge": "people:ann,bob", "reason": "the annotators differ (ann: anger; bob: fear)",
    }  # fmt: skip
    assert (by_key["k1"]["predicted"], by_key["k1"]["match"]) == ("happiness", 1)
    assert (by_key["k11"]["predicted"], by_key["k11"]["match"]) == ("happiness", 1)
    assert [len(one) for one in found.answers] == [10, 10]
    assert found.alpha.value == pytest.approx(stats.krippendorff_alpha(found.answers).value)
    assert (found.alpha.n, found.kappa["lexicon:v1"].n) == (
        9,
        9,
    )  # texts, not rows; one has one answer, of one people differ
    assert found.kappa["lexicon:v1"].value == 1
    alone = judges.read_sheets([ann], rows(), made.key)
    assert alone.alpha is None
    assert all(row["verdict"]["match"] == 1 for row in alone.rows)
    assert alone.record["n_answered"] == [10]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.replace("answer", "emotion", 1), "column 'answer' is missing"),
        (lambda t: t.replace("text of 3", "text of 4"), "not the one that was given"),
        (lambda t: t.replace(",01", ",77"), "not of the key"),
        (lambda t: t.replace(",02", ",01"), "is there twice|not the one"),
        (lambda t: t.replace("fear", "faer"), "faer"),
    ],
)
def test_what_is_not_the_sheet_is_refused(tmp_path: Path, change, word: str) -> None:
    made = judges.write_sheet(rows(), tmp_path / "sheet.csv")
    ann = filled(made.sheet, "ann", by_number)
    ann.write_bytes(change(ann.read_bytes().decode()).encode())
    with pytest.raises(EmotraceError, match=word):
        judges.read_sheets([ann], rows(), made.key)


def test_other_replies_are_refused(tmp_path: Path) -> None:
    made = judges.write_sheet(rows(), tmp_path / "sheet.csv")
    ann = filled(made.sheet, "ann", by_number)
    with pytest.raises(EmotraceError, match="not among the replies"):
        judges.read_sheets([ann], rows(3), made.key)
    with pytest.raises(EmotraceError, match="another text"):
        judges.read_sheets([ann], [{**row, "gen_text": "new"} for row in rows()], made.key)
    with pytest.raises(EmotraceError, match="one file or more"):
        judges.read_sheets([], rows(), made.key)
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(EmotraceError, match="no key"):
        judges.read_sheets([ann], rows(), tmp_path / "no.json")
