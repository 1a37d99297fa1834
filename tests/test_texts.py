import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emotrace import disk, runlog, texts
from emotrace.files import read_jsonl
from emotrace.labels import EmotraceError

ANY = st.text(st.characters(codec=None), max_size=20)


@given(st.dictionaries(ANY, ANY, max_size=3))
def test_json_of_any_text_is_utf8_and_comes_back(row):
    written = texts.to_json(row).encode()
    assert texts.from_json(written) == json.loads(json.dumps(row))


def test_ordinary_text_is_written_as_it_is():
    assert texts.to_json({"a": "ünï 🙂"}) == '{"a": "ünï 🙂"}'
    assert texts.to_json("half \ud83d") == '"half \\ud83d"'


@pytest.mark.parametrize("text", ["[" * 100_000, "{", b"\xff", "\x00"])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - and nothing else
        texts.from_json(text)


def test_long_numbers_and_a_byte_order_mark_are_read():
    assert texts.from_json("\ufeff[1]") == [1]
    assert texts.from_json(b"\xef\xbb\xbf[1]") == [1]
    assert texts.from_json("[1" + "0" * 5000 + "]") == [float("inf")]


def test_rows_with_odd_text_are_logged_and_read_again(tmp_path):
    row = {"key": "a", "method": "none", "gen_text": "half \ud83d, \x00, \u2028 and \ufeff"}
    with runlog.Log(tmp_path / "log.jsonl") as log:
        log.append(row)
    assert runlog.Log(tmp_path / "log.jsonl").rows() == [row]
    disk.write_rows(tmp_path / "rows.jsonl", [row])
    assert [found for _, found in read_jsonl(tmp_path / "rows.jsonl", halves=True)] == [row]
    disk.write_json(tmp_path / "m.json", row)
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == row


def test_a_line_that_is_nested_too_deeply_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" + '{"a":' * 100_000 + "\n")
    with pytest.raises(EmotraceError, match=r"rows\.jsonl:2: JSON nested deeper"):
        list(read_jsonl(path))
    with pytest.raises(EmotraceError, match=r"rows\.jsonl:2 is damaged: nested too deeply"):
        runlog.Log(path, named_by=()).rows()


def test_shown_text_is_one_printable_line():
    assert texts.one_line("a\r\n\x00b \ud83d" + "c" * 50, 8) == "a \ufffdb \ufffdcc"
    assert texts.whole("a\ud83db") == "a\ufffdb"
    assert texts.as_bytes(pd.DataFrame({"a": ["half \ud83d"]}).to_csv(index=False)) == b"a\nhalf \\ud83d\n"
