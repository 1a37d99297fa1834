"""Own: prompts out of a table of the user's own (CSV, TSV, JSON, JSON lines, parquet), every other column a label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from emotrace import arguments, shipped
from emotrace.datasets.prompts import Prompt, Prompts
from emotrace.datasets.tables import open_table, text_of
from emotrace.files import parsed
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed

TEXT: Final = "text"
MESSAGES: Final = "messages"
KEY: Final = "key"


@typed
def read_prompts(
    path: str | Path, *, text_column: str | None = None, messages_column: str | None = None, limit: int | None = None
) -> Prompts:
    """The rows of a table as prompts: one column is what the model is given, the others are its labels.

    Args:
        path: a file that `open_table` reads: ``.csv``, ``.tsv`` (with a header), ``.json``, ``.jsonl``, ``.parquet`` …
        text_column: the column of plain text, given to the tokenizer as it is; ``text`` by default, where there is one.
        messages_column: instead, the column of chat messages (``[{"role": …, "content": …}]``, as JSON in a CSV).
        limit: rows, spread evenly over ``theme`` where there is one.

    Returns:
        Prompts in the order of the file; the key is the column ``key``, or the number of the row from 0. Empty cells are no
        labels, nor is a column without a name (the row numbers that pandas writes).

    Raises:
        EmotraceError: naming file and row, for an unknown column, an empty text, broken messages, a label that is neither text
            nor number, or a key that occurs twice.
    """
    if text_column is not None and messages_column is not None:
        raise EmotraceError(f"text_column={text_column!r} and messages_column={messages_column!r}: name one of them.")
    column = messages_column if messages_column is not None else text_column
    found: list[Prompt] = []
    places: dict[str, str] = {}
    for where, row in open_table(path, split="train").rows:
        if column is None:
            column = TEXT if TEXT in row else MESSAGES
            if column not in row:
                raise EmotraceError(
                    f"{where}: no column {TEXT!r} or {MESSAGES!r}. Name the one to give to the model (text_column=…, "
                    f"--text-column): {', '.join(map(str, row))}."
                )
        if column not in row:
            raise unknown("column", column, row, where)
        chat = messages_column is not None or (text_column is None and column == MESSAGES)
        content: dict[str, Any] = (
            {"messages": _messages(row[column], where)} if chat else {"text": text_of(row, column, where)}
        )
        labels = {str(k): v for k, v in row.items() if k not in (column, KEY, "") and v is not None and v != ""}
        key = row.get(KEY)
        key = str(len(found)) if key is None or key == "" else str(key)
        if key in places:
            raise EmotraceError(f"{where}: the key {key!r} occurs twice, first at {places[key]}; keys are identities.")
        places[key] = where
        try:
            found.append(Prompt(key, labels=labels, **content))
        except EmotraceError as error:
            raise EmotraceError(f"{where}: {error}") from None
    if not found:
        raise EmotraceError(f"{path} has no rows.")
    if limit is not None:
        arguments.whole("limit", limit, 1)
    return Prompts(found).limit(limit)


@typed
def is_sev(path: str | Path) -> bool:
    """Whether a JSON-lines file begins with a row of SEV (a scenario with its events)."""
    path = shipped.find(path)
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    first = next(iter(open_table(path, split="train").rows), None)
    return first is not None and {"skeleton_id", "scenario"} <= set(first[1])


def _messages(value: object, where: str) -> tuple[Mapping[str, str], ...]:
    if isinstance(value, str):
        value = parsed(value, f"{where}, messages")
    if not isinstance(value, (list, tuple)) or not value:
        raise EmotraceError(f"{where}: messages are a list of {{'role': …, 'content': …}}, not {value!r}.")
    return tuple(value)
