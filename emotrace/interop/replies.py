"""Replies: the authors' generated, labelled and steered texts as rows of ``generations.jsonl``, and ours as theirs.

Their judge knows the emotion it is asked about, so its verdict is ``verdict_target``. Where its answer was no JSON they count
the reply as rejected; here it is unjudged (``match`` None) with the reason kept, and written back as they have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from emotrace.arms import ARMS
from emotrace.datasets.sev import Skeleton, read_sev
from emotrace.disk import write_rows
from emotrace.files import read_jsonl
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError, emotion, unknown
from emotrace.replies.row import Row
from emotrace.signatures import typed

JUDGE: Final = "openai:gpt-4o-mini"
FAILED: Final = ("invalid-json", "json-decode-error", "api-error")
"""How the reasons of verdicts begin that were none."""
FIELDS: Final = ("key", "skeleton_id", "theme", "valence", "emotion", "scenario", "event", "gen_text")
TEXTS: Final = ("event_valences", "valence_results", "emotion_texts")
LABELS: Final = ("valence_labels", "valence_results", "emotion_labels")


@typed
def read_replies(
    path: str | Path,
    *,
    labels: str | Path | None = None,
    data: str | Path | Sequence[Skeleton] | None = None,
    method: str | None = None,
    judge: str = JUDGE,
) -> list[Row]:
    """Published replies as rows.

    Reads the schemas of all their steps: one reply per line (``generated``, ``accepted``, ``rejected``); one skeleton per line
    (``event_valences`` with ``valence_labels``; ``valence_results``, also of the un-steered baseline, whose reply is given
    once per emotion); one skeleton and valence per line (``emotion_texts`` with ``emotion_labels``).

    Args:
        path: a file, or a folder with ``accepted.jsonl`` and ``rejected.jsonl``, whose rows are put in one order: skeleton,
            valence, emotion.
        labels: file of the verdicts, where they are not beside the texts.
        data: SEV file (or its skeletons) that has the events; the schemas of one skeleton per line lack them.
        method: of the rows; None takes ``prompt``, ``steer``, ``circuit`` or ``none``, as the schema says.
        judge: who gave the verdicts, where the file does not say.

    Returns:
        Rows with ``key, method, draw, skeleton_id, theme, valence, emotion, scenario, event, gen_text, verdict_target
        {match, judge, reason}, meta``. What the files lack is absent: ``token_ids`` (text is never re-tokenised), a blind
        ``verdict``, the ``event`` of some. In ``meta`` their ``input_len`` is called ``prompt_length``.

    Raises:
        EmotraceError: naming file and line, for another schema, a field that is missing, an unknown emotion or
            valence, a reply given twice, verdicts without texts, or texts without their verdict.
    """
    if method is not None and method not in ARMS:
        raise unknown("method", method, ARMS, "read_replies")
    path = Path(path)
    events = {s.skeleton_id: s for s in (read_sev(data) if isinstance(data, (str, Path)) else data or ())}
    files = [p for p in (path / "accepted.jsonl", path / "rejected.jsonl") if p.is_file()] if path.is_dir() else [path]
    if not files:
        raise EmotraceError(f"{path} holds neither accepted.jsonl nor rejected.jsonl; give one file.")
    verdicts = {} if labels is None else _verdicts(labels, judge)
    rows: dict[str, Row] = {}
    for file in files:
        for where, line in read_jsonl(file):
            for row in _replies(line, where, judge):
                about = f"{where} ({row['valence']}, {row['emotion']})"
                row["key"] = row.get("key") or _key(row)
                if row["key"] in rows:
                    raise EmotraceError(f"{about}: a second reply to {row['key']!r}.")
                if "event" not in row and events:
                    skeleton = events.get(row["skeleton_id"])
                    if skeleton is None or row["valence"] not in skeleton.events:
                        raise unknown("skeleton", row["skeleton_id"], events, f"data=…, asked by {about}")
                    row["event"] = skeleton.events[row["valence"]]
                if labels is not None:
                    if row["key"] not in verdicts:
                        raise EmotraceError(f"{about}: {labels} has no verdict on {row['key']!r}.")
                    row["verdict_target"] = verdicts[row["key"]]
                row["method"] = method or row["method"]
                order = [n for n in ("key", "method", "draw", *FIELDS[1:], "verdict_target", "meta") if n in row]
                rows[row["key"]] = cast("Row", {name: row[name] for name in order})
    if not rows:
        raise EmotraceError(f"{path} has no rows.")
    return _in_order(list(rows.values())) if len(files) > 1 else list(rows.values())


@typed
def write_replies(rows: Sequence[Row], folder: str | Path, *, verdict: str = "verdict") -> tuple[Path, Path]:
    """Judged rows of one method as ``accepted.jsonl`` and ``rejected.jsonl``, as the authors' scripts read them.

    ``match`` 1 is accepted; 0 and, as in their rule, what could not be judged is rejected.

    Args:
        rows: with the fields of a published row and a verdict; ``token_ids``, ``method`` and ``draw`` are left out.
        folder: created if absent; both files are replaced.
        verdict: which verdict counts: ``verdict`` (blind) or ``verdict_target`` (the question that theirs answers).

    Raises:
        EmotraceError: before anything is written, for rows of several methods or draws, two of one key, or a row
            without a field or verdict.
    """
    kinds = sorted({(str(r.get("method", "")), int(r.get("draw", 0))) for r in rows})
    if len(kinds) != 1:
        raise EmotraceError(f"write_replies takes rows of one method and draw, not {kinds or 'none'}.")
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    seen: set[str] = set()
    for number, row in enumerate(rows):
        for name in (*FIELDS, verdict):
            if row.get(name) is None:
                raise EmotraceError(f"write_replies: row {number} (key {row.get('key')!r}) has no {name!r}.")
        if row["key"] in seen:
            raise EmotraceError(f"write_replies: two rows of the key {row['key']!r}.")
        seen.add(row["key"])
        match, reason = row[verdict].get("match"), row[verdict].get("reason")
        meta = {"input_len" if k == "prompt_length" else k: v for k, v in (row.get("meta") or {}).items()}
        told = {"match": int(match == 1), "reason": str(reason or ("unjudged" if match is None else ""))}
        parts[match != 1].append({**{name: row[name] for name in FIELDS}, "judge": told, "meta": meta})
    paths = Path(folder) / "accepted.jsonl", Path(folder) / "rejected.jsonl"
    for path, part in zip(paths, parts, strict=True):
        write_rows(path, part)
    return paths


def _replies(line: Mapping[str, Any], where: str, judge: str) -> Iterator[dict[str, Any]]:
    """The rows of one line, whatever its schema."""
    base: dict[str, Any] = {"draw": 0, "skeleton_id": _text(line, "skeleton_id", where)}
    base |= {name: line[name] for name in ("theme", "scenario") if name in line}
    info = line.get("labeling_info")
    judge = f"openai:{info['model']}" if isinstance(info, Mapping) and "model" in info else judge
    if "gen_text" in line:
        row = {**base, "method": "prompt", "event": _text(line, "event", where)}
        row |= {name: _text(line, name, where) for name in ("key", "gen_text") if name != "key" or "key" in line}
        row |= {
            "valence": _valence(line.get("valence"), where),
            "emotion": emotion(line.get("emotion", ""), EMOTIONS, where),
        }
        if "judge" in line:
            row["verdict_target"] = _verdict(line["judge"], judge, where)
        meta = {"prompt_length" if k == "input_len" else k: v for k, v in (line.get("meta") or {}).items()}
        row["meta"] = {**meta, **({"label_time": line["label_time"]} if "label_time" in line else {})}
        yield row
        return
    base["meta"] = {name: line[name] for name in ("parameters", "timestamp") if name in line}
    name = next((n for n in TEXTS if n in line), None)
    if name is None:
        raise EmotraceError(
            f"{where}: neither 'gen_text' nor {', '.join(map(repr, TEXTS))} (the row has: {', '.join(line)})."
        )
    verdicts = dict(_labels(line, where, judge)) if name != "valence_results" else {}
    for valence, texts in _by_valence(line, name, where):
        once = isinstance(texts, str)  # the un-steered baseline: one reply, whatever the emotion
        if not once and not isinstance(texts, Mapping):
            raise EmotraceError(f"{where}: {name!r} of {valence} is a {type(texts).__name__}, not texts by emotion.")
        for label, text in (dict.fromkeys(EMOTIONS, texts) if once else texts).items():
            if not isinstance(text, str):
                raise EmotraceError(
                    f"{where}: {name!r} holds {type(text).__name__} where texts are due; a file of verdicts is given as "
                    "labels=, beside the file of the texts."
                )
            asked = emotion(label, EMOTIONS, where)
            row = {**base, "valence": valence, "emotion": asked, "gen_text": text}
            row["method"] = "none" if once else "circuit" if name == "valence_results" else "steer"
            if isinstance(line.get("event"), str):
                row["event"] = line["event"]
            if verdicts:
                if (valence, asked) not in verdicts:
                    raise EmotraceError(f"{where}: no verdict on {valence}, {asked}.")
                row["verdict_target"] = verdicts[valence, asked]
            yield row


def _by_valence(line: Mapping[str, Any], name: str, where: str) -> list[tuple[str, Any]]:
    """(valence, what the field holds for it), of either schema."""
    if name.startswith("emotion_"):
        return [(_valence(line.get("event_valence"), where), line[name])]
    if not isinstance(line[name], Mapping):
        raise EmotraceError(f"{where}: {name!r} is a {type(line[name]).__name__}, not a mapping of valences.")
    return [(_valence(v, where), held) for v, held in line[name].items()]


def _labels(line: Mapping[str, Any], where: str, judge: str) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """((valence, emotion), verdict) of one line that holds verdicts."""
    for name in (n for n in LABELS if n in line):
        for valence, held in _by_valence(line, name, where):
            if not isinstance(held, Mapping):
                raise EmotraceError(f"{where}: {name!r} of {valence} is a {type(held).__name__}, not verdicts.")
            for label, verdict in held.items():
                yield (valence, emotion(label, EMOTIONS, where)), _verdict(verdict, judge, where)


def _verdicts(path: str | Path, judge: str) -> dict[str, dict[str, Any]]:
    """Key → verdict of a file of verdicts."""
    out: dict[str, dict[str, Any]] = {}
    for where, line in read_jsonl(path):
        info = line.get("labeling_info")
        who = f"openai:{info['model']}" if isinstance(info, Mapping) and "model" in info else judge
        ident = _text(line, "skeleton_id", where)
        found = [
            (_key({"skeleton_id": ident, "valence": v, "emotion": e}), x) for (v, e), x in _labels(line, where, who)
        ]
        if not found:
            raise EmotraceError(f"{where}: none of {', '.join(LABELS)} (the row has: {', '.join(line)}).")
        for key, verdict in found:
            if key in out:
                raise EmotraceError(f"{where}: a second verdict on {key!r}.")
            out[key] = verdict
    return out


def _verdict(value: object, judge: str, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or value.get("match") not in (0, 1, "0", "1"):
        raise EmotraceError(f"{where}: {value!r} is no verdict; one is {{'match': 0 or 1, 'reason': …}}.")
    reason = str(value.get("reason", ""))
    match = None if reason.startswith(FAILED) else int(value["match"])
    return {"match": match, "judge": judge, "reason": reason}


def _in_order(rows: list[Row]) -> list[Row]:
    """Skeletons in the order of their first row, then valences, then emotions."""
    first = {ident: i for i, ident in enumerate(dict.fromkeys(row["skeleton_id"] for row in rows))}
    return sorted(
        rows, key=lambda r: (first[r["skeleton_id"]], VALENCES.index(r["valence"]), EMOTIONS.index(r["emotion"]))
    )


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['skeleton_id']}__{row['valence']}__{row['emotion']}".replace("/", "_")


def _valence(value: object, where: str) -> str:
    if value not in VALENCES:
        raise unknown("valence", value, VALENCES, where)
    return str(value)


def _text(line: Mapping[str, Any], name: str, where: str) -> str:
    value = line.get(name)
    if not isinstance(value, str):
        raise EmotraceError(f"{where}: field {name!r} is missing or no text (the row has: {', '.join(line)}).")
    return value
