"""Prompts out of tables of one's own, in Python and on the command line."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import emotrace as et
from emotrace.cli.groups import PromptFile
from emotrace.datasets import read_prompts
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.test_cli import run

ROWS = [{"text": f"Text {i}, with a comma", "mood": m, "year": 2000 + i} for i, m in enumerate(("Wut", "Stolz", "Wut"))]
CHAT = [{"role": "user", "content": "Hi"}]


def write(folder, suffix, rows=ROWS):
    path = folder / f"mine{suffix}"
    table = pd.DataFrame(rows)
    if suffix in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_every_other_column_is_a_label(tmp_path, suffix):
    found = read_prompts(write(tmp_path, suffix))
    assert found.keys == ("0", "1", "2")
    assert [p.text for p in found] == [row["text"] for row in ROWS]
    assert found.table["mood"].tolist() == ["Wut", "Stolz", "Wut"]
    assert found.label_names == ("mood", "year")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_cells_of_a_csv_may_be_parted_otherwise(tmp_path, mark):
    """As spreadsheets of some countries write them, with a byte order mark; commas in a text part nothing."""
    path = tmp_path / "mine.csv"
    pd.DataFrame(ROWS).to_csv(path, sep=mark, encoding="utf-8-sig")  # its index is no label
    found = read_prompts(path)
    assert [p.text for p in found] == [row["text"] for row in ROWS]
    assert found.label_names == ("mood", "year")


def test_messages_and_keys(tmp_path):
    rows = [{"key": f"k{i}", "chat": json.dumps(CHAT), "text": "a label here", "mood": ""} for i in range(2)]
    found = read_prompts(write(tmp_path, ".csv", rows), messages_column="chat", limit=1)
    assert found.keys == ("k0",)
    assert [dict(m) for m in found[0].messages] == CHAT
    assert dict(found[0].labels) == {"text": "a label here"}
    assert read_prompts(write(tmp_path, ".jsonl", [{"messages": CHAT}]))[0].messages is not None


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (ROWS, {"text_column": "txt"}, r"unknown column 'txt' in .*mine.csv:2. Did you mean 'text'"),
        ([{"words": "x"}], {}, r"no column 'text' or 'messages'.*--text-column\): words"),
        ([{"text": "x"}, {"text": " "}], {}, r"mine.csv:3: field 'text' is missing, empty"),
        (
            [{"key": "a", "text": "x"}, {"key": "a", "text": "y"}],
            {},
            r"mine.csv:3: the key 'a' occurs twice, first at .*mine.csv:2",
        ),
        ([{"chat": "[{'role'"}], {"messages_column": "chat"}, r"mine.csv:2, messages"),
        (ROWS, {"text_column": "text", "messages_column": "mood"}, "name one of them"),
        (ROWS, {"limit": 0}, "limit=0"),
    ],
)
def test_bad_tables_are_named_with_their_row(tmp_path, rows, options, words):
    with pytest.raises(EmotraceError, match=words):
        read_prompts(write(tmp_path, ".csv", rows), **options)


def test_data_of_a_command_is_sev_or_a_table(tmp_path):
    sev = [{"skeleton_id": "work_00", "theme": "Work/Job", "scenario": "I work.", "event": {"neutral": "It rains."}}]
    file = write(tmp_path, ".jsonl", sev)
    assert PromptFile(data=file).read("pride,anger").keys == (
        "work_00__neutral__pride",
        "work_00__neutral__anger",
    )
    assert PromptFile(data=file, instruction=False).read().keys == ("work_00__neutral",)
    with pytest.raises(EmotraceError, match=r"--instruction: .*mine.csv is no SEV file"):
        PromptFile(data=write(tmp_path, ".csv"), instruction=True).read()
    with pytest.raises(EmotraceError, match="no such file"):
        PromptFile(data=tmp_path / "absent.csv").read()


def test_from_a_table_to_directions_on_the_command_line(tmp_path):
    model = tmp_path / "model"
    tiny.save("llama", model, num_hidden_layers=2)
    data, store, out = write(tmp_path, ".csv"), tmp_path / "a.zarr", tmp_path / "dirs"
    run("capture", "--model", model, "--data", data, "--out", store, "--sites", "resid_post")
    run("directions", store, "--label", "mood", "--within", "", "--out", out)
    assert et.directions.load(out)["mood"].values.tolist() == ["Stolz", "Wut"]
