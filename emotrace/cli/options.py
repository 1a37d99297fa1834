"""Options: flags that several commands share, and how their texts are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace.labels import EmotraceError, check_positions, emotion, unknown

Model = Annotated[str, typer.Option("--model", help="hub id or directory")]
Limit = Annotated[int | None, typer.Option(help="skeletons, spread evenly over themes")]
Count = Annotated[int, typer.Option(min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default float32 on a CPU")]
Bos = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos", help="begin every prompt with one BOS token, or with none; default: as the tokenizer does"
    ),
]
Where = Annotated[
    str | None,
    typer.Option("--remote", help="ndif, a URL, or local (packed as for a server): no weights are loaded here"),
]
NotThere = Annotated[str | None, typer.Option("--remote", hidden=True)]
"""Where a study that cannot be done elsewhere is asked for; see `only_here`."""
Store = Annotated[Path, typer.Argument(help="an activation store")]
Data = Annotated[Path, typer.Option(help="SEV file")]
Directions = Annotated[Path, typer.Option(help="folder that `emotrace directions` wrote")]
Folder = Annotated[Path, typer.Option(help="folder for everything; the same command again continues")]
Rows = Annotated[Path | None, typer.Option(help="judged replies: only the accepted ones count")]
Within = Annotated[str, typer.Option(help="comma-separated labels that are centred away")]
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


def only_here(remote: str | None, why: str) -> None:
    """Refuse ``--remote`` where the weights must be on this computer."""
    if place(remote):
        raise EmotraceError(f"--remote {remote}: {why}. Leave --remote out, and give a model whose weights are here.")


def names(text: str) -> list[str]:
    """Comma-separated names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def no_folder(out: Path) -> None:
    """Refuse a folder where a file is to be written."""
    if out.is_dir():
        raise EmotraceError(f"--out {out} is a folder; give a file.")


def no_file(out: Path) -> None:
    """Refuse a file where a folder is to be written."""
    if out.exists() and not out.is_dir():
        raise EmotraceError(f"--out {out} is a file; give a folder.")


def span(text: str, flag: str = "--positions") -> Any:
    """A position policy, or START:STOP."""
    if ":" not in text:
        return check_positions(text, flag)
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit()):
        raise EmotraceError(f"{flag} {text}: a span is START:STOP, e.g. 0:5.")
    return check_positions((int(start), int(stop)), flag)


def layer_list(text: str) -> list[int]:
    """Layers written as 2-4 or 1,3."""
    found: list[int] = []
    for part in names(text):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise EmotraceError(f"--layers {text}: give layers as 2-4 or 1,3.")
        if int(last or first) < int(first):
            raise EmotraceError(f"--layers {text}: {part} ends before it begins.")
        found += range(int(first), int(last or first) + 1)
    if not found or len(set(found)) < len(found):
        raise EmotraceError(f"--layers {text!r}: name at least one layer, and each once.")
    return found


def numbers(text: str, flag: str, kind: type = float) -> list[Any]:
    """Comma-separated numbers."""
    try:
        return [kind(part) for part in names(text)]
    except ValueError:
        whole = "whole " if kind is int else ""
        raise EmotraceError(f"{flag} {text}: give {whole}numbers with commas between them.") from None


def finite(value: float, flag: str) -> float:
    """The number, unless it is NaN or infinite."""
    if not math.isfinite(value):
        raise EmotraceError(f"{flag} {value} is not a finite number.")
    return value


def decoding(
    sample: bool, temperature: float, top_p: float, top_k: int, seed: int, max_new_tokens: int
) -> dict[str, Any]:
    """Options of `emotrace.generate` that the sampling flags say."""
    if not sample and (temperature, top_p, top_k) != (1.0, 1.0, 0):
        raise EmotraceError("--temperature, --top-p and --top-k need --sample.")
    found: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": sample, "seed": seed}
    return found | ({"temperature": temperature, "top_p": top_p, "top_k": top_k} if sample else {})


def accepted_keys(rows: Path | None) -> list[str] | None:
    """Keys of the judged replies in a file that were accepted; None where there is no file."""
    if rows is None:
        return None
    from emotrace.datasets import read_jsonl
    from emotrace.directions import accepted

    judged = []
    for where, row in read_jsonl(rows):
        if "key" not in row or not ("verdict" in row or "judge" in row):
            raise EmotraceError(f"{where}: a judged reply has a key and a verdict; run `emotrace judge` first.")
        judged.append(row)
    methods = {str(r.get("method", "")) for r in judged}
    if len(methods) > 1:
        raise EmotraceError(f"{rows} holds replies of several methods ({', '.join(sorted(methods))}); keep one.")
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
