"""Measuring: rows in, the same rows with every measure of the suite out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from emotrace import arguments, judges, scoring
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompt
from emotrace.files import to_folder
from emotrace.judges import Judge, is_final
from emotrace.judges.base import in_order, record, same_judge
from emotrace.labels import EmotraceError
from emotrace.presets import preset
from emotrace.replies.row import Row, check_row, query_of
from emotrace.replies.texts import cleaned
from emotrace.runlog import Log
from emotrace.signatures import typed
from emotrace.sites import LanguageModel
from emotrace.suite.measures import of_text
from emotrace.suite.probability import EmotionClassifier
from emotrace.suite.raters import LexiconIntensity, Rater, unrated

PromptOf = Callable[[Row], Prompt | None]
COMMIT = 32
"""Ratings per append to a log."""


@typed
def measure(
    rows: Sequence[Row],
    *,
    model: LanguageModel | None = None,
    judge: Judge | None = None,
    topic: Rater | None = None,
    intensity: Rater | None = None,
    classifier: EmotionClassifier | None = None,
    prompt_of: PromptOf | None = None,
    batch_size: BatchSize = 32,
    out: str | Path | None = None,
    progress: bool = True,
) -> list[Row]:
    """Replies with ``measures``: name → number, NaN where it does not apply or nobody could say.

    Always those of `measures.of_text`. Where asked for: ``perplexity`` (reply tokens under the un-edited model after the plain
    prompt) and its logarithm ``nats_per_token``, whose mean one odd reply does not rule; ``on_target`` (1 where a blind judge
    reads the row's emotion); ``topic``; ``intensity``; ``emotion_probability`` (of the row's emotion) and
    ``emotional_probability`` (1 − that of neutral, where the classifier has that label). Only the reply is ever shown to
    lexicon, classifier and judges (to the topic rater the query beside it).

    Args:
        rows: replies with ``key``, ``method`` and ``gen_text``; with ``emotion`` for what depends on it, ``query`` (or
            ``question``, or ``scenario`` and ``event``) for the topic, ``token_ids`` for perplexity. Never changed.
        model: un-edited, from `emotrace.load`; rows that carry the perplexity of their reply under it keep it.
        judge: of `emotrace.judges.make`; rows that carry its ``verdict`` on their text keep it.
        topic: of `raters.make`.
        intensity: of `raters.make`.
        classifier: any text classifier; an emotion that it has no label for is an error before anything runs.
        prompt_of: row → its plain prompt; None takes `plain_prompt`.
        batch_size: of the forwards.
        out: folder for verdicts and ratings; the same call again asks for none of them twice.
        progress: show bars.

    Returns:
        New rows, in order.

    Raises:
        EmotraceError: for rows without what a measure needs, a verdict of another judge or on another text, or a folder whose
            verdicts and ratings are of other texts, questions or judges (the row and each difference are named).
    """
    arguments.batch("batch_size", batch_size)
    if out is not None:
        to_folder(out)
    for i, row in enumerate(rows):
        check_row(row, f"row {i} (key {row.get('key')!r})")
    found: list[Row] = [{**row, "measures": of_text(row)} for row in rows]
    if not found:
        raise EmotraceError("measure: there are no rows.")
    emotions = [str(row.get("emotion") or "") for row in found]
    aimed = [i for i, name in enumerate(emotions) if name]
    told = [i for i, row in enumerate(found) if query_of(row)]
    check_tools(rows, topic, intensity, classifier)
    prompts = None if model is None else _plain_ids(found, model, prompt_of or plain_prompt)
    folder = None if out is None else Path(out)
    with ExitStack() as stack:

        def log(name: str) -> Log | None:
            return None if folder is None else stack.enter_context(Log(folder / f"{name}.jsonl"))

        _judged(found, [i for i in aimed if "verdict" not in found[i]], judge, log, progress)
        if topic is not None:
            _rated(found, told, [query_of(found[i]) for i in told], "topic", topic, log, progress)
        if intensity is not None and aimed:
            _rated(found, aimed, [emotions[i] for i in aimed], "intensity", intensity, log, progress)
    if classifier is not None:
        _classified(found, emotions, classifier, progress)
    _perplexity(found, model, prompts, batch_size, progress)
    return found


def check_tools(
    rows: Sequence[Row],
    topic: Rater | None = None,
    intensity: Rater | None = None,
    classifier: EmotionClassifier | None = None,
) -> None:
    """Refuse rows that lack what these read, before any model is loaded; arguments as those of `measure`."""
    emotions = list(dict.fromkeys(str(row["emotion"]) for row in rows if row.get("emotion")))
    if classifier is not None:
        for name in emotions:
            classifier.columns(name)
    if topic is not None and not any(map(query_of, rows)):
        raise EmotraceError(
            "topic adherence needs rows with 'query' (or 'question', or 'scenario' and 'event'); without it: topic=None, "
            "--topic none."
        )
    if isinstance(intensity, LexiconIntensity):
        intensity.check(emotions)


def plain_prompt(row: Row) -> Prompt | None:
    """The prompt of a row without any emotion: its query as a user message, after SEV's system message where it is SEV's."""
    query = query_of(row)
    if not query:
        return None
    system = preset("emotion_circuits")["system_steered"] if row.get("scenario") and "query" not in row else ""
    before = ({"role": "system", "content": str(system)},) if system else ()
    return Prompt(str(row.get("key", "")), messages=(*before, {"role": "user", "content": query}))


def _judged(
    found: list[Row], todo: list[int], judge: Judge | None, log: Callable[[str], Log | None], progress: bool
) -> None:
    for row in found:
        made = ((row.get("meta") or {}).get("made") or {}).get("verdict")
        if judge is not None and made is not None and "verdict" in row:
            same_judge(f"row {row.get('key')!r}", made, record(judge, row["gen_text"]), judge, "its verdict")
    if judge is not None and todo:
        bare = [cast("Row", {k: v for k, v in found[i].items() if k != "measures"}) for i in todo]
        for i, row in zip(todo, judges.judge_rows(bare, judge, log=log("verdicts"), progress=progress), strict=True):
            found[i] = {**found[i], "verdict": row["verdict"], "meta": row["meta"]}
    for row in found:
        if "verdict" in row:
            match = row["verdict"].get("match")
            row["measures"]["on_target"] = math.nan if match is None else float(match)


def _rated(
    found: list[Row],
    which: list[int],
    asked: list[str],
    what: str,
    rater: Rater,
    log: Callable[[str], Log | None],
    progress: bool,
) -> None:
    """Write ``ratings.{what}`` and ``measures.{what}``; equal replies to the same thing are rated once."""
    kept = log(f"ratings_{what}")
    known: dict[tuple[str, str], Any] = {}
    stored = {} if kept is None else {kept.name_of(row): row for row in kept.rows()}
    texts = {i: cleaned(found[i]["gen_text"]) for i in which}
    for i, query in zip(which, asked, strict=True):
        row = None if kept is None else stored.get(kept.name_of(found[i]))
        if row is None:
            continue
        now = {**record(rater, texts[i]), "asked": query}
        same_judge(kept.path if kept else "", row.get("made"), now, rater, f"the rating of row {found[i]['key']!r}")
        known[texts[i], query] = row["rating"]
    pairs = [
        pair for pair in dict.fromkeys((texts[i], q) for i, q in zip(which, asked, strict=True)) if pair not in known
    ]
    of_pair: dict[tuple[str, str], list[int]] = {}
    for i, query in zip(which, asked, strict=True):
        of_pair.setdefault((texts[i], query), []).append(i)
    for start in range(0, len(pairs), COMMIT):
        part = pairs[start : start + COMMIT]
        live = [pair for pair in part if pair[0]]
        given = rater.rate([t for t, _ in live], [q for _, q in live], progress=progress) if live else []
        answers = in_order(given, len(live), rater.name)
        fresh = []
        for pair in part:
            known[pair] = next(answers) if pair[0] else {**unrated(), "judge": rater.name}
            if is_final(known[pair]):
                names = ("key", "method", "draw")
                fresh += [
                    {**{n: found[i][n] for n in names if n in found[i]}, "text": pair[0], "asked": pair[1],
                     "rating": known[pair], "made": {**record(rater, pair[0]), "asked": pair[1]}}
                    for i in of_pair[pair]
                ]  # fmt: skip
        if kept is not None and fresh:
            kept.append([row for row in fresh if row not in kept])
    for i, query in zip(which, asked, strict=True):
        rating = known[texts[i], query]
        found[i].setdefault("ratings", {})[what] = dict(rating)
        found[i]["measures"][what] = math.nan if rating["value"] is None else float(rating["value"])


def _classified(found: list[Row], emotions: list[str], classifier: EmotionClassifier, progress: bool) -> None:
    texts = list(dict.fromkeys(cleaned(row["gen_text"]) for row in found))
    table = dict(zip(texts, classifier.table(texts, progress=progress), strict=True))
    neutral = classifier.columns("neutral") if classifier.has_neutral else None
    for row, name in zip(found, emotions, strict=True):
        p: np.ndarray = table[cleaned(row["gen_text"])]
        if name:
            row["measures"]["emotion_probability"] = classifier.picked(p, classifier.columns(name))
        if neutral is not None:
            row["measures"]["emotional_probability"] = 1.0 - classifier.picked(p, neutral)


def _plain_ids(found: list[Row], model: LanguageModel, prompt_of: PromptOf) -> list[list[int]]:
    """The token ids of every row's plain prompt, after checking that its reply can be scored after it."""
    if not model.sites.encoder.causal:
        raise EmotraceError(f"{model.sites.model_class} is a masked model: replies have no perplexity under it.")
    prompts: list[Prompt] = []
    for i, row in enumerate(found):
        prompt = prompt_of(row)
        if prompt is None or row.get("token_ids") is None:
            raise EmotraceError(
                f"row {row.get('key')!r}: perplexity needs 'token_ids' and the prompt ('query', or 'scenario' and 'event')."
            )
        prompts.append(replace(prompt, key=str(i), reply_ids=tuple(row["token_ids"])))
    return model.sites.encoder.ids(prompts)


def _perplexity(
    found: list[Row],
    model: LanguageModel | None,
    prompts: Sequence[Sequence[int]] | None,
    batch_size: BatchSize,
    progress: bool,
) -> None:
    if model is not None and prompts is not None:
        scoring.score_rows(model, found, prompts, batch_size, progress)
    for row in found:
        if "perplexity" in (row.get("meta") or {}):
            value = row["meta"]["perplexity"]
            row["measures"]["perplexity"] = math.nan if value is None else float(value)
            row["measures"]["nats_per_token"] = math.nan if value is None else math.log(value)
