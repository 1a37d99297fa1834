"""GoEmotions: every form of the file gives the same texts; counts of the published development split."""

import csv
import json
import sys
import types

import pandas as pd
import pytest

from emotrace.datasets import class_counts, goemotions, read_goemotions
from emotrace.datasets.goemotions import GROUPINGS, LABELS, LabelledText
from emotrace.labels import EmotraceError

TEXTS = [
    LabelledText("a1", 'He said "no",\nand left.', ("anger", "annoyance")),
    LabelledText("b2", "We won!\u2028Really.", ("joy",)),
    LabelledText("c3", "The bus is blue.", ("neutral",)),
    LabelledText("d/4", "I was cross.", ("annoyance",)),
]


def ids(t):
    return [LABELS.index(name) for name in t.labels]


def one_hot(path, texts=TEXTS, change=None):
    rows = [["text", "classes", "ids", *LABELS]]
    rows += [[t.text, ",".join(map(str, ids(t))), t.text_id, *(int(n in t.labels) for n in LABELS)] for t in texts]
    if change is not None:
        change(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_every_form_of_the_file_gives_the_same_texts(tmp_path):
    listed = [{"text": t.text, "labels": ids(t), "id": t.text_id} for t in TEXTS]
    named = [{"text": t.text, "labels": list(t.labels), "id": t.text_id} for t in TEXTS]
    (tmp_path / "hub.json").write_text(json.dumps(listed), encoding="utf-8")
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(r) + "\n" for r in named), encoding="utf-8")
    assert read_goemotions(one_hot(tmp_path / "a.csv")) == TEXTS
    assert read_goemotions(tmp_path / "hub.json") == TEXTS
    assert read_goemotions(tmp_path / "hub.jsonl") == TEXTS
    flat = TEXTS[1:]  # the authors' files hold no line breaks
    lines = "".join(f"{t.text}\t{','.join(map(str, ids(t)))}\t{t.text_id}\n" for t in flat)
    for name, begun in (("dev.tsv", ""), ("headed.tsv", "text\tlabels\tid\n")):
        (tmp_path / name).write_text(begun + lines, encoding="utf-8")
        assert read_goemotions(tmp_path / name) == flat
    for name, mark, said in (
        ("numpy", ",", lambda t: f"[{' '.join(map(str, ids(t)))}]"),
        ("lists", ";", lambda t: list(t.labels)),
    ):
        rows = [[t.text, said(t), t.text_id] for t in TEXTS]
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=mark).writerows([["text", "labels", "id"], *rows])
        assert read_goemotions(tmp_path / f"{name}.csv") == TEXTS
    assert read_goemotions(one_hot(tmp_path / "marked.csv", change=without("classes"))) == TEXTS


def test_of_raw_rows_the_labels_that_two_raters_gave_count(tmp_path):
    said = [("a", 1, "anger"), ("a", 2, "anger annoyance"), ("a", 3, "joy annoyance"), ("b", 1, "joy"), ("b", 2, "fear"),
            ("c", 1, "joy love"), ("d", 1, "")]  # fmt: skip
    rows = [
        {"text": f"Text {ident}.", "id": ident, "rater_id": rater, "example_very_unclear": ident == "d"}
        | {name: int(name in labels.split()) for name in LABELS}
        for ident, rater, labels in said
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "raw.csv", index=False)
    found = {t.text_id: t.labels for t in read_goemotions(tmp_path / "raw.csv")}
    assert found == {"a": ("anger", "annoyance"), "c": ("joy", "love")}


def test_rows_without_ids_are_numbered(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps([{"text": "x", "labels": [2]}, {"text": "y", "labels": 27}]))
    assert [t.text_id for t in read_goemotions(tmp_path / "f.json", split="test")] == ["test_0", "test_1"]


def cell(row, column, value):
    def change(rows):
        rows[row][rows[0].index(column)] = value

    return change


def without(column):
    def change(rows):
        at = rows[0].index(column)
        for row in rows:
            del row[at]

    return change


BROKEN = {
    "no column": (without("grief"), r"f\.csv:2: the column 'grief' is missing"),
    "no text column": (without("text"), r":2: field 'text' is missing.*the row has: classes, ids"),
    "no classes": (
        lambda rows: [row.__delitem__(slice(3, None)) or row.__delitem__(1) for row in rows],
        r":2: neither the field 'labels' \(or 'classes'\) nor a 0/1 column per label \(the row has: text, ids\)",
    ),
    "contradiction": (cell(2, "joy", "0"), r":4: column 'joy' is 0, but 'classes' is '17'"),
    "second class": (cell(3, "fear", "1"), r":5: column 'fear' is 1"),
    "half a label": (cell(4, "pride", "0.5"), r":6: column 'pride' holds '0.5'"),
    "class": (cell(2, "classes", "28"), r":4: '28' is no class id \(0 to 27\)"),
    "name": (cell(2, "classes", "jo"), r":4.*Did you mean 'joy'"),
    "empty": (cell(2, "classes", ""), r":4: the text has no label"),
    "blank": (cell(3, "text", "  "), r":5: field 'text'"),
    "same id": (cell(4, "ids", "a1"), r":6: the id 'a1' occurs twice"),
    "short row": (lambda rows: rows[3].pop(), r":5: 30 cells, but there are 31 columns"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_schema_errors_name_file_and_line(case, tmp_path):
    change, message = BROKEN[case]
    with pytest.raises(EmotraceError, match=message):  # the first text spans two lines
        read_goemotions(one_hot(tmp_path / "f.csv", change=change))


def test_files_that_cannot_be_read(tmp_path):
    for name, content, message in (
        ("absent.csv", None, r"absent\.csv: no such file"),
        ("f.txt", "x", "unknown kind of file '.txt'"),
        ("f.json", '{"a": 1}', "a JSON array of objects is due, not dict"),
        ("g.json", "[1]", "row 0: a row is a JSON object, not int"),
        ("h.json", "[", r"h\.json:1: not JSON"),
        ("i.csv", "text,text\n", "the column 'text' occurs twice"),
        ("j.csv", "text,classes,ids\n", "has no rows"),
        ("k.csv", 'text\n"open', "not a table"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(EmotraceError, match=message):
            read_goemotions(tmp_path / name)
    (tmp_path / "latin.csv").write_bytes(b"text\n\xe9\n")
    with pytest.raises(EmotraceError, match="not UTF-8"):
        read_goemotions(tmp_path / "latin.csv")
    with pytest.raises(EmotraceError, match="no hub id"):
        read_goemotions("no/such/file/here")


def test_prompts_single_labels_and_groups():
    single = goemotions(TEXTS)
    assert single.keys == ("b2", "c3", "d_4")
    assert [p.text for p in single] == [t.text for t in TEXTS[1:]]
    assert single[2].labels == {"text_id": "d/4", "labels": "annoyance", "emotion": "annoyance"}
    every = goemotions(TEXTS, single_label=False)
    assert every[0].labels == {"text_id": "a1", "labels": "anger,annoyance", "emotion": ""}
    assert class_counts(every) == {"annoyance": 2, "anger": 1, "joy": 1, "neutral": 1}
    assert class_counts(every, "emotion") == {"annoyance": 1, "joy": 1, "neutral": 1}
    ekman = goemotions(TEXTS, grouping="ekman")
    assert [p.labels["emotion"] for p in ekman] == ["anger", "joy", "neutral", "anger"], "two labels of one group"
    own = goemotions(TEXTS, grouping={"annoyance": "cross", "neutral": "calm"})
    assert [(p.key, p.labels["emotion"]) for p in own] == [("a1", "cross"), ("c3", "calm"), ("d_4", "cross")]


def test_choices_of_emotions():
    assert goemotions(TEXTS, emotions=["happiness", "neutral"]).keys == ("b2", "c3")
    assert goemotions(TEXTS, emotions=["anger"], grouping="ekman", limit=1).keys == ("a1",)
    for wrong, message in (
        ({"emotions": ["angry"]}, "Did you mean 'anger'"),
        ({"emotions": "anger"}, "a list of names"),
        ({"emotions": ["grief"]}, "no prompts"),
        ({"emotions": ["grief"], "grouping": "ekman"}, "unknown emotion 'grief'"),
        ({"grouping": "ekmann"}, "Did you mean 'ekman'"),
        ({"grouping": {"angre": "x"}}, "Did you mean 'anger'"),
        ({"grouping": {"anger": "a,b"}}, "a name without comma"),
        ({"limit": 0}, "limit=0"),
        ({"limit": 2, "single_label": False}, "only of single labels"),
    ):
        with pytest.raises(EmotraceError, match=message):
            goemotions(TEXTS, **wrong)
    with pytest.raises(EmotraceError, match="unknown label 'theme'"):
        class_counts(goemotions(TEXTS), "theme")


def test_every_label_is_in_every_grouping():
    assert len(LABELS) == 28
    for mapping in GROUPINGS.values():
        assert set(mapping) == set(LABELS)
    assert set(GROUPINGS["ekman"].values()) == {"anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"}


class Rows(list):
    """As much of a hub data set as is used: rows, and features with class names."""

    @property
    def features(self):
        label = types.SimpleNamespace(names=["neutral", "joy"])
        return {"text": types.SimpleNamespace(), "labels": types.SimpleNamespace(feature=label)}


def test_a_hub_id_goes_to_the_library_and_its_class_names_count(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if split == "dev":
            raise ConnectionError("offline")
        return Rows([{"text": "x", "labels": [1]}, {"text": "y", "labels": [0]}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = read_goemotions("owner/go_emotions", split="test")
    assert asked == [("owner/go_emotions", "simplified", "test")]
    assert [t.labels for t in found] == [("joy",), ("neutral",)], "ids are places in the data set's own list"
    with pytest.raises(EmotraceError, match=r"owner/go_emotions \(config simplified, split dev\).*offline"):
        read_goemotions("owner/go_emotions", split="dev")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EmotraceError, match=r"as a hub id: reading it needs.*emotrace\[hub\]"):
        read_goemotions("owner/go_emotions")
    (tmp_path / "f.parquet").write_bytes(b"PAR1")
    with pytest.raises(EmotraceError, match=r"f\.parquet: reading it needs"):
        read_goemotions(tmp_path / "f.parquet")


def test_binary_files_of_the_hub(tmp_path):
    library = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    rows = library.Dataset.from_list([{"text": t.text, "labels": ids(t), "id": t.text_id} for t in TEXTS])
    rows.to_parquet(str(tmp_path / "f.parquet"))
    rows.save_to_disk(str(tmp_path / "saved"))
    library.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "splits"))
    assert read_goemotions(tmp_path / "f.parquet") == TEXTS
    assert read_goemotions(tmp_path / "saved") == TEXTS
    assert read_goemotions(tmp_path / "splits", split="test") == TEXTS
    assert read_goemotions(next((tmp_path / "saved").glob("*.arrow"))) == TEXTS
    with pytest.raises(EmotraceError, match="unknown split 'train'"):
        read_goemotions(tmp_path / "splits")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "f.parquet").read_bytes()[:-20])
    with pytest.raises(EmotraceError, match=r"torn\.parquet cannot be read"):
        read_goemotions(tmp_path / "torn.parquet")


@pytest.mark.parametrize("several", [True, False])
def test_class_names_of_a_saved_data_set_count(tmp_path, several):
    library = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    names = library.ClassLabel(names=["neutral", "joy", "anger"])
    features = library.Features(
        {"text": library.Value("string"), "labels": library.Sequence(names) if several else names}
    )
    rows = [{"text": "x", "labels": [1, 2] if several else 1}, {"text": "y", "labels": [0] if several else 0}]
    library.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    found = [t.labels for t in read_goemotions(tmp_path / "saved")]
    assert found == [("anger", "joy") if several else ("joy",), ("neutral",)]


def test_the_sample_holds_every_label():
    texts = read_goemotions("data/goemotions_sample.csv")
    assert len(texts) == len({t.text for t in texts}) == 376
    counts = class_counts(goemotions(texts), "emotion")
    assert set(counts) == set(LABELS)
    assert min(counts.values()) >= 10
    assert sum(len(t.labels) > 1 for t in texts) == 30


def test_published_development_split(oracles):
    path = oracles.path("goemotions/dev.csv")
    every, single = goemotions(path, single_label=False), goemotions(path)
    assert (len(every), len(single)) == (5426, 4548)
    counts = class_counts(single, "emotion")
    assert [counts[e] for e in ("neutral", "admiration", "gratitude", "anger", "grief")] == [1592, 326, 261, 109, 6]
    assert [class_counts(every)[e] for e in ("neutral", "anger", "grief")] == [1766, 195, 13]
    sizes = [len(str(p.labels["labels"]).split(",")) for p in every]
    assert [sizes.count(n) for n in (1, 2, 3, 4)] == [4548, 809, 62, 7]
