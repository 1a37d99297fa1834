"""Options: flags that several commands share, and how their texts are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emotrace import arguments
from emotrace.defaults import HEADS_PER_LAYER, NEURONS_PER_LAYER
from emotrace.labels import EMOTIONS, JUDGES, EmotraceError, check_positions, emotion, unknown

if TYPE_CHECKING:
    import pandas as pd

    from emotrace import labels

MODEL = "hub id, directory or GGUF file; tiny (shipped), or what `emotrace fetch` fetched"
Model = Annotated[str, typer.Option("--model", help=MODEL)]
ModelOrNone = Annotated[str | None, typer.Option("--model", help=MODEL)]
CausalModel = Annotated[str, typer.Option("--model", help=f"{MODEL}; causal")]
Judge = Annotated[str, typer.Option(help=" | ".join(JUDGES))]
JudgeOrNone = Annotated[str, typer.Option(help=" | ".join((*JUDGES, "none")))]
LabelMap = Annotated[str | None, typer.Option(help="of a classifier: LABEL_0=anger,LABEL_1=none")]
Price = Annotated[str | None, typer.Option(help="of an openai judge: dollars per million prompt,completion tokens")]
Sites = Annotated[str, typer.Option(help="comma-separated; `emotrace sites` lists what a model has")]
Positions = Annotated[str, typer.Option(help="last | generated | steer | prompt | all | START:STOP")]
NewTokens = Annotated[int, typer.Option(min=1, help="most tokens of a reply")]
if TYPE_CHECKING:
    BatchSize = arguments.BatchSize
else:  # no type of typer's: it takes no union

    def _batch(text: str | int) -> int | str:
        """A number, or ``auto``."""
        value = int(text) if str(text).isdecimal() else text
        arguments.batch("--batch-size", value)
        return value

    BatchSize = Annotated[
        str,
        typer.Option(
            parser=_batch, metavar="INTEGER|auto", help="prompts per batch; auto: what fits into the free memory"
        ),
    ]
PerLayer = Annotated[float, typer.Option(min=0, help="of the circuit, in each layer; below 1 a share of it")]
PerLayerOrNone = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="of the circuit, in each layer; below 1 a share of it; without a preset by default "
        f"{NEURONS_PER_LAYER} neurons, {HEADS_PER_LAYER} heads",
    ),
]
TargetAware = Annotated[bool, typer.Option(help="ask the published target-aware question as well (openai judges)")]
DryRun = Annotated[bool, typer.Option(help="say how much there is to do; do nothing")]
Limit = Annotated[int | None, typer.Option(min=1, help="skeletons (of a table: rows), spread evenly over themes")]
Few = Annotated[int | None, typer.Option(min=1, help="queries or texts of each emotion")]
Count = Annotated[int, typer.Option(min=1)]
Steps = Annotated[int, typer.Option(min=1, help="intervals of the integrated methods")]
Seed = Annotated[int, typer.Option(min=0, max=arguments.SEEDS)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default float32 on a CPU")]
Bos = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos", help="begin every prompt with one BOS token, or with none; default: as the tokenizer does"
    ),
]
RemoteFlag = Annotated[
    str | None,
    typer.Option("--remote", help="ndif, a URL, or local (packed as for a server): no weights are loaded here"),
]
Store = Annotated[Path, typer.Argument(help="an activation store")]
DATA = "SEV file, or a table of your own: CSV, TSV, JSON, JSON lines, parquet; its other columns are labels"
Data = Annotated[Path, typer.Option(help=DATA)]
SevFile = Annotated[Path, typer.Option(help="SEV file")]
DataOrNone = Annotated[Path | None, typer.Option(help=DATA)]
TextColumn = Annotated[
    str | None, typer.Option(help="column of a table to give to the model; default text, or messages")
]
MessagesColumn = Annotated[str | None, typer.Option(help="column of a table that holds chat messages")]
Instruction = Annotated[
    bool | None,
    typer.Option(
        "--instruction/--no-instruction", help="of SEV: ask for the emotion (default), or the plain counterpart"
    ),
]
Elicit = Annotated[
    str | None,
    typer.Option(
        help="of SEV: how it asks: instruct (default), fewshot or another set of worked examples, or a JSON file"
    ),
]
Emotions = Annotated[str | None, typer.Option(help=f"of SEV: comma-separated, any names; default {','.join(EMOTIONS)}")]
DIRECTIONS = "folder that `emotrace directions` wrote"
Directions = Annotated[Path, typer.Option(help=DIRECTIONS)]
DirectionsOrNone = Annotated[Path | None, typer.Option(help=DIRECTIONS)]
Folder = Annotated[Path, typer.Option(help="folder for everything; the same command again continues")]
Rows = Annotated[Path | None, typer.Option(help="judged replies: only the accepted ones count")]
Within = Annotated[str, typer.Option(help="comma-separated labels that are centred away; '' for none")]
Texts = Annotated[list[str], typer.Argument(help="what to reply to")]
System = Annotated[str | None, typer.Option(help="system message; default none")]
Sample = Annotated[bool, typer.Option(help="sample instead of taking the likeliest token")]
TopK = Annotated[int, typer.Option(min=0)]


def place(remote: str | None) -> bool | str:
    """Where a model runs, as `emotrace.load` takes it."""
    if remote is None:
        return False
    if remote not in ("ndif", "local") and not remote.startswith(("http://", "https://")):
        raise unknown("place", remote, ("ndif", "local", "a URL"), "--remote")
    return True if remote == "ndif" else remote


def names(text: str) -> list[str]:
    """Comma-separated names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def span(text: str, flag: str = "--positions") -> labels.Positions:
    """A position policy, or START:STOP."""
    if ":" not in text:
        return check_positions(text, flag)
    start, _, stop = map(_count, text.partition(":"))
    if start is None or stop is None:
        raise EmotraceError(f"{flag} {text}: a span is START:STOP, e.g. 0:5.")
    return check_positions((start, stop), flag)


def layer_list(text: str) -> list[int]:
    """Layers written as 2-4 or 1,3."""
    found: list[int] = []
    for part in names(text):
        begin, dash, end = part.partition("-")
        first, last = _count(begin), _count(end if dash else begin)
        if first is None or last is None:
            raise EmotraceError(f"--layers {text}: give layers as 2-4 or 1,3.")
        if last < first:
            raise EmotraceError(f"--layers {text}: {part} ends before it begins.")
        found += range(first, last + 1)
    if not found or len(set(found)) < len(found):
        raise EmotraceError(f"--layers {text!r}: name at least one layer, and each once.")
    return found


def _count(text: str, digits: int = 6) -> int | None:
    """A whole number from 0 of at most so many digits, of those that every keyboard has; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None


def numbers(text: str, flag: str, kind: type = float, *, some: bool = False) -> list[Any]:
    """Comma-separated finite numbers, each once, with ``some`` at least one; whole ones from 0 for the kind ``int``."""
    try:
        found: list[Any] = [_count(part, 9) if kind is int else float(part) for part in names(text)]
    except ValueError:
        found = [None]
    if None in found or (some and not found):
        whole = "whole " if kind is int else ""
        raise EmotraceError(f"{flag} {text}: give {whole}numbers with commas between them.")
    for value in found:
        finite(value, flag)
        if found.count(value) > 1:
            raise EmotraceError(f"{flag} {text}: {value:g} occurs twice.")
    return found


def finite(value: float, flag: str) -> float:
    """The number, unless it is NaN or infinite."""
    if not math.isfinite(value):
        raise EmotraceError(f"{flag} {value} is not a finite number.")
    return value


def said(texts: Sequence[str]) -> list[str]:
    """What is to be replied to, none of it blank."""
    return [arguments.text(f"text {i}, to be replied to,", text) for i, text in enumerate(texts, 1)]


@contextmanager
def of(flag: str, value: object) -> Iterator[None]:
    """Errors of what a flag gave, with the flag before them."""
    try:
        yield
    except EmotraceError as error:
        raise EmotraceError(f"{flag} {value}: {error}") from error


def accepted_keys(rows: Path | None, table: pd.DataFrame) -> list[str] | None:
    """Keys of the judged replies in a file that were accepted; None where there is no file.

    Args:
        rows: the file.
        table: of the prompts (or activations) that the keys shall choose from: keys and labels.
    """
    if rows is None:
        return None
    from emotrace.directions import accepted
    from emotrace.replies.row import read_rows, refuse_other_prompt

    judged = read_rows(rows, "key", "verdict|judge", what="a judged reply (of `emotrace judge`)")
    methods = {str(r.get("method", "")) for r in judged}
    if len(methods) > 1:
        raise EmotraceError(f"{rows} holds replies of several methods ({', '.join(sorted(methods))}); keep one.")
    labels = {str(row["key"]): row for row in table.drop_duplicates("key").to_dict("records")}
    for row in judged:
        refuse_other_prompt(row, labels.get(str(row["key"]), {}), str(rows))
    keys = accepted(judged)
    if not keys:
        raise EmotraceError(f"{rows}: the judge accepted none of {len(judged)} replies.")
    return keys


def labelled(directions: Path) -> tuple[Any, str]:
    """The directions of a folder, and the label that they tell apart."""
    from emotrace.directions import load

    found = load(directions)
    label = str(found.attrs.get("label", "emotion"))
    if label not in found.dims:
        raise EmotraceError(
            f"{directions} has the dims {', '.join(map(str, found.dims))}, and no {label!r} to choose from."
        )
    return found, label


def value_of(label: str, asked: str, known: list[Any], place: Path) -> str:
    """The value of a label that is asked for: an emotion under either of its names."""
    names_ = [str(n) for n in known]
    found = emotion(asked, names_, str(place)) if label == "emotion" else asked
    if found not in names_:
        raise unknown(label, found, names_, str(place))
    return found
