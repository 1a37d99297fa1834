"""Rows: generated replies in, the same rows with their verdicts out; committed as they come, resumed by the names of rows."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol, cast

from emotrace import disk, ranks, spread
from emotrace.judges.base import (
    Judge,
    StreamingJudge,
    StreamingTargetJudge,
    TargetJudge,
    in_order,
    is_final,
    named,
    record,
    same_judge,
)
from emotrace.labels import EmotraceError, unknown
from emotrace.replies.row import NAMED_BY, Judged, Row
from emotrace.runlog import Log
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed

CHUNK = 64  # texts per call of a judge that does not stream
PIECE = 256  # rows that one rank takes at a time
COMMIT = 16  # rows per append


class RowLog(Protocol):
    """What `judge_rows` needs of a log: `emotrace.runlog.Log` has it. ``named_by`` and ``name_of`` are honoured."""

    def rows(self) -> Sequence[Any]:
        """Every committed row."""
        ...

    def append(self, rows: Sequence[Any]) -> object:
        """Commit rows."""
        ...


@typed
def judge_rows(
    rows: Sequence[Row],
    judge: Judge,
    log: RowLog | None = None,
    target: bool = False,
    progress: bool = True,
    *,
    label: str = "emotion",
    rank: tuple[int, int] | None = None,
) -> list[Row]:
    """Fill in ``verdict`` {predicted, match, judge, reason} and, where asked, ``verdict_target`` {match, judge, reason}.

    ``match`` is 1 where the answer is the row's ``emotion`` (joy = happiness), else 0, and None where the text is
    unjudged. Identical texts (for ``verdict_target``: text and emotion) are judged once.

    Args:
        rows: replies with ``gen_text`` and ``emotion``; never changed.
        judge: of `emotrace.judges.make`, or of your own.
        log: a log of its own for the judged rows. Rows whose text this judge has judged there are not judged again; new
            ones are appended in order as their verdicts arrive. Rows that failed on the way to the endpoint are left out,
            so that the next run asks for them again.
        target: also ask the published target-aware question.
        progress: a bar on stderr.
        label: the field that says what was aimed at; new rows have it as ``emotion`` too.
        rank: ``(i, n)``: this process is one of n that judge the same rows into the same `emotrace.runlog.Log`, `PIECE` rows at a
            time; each returns all rows. None takes what SLURM (array or tasks) and torchrun say, and prints it.

    Returns:
        New rows, in the order of ``rows``; ``meta.made.verdict`` says who judged what (digests).

    Raises:
        EmotraceError: before the first judgement, for rows without ``gen_text`` or an ``emotion`` that the judge may name (all
            such emotions are said), a judge that cannot be asked with a target, or a log of other texts or of another judge
            (row and differences named).
    """
    rows = rows if label == "emotion" else [_aimed(row, i, label) for i, row in enumerate(rows)]
    wanted = _wanted(rows, judge)
    if target and not isinstance(judge, TargetJudge):
        raise EmotraceError(f"judge {judge.name!r} has no target-aware question; use openai[:MODEL], or target=False.")
    taken = ranks.chosen(rank, log if isinstance(log, Log) else None, "judge_rows(rank)")
    stored = _stored(rows, judge, log, target) if log is not None else {}
    if isinstance(log, Log):
        made = {
            "judge": judge.name,
            "target": target,
            "rows": disk.digest([record(judge, t) | {"emotion": e} for t, e in wanted]),
        }
        if spread.shared(log.path, made, taken):
            pieces = [range(at, min(at + PIECE, len(rows))) for at in range(0, len(rows), PIECE)]
            names = [[log.name_of(rows[i]) for i in piece] for piece in pieces]

            def judged(piece: int) -> list[Row]:
                some = [rows[i] for i in pieces[piece] if i not in stored]
                return [new for new in judge_rows(some, judge, target=target, progress=False) if _lasting(new)]

            spread.joined(log, made, taken, names, judged)
            log = Log(log.path, log.named_by)  # failed rows are asked for again
            stored = _stored(rows, judge, log, target)
    todo = [index for index in range(len(rows)) if index not in stored]
    pairs = list(dict.fromkeys(wanted[index] for index in todo))
    texts = list(dict.fromkeys(text for text, _ in pairs))
    out: list[Row] = []
    fresh: list[Row] = []
    blind: dict[str, Any] = {}
    aware: dict[tuple[str, str], Any] = {}
    with ExitStack() as stack:
        blind_stream = stack.enter_context(closing(_verdicts(judge, texts)))
        aware_stream = stack.enter_context(closing(_verdicts(judge, pairs if target else [], True)))
        bar = stack.enter_context(
            progress_bar(total=len(rows), desc=f"judge {judge.name}", unit="row", enabled=progress)
        )
        stack.callback(lambda: log.append(fresh) if log is not None and fresh else None)
        for index, row in enumerate(rows):
            bar.update()
            if index in stored:
                out.append(stored[index])
                continue
            text, asked = wanted[index]
            if text not in blind:  # texts are in order of first appearance, so the next verdict is this text's
                blind[text] = next(blind_stream)
            found = blind[text]
            match = None if found["predicted"] is None else int(found["predicted"] == asked)
            verdict = {"predicted": found["predicted"], "match": match}
            new = _with(row, {"verdict": {**verdict, "judge": found["judge"], "reason": found["reason"]}}, judge)
            final = is_final(found)
            if target:
                if (text, asked) not in aware:
                    aware[text, asked] = next(aware_stream)
                new["verdict_target"] = cast("Judged", dict(aware[text, asked]))
                final &= is_final(aware[text, asked])
            out.append(new)
            if log is not None and final:
                fresh.append(new)
                if len(fresh) >= COMMIT:
                    batch, fresh[:] = list(fresh), []
                    log.append(batch)
    return out


def _aimed(row: Row, index: int, label: str) -> Row:
    """The row with what it aimed at as its ``emotion``."""
    if label not in row:
        raise unknown("label", label, row, f"judge_rows, row {index}")
    return cast("Row", {**row, "emotion": row[label]})


def _lasting(row: Row) -> bool:
    """Whether the verdicts of a row stand: it did not fail on the way to the endpoint."""
    return all(is_final(row[name]) for name in ("verdict", "verdict_target") if name in row)


def _wanted(rows: Sequence[Row], judge: Judge) -> list[tuple[str, str]]:
    """Each row's text and its emotion as the judge would name it; rows that it has no name for are refused, all told."""
    choices = getattr(judge, "choices", None)
    wanted: list[tuple[str, str]] = []
    others: dict[str, EmotraceError] = {}
    strangers = 0
    for index, row in enumerate(rows):
        where = _checked(row, index)
        try:
            wanted.append((row["gen_text"], named(row["emotion"], choices, where)))
        except EmotraceError as error:
            others.setdefault(row["emotion"], error)
            strangers += 1
    if others:
        raise EmotraceError(
            f"{next(iter(others.values()))} Judge {judge.name!r} has no name for the emotion of {strangers} of {len(rows)} rows "
            f"({', '.join(map(repr, others))}): leave these rows out, or take a judge that knows them."
        )
    return wanted


def _checked(row: Row, index: int) -> str:
    """What a row is called in messages, once it is one."""
    where = f"row {index} (key {row.get('key', 'missing')!r})"
    for field in ("gen_text", "emotion"):
        if not isinstance(row.get(field), str):
            raise EmotraceError(f"{where}: {field!r} must be a text, not {row.get(field)!r}; it has {', '.join(row)}.")
    about: Any = row
    for field in ("meta", "made"):
        about = about.get(field) or {}
        if not isinstance(about, Mapping):
            raise EmotraceError(f"{where}: {field!r} is {about!r}; an object is due.")
    return where


def _stored(rows: Sequence[Row], judge: Judge, log: RowLog, target: bool) -> dict[int, Row]:
    """Index of a row → that row as the log holds it, after checking that it is the same reply and judge."""
    fields = tuple(getattr(log, "named_by", NAMED_BY))
    name_of = getattr(log, "name_of", lambda row: tuple(row.get(part) for part in fields))
    seen: set[tuple[Any, ...]] = set()
    for index, row in enumerate(rows):
        name = name_of(row)
        if name in seen:
            raise EmotraceError(
                f"row {index}: a second row with {fields} = {name}; rows of a log need a name of their own."
            )
        seen.add(name)
    held, place = {name_of(row): dict(row) for row in log.rows()}, getattr(log, "path", "the log")
    found: dict[int, Row] = {}
    for index, row in enumerate(rows):
        name = name_of(row)
        if name not in held:
            continue
        old = held[name]
        where = f"row {dict(zip(fields, name, strict=True))}"
        if "verdict" not in old:
            raise EmotraceError(
                f"{place}: {where} is there without a verdict: judged rows need a log of their own: give another file."
            )
        made = ((old.get("meta") or {}).get("made") or {}).get("verdict")
        made = None if made is None else {**made, "emotion": old.get("emotion")}
        same_judge(place, made, {**record(judge, row["gen_text"]), "emotion": row["emotion"]}, judge, where)
        if target and "verdict_target" not in old:
            raise EmotraceError(
                f"{place}: {where} is there without 'verdict_target': use another file, or target=False."
            )
        verdicts = {k: old[k] for k in ("verdict", "verdict_target") if k in old and (target or k == "verdict")}
        found[index] = _with(row, verdicts, judge)
    return found


def _with(row: Mapping[str, Any], verdicts: Mapping[str, Any], judge: Judge) -> Row:
    """The row as it is now, with verdicts, and what they were made from."""
    meta = dict(row.get("meta") or {})
    made = {**(meta.get("made") or {}), "verdict": record(judge, row["gen_text"])}
    return cast("Row", {**row, **verdicts, "meta": {**meta, "made": made}})


def _verdicts(judge: Judge, items: Sequence[Any], target: bool = False) -> Generator[Any, None, None]:
    """The verdicts of ``items`` (texts, or (text, emotion) pairs), in order, as early as the judge gives them."""
    if not items:
        return
    choices = getattr(judge, "choices", None)
    if target and isinstance(judge, StreamingTargetJudge):
        yield from in_order(
            judge.iter_judge_target([t for t, _ in items], [e for _, e in items]), len(items), judge.name
        )
    elif not target and isinstance(judge, StreamingJudge):
        yield from in_order(judge.iter_judge(items), len(items), judge.name, choices)
    else:
        for start in range(0, len(items), CHUNK):
            part = items[start : start + CHUNK]
            if target:
                given: Any = cast(TargetJudge, judge).judge_target([t for t, _ in part], [e for _, e in part])
            else:
                given = judge.judge(part)
            yield from in_order(given, len(part), judge.name, choices)
