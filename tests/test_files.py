"""Users' files are read strictly, and destinations are tried before any work."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace import files
from emotrace.labels import EmotraceError
from emotrace.replies.row import check_row, read_rows

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_whatever_json_can_hold_is_read_as_it_is(value):
    assert files.parsed(json.dumps(value), "here") == json.loads(json.dumps(value))


NO_JSON = {
    "a key twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice"),
    "no number": ('{"a": NaN}', "NaN is no number of JSON"),
    "infinity": ("[-Infinity]", "-Infinity is no number"),
    "a number beyond all": ("[1e999]", "too large"),
    "thousands of digits": ("[" + "9" * 5000 + "]", "Exceeds the limit"),
    "half a surrogate pair": (r'{"a": "x \ud800 y"}', r"\ud800 is half of a surrogate pair"),
    "half of one in a key": (r'{"\udc00": 1}', "half of a surrogate pair"),
    "depth that Python reads": ("[" * 70 + "]" * 70, "deeper than 64"),
    "depth that it does not": ("[" * 10**5 + "]" * 10**5, "deeper than 64"),
    "a depth of objects": ('{"a":' * 70 + "1" + "}" * 70, "deeper than 64"),
    "a comma too many": ("[1,]", "not JSON"),
    "nothing": ("", "not JSON"),
}


@pytest.mark.parametrize("case", NO_JSON)
def test_other_text_is_refused_with_its_place(case):
    text, words = NO_JSON[case]
    with pytest.raises(EmotraceError, match=r"^file:3") as error:
        files.parsed(text, "file:3", one_line=True)
    assert words in str(error.value)


def test_whole_pairs_and_wide_values_are_no_mistake():
    assert files.parsed(r'"\ud83d\ude00"', "here") == "😀"
    assert len(files.parsed("[" + "[]," * 500 + "[]]", "here")) == 501


def test_rows_have_their_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": "x\u2028y"}\r\n\n[1]\n'.encode())
    rows = files.read_jsonl(path)
    assert next(rows) == (f"{path}:1", {"a": "x\u2028y"})
    with pytest.raises(EmotraceError, match=r"rows.jsonl:3: a row is a JSON object, not list"):
        next(rows)
    for name, data, words in (
        ("latin", "é".encode("latin-1"), "not UTF-8"), ("folder", None, "is a directory"), ("none", b"", "no such file"),
        ("a\0b", b"", "cannot be read"),
    ):  # fmt: skip
        if name == "folder":
            (tmp_path / name).mkdir()
        elif name == "latin":
            (tmp_path / name).write_bytes(data)
        with pytest.raises(EmotraceError, match=words):
            files.read_text(tmp_path / name)


def test_destinations_are_tried_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    bad = (
        (files.to_file, "folder", "is a folder; give a file"), (files.to_folder, "file", "is a file; give a folder"),
        (files.to_file, "file/a/b", "file is a file"), (files.to_folder, "file/a", "file is a file"),
        (files.to_file, "a" * 300, "cannot be written"),
    )  # fmt: skip
    for check, name, words in bad:
        with pytest.raises(EmotraceError, match=words):
            check(tmp_path / name)
    for nothing in ("", 3, None, "a\0b"):
        with pytest.raises(EmotraceError, match="is no path"):
            files.to_file(nothing)
    assert files.to_file(str(tmp_path / "new" / "rows.jsonl")).name == "rows.jsonl"
    files.to_folder(tmp_path / "folder"), files.to_file(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
    (tmp_path / "folder" / "zarr.json").touch()
    with pytest.raises(EmotraceError, match="is a zarr store; what is made of it goes beside it"):
        files.to_folder(tmp_path / "folder")
    assert files.to_folder(tmp_path / "folder", store=True) == tmp_path / "folder"
    with pytest.raises(EmotraceError, match="cannot be written"):
        files.to_folder("/proc/nothing/here")


def test_rows_of_replies_hold_what_they_should(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = {"key": "a", "method": "m", "gen_text": "", "token_ids": [1], "verdict": {"predicted": None, "match": None},
            "meta": {"perplexity": None}, "other": [1, {}]}  # fmt: skip
    path.write_text(json.dumps(good) + "\n")
    assert read_rows(path, "key", "gen_text", "verdict|judge") == [good]
    check_row({"key": "a", "token_ids": [np.int64(3)]}, "here")
    for name, value in (
        ("key", 3), ("key", " "), ("method", ["m"]), ("draw", -1), ("draw", True), ("emotion", 1), ("gen_text", ["x"]),
        ("token_ids", "abc"), ("token_ids", [1.0]), ("token_ids", [10**30]), ("verdict", [1]), ("verdict", {"match": 2}),
        ("verdict", {"predicted": 3}), ("judge", "yes"), ("meta", 3), ("meta", {"perplexity": "low"}), ("dose", "high"),
        ("skeleton_id", {}), ("query", 7),
    ):  # fmt: skip
        path.write_text(json.dumps(good) + "\n" + json.dumps({**good, name: value}) + "\n")
        with pytest.raises(EmotraceError, match=rf"rows.jsonl:2: field '{name}' is"):
            read_rows(path)
    path.write_text("\n")
    with pytest.raises(EmotraceError, match="has no rows"):
        read_rows(path)


def test_half_a_surrogate_pair_may_be_said_but_is_no_name(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"key": "a", "gen_text": "x \ud800", "verdict": {"match": null, "reason": "\ud800"}}' + "\n")
    assert read_rows(path)[0]["gen_text"] == "x \ud800"
    path.write_text(r'{"key": "a \ud800", "gen_text": "x"}' + "\n")
    with pytest.raises(EmotraceError, match="field 'key' is"):
        read_rows(path)
