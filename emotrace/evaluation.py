"""Evaluation: prompts answered under edits, the replies judged and measured; every step in a file that continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from emotrace import disk, judges, scoring
from emotrace.arguments import BatchSize
from emotrace.datasets import Prompt, Prompts
from emotrace.defaults import MAX_NEW_TOKENS
from emotrace.edits import Edit, edits_digest
from emotrace.forwards.generated import text_of
from emotrace.forwards.generation import generate
from emotrace.identity import made_by
from emotrace.judges import Judge
from emotrace.labels import EmotraceError
from emotrace.replies.fluency import add_length_and_repetition, mark_fluent
from emotrace.replies.openings import Opening
from emotrace.replies.row import Row
from emotrace.replies.table import Bounds
from emotrace.runlog import Log
from emotrace.sites import LanguageModel

SKIPPED: Final = 2
"""Tokens that `Evaluation.from_third` leaves out."""


@dataclass(frozen=True)
class Evaluation:
    """What all arms of one comparison share, so that they differ by prompts and edits alone.

    Attributes:
        model: from `emotrace.load`; causal.
        judge: of `emotrace.judges.make`; None where nothing is judged.
        folder: of the files; None keeps none.
        decoding: arguments of `emotrace.generate`.
        batch_size: prompts per batch.
        seed: of sampling.
        target: ask the judge the published target-aware question as well.
        progress: show bars.
    """

    model: LanguageModel
    judge: Judge | None = None
    folder: str | Path | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    batch_size: BatchSize = 32
    seed: int = 0
    target: bool = False
    progress: bool = True

    def file(self, name: str) -> Path | None:
        """A file of the folder; None where none is kept."""
        return None if self.folder is None else Path(self.folder) / name

    def decoding_of(self, method: str) -> Mapping[str, Any]:
        """Arguments of `emotrace.generate` for one method: of all the same."""
        return self.decoding

    def generated(
        self, name: str, prompts: Prompts, edits: Sequence[Edit] = (), *, method: str = "none", draw: int = 0,
        **options: Any,
    ) -> list[Row]:  # fmt: skip
        """Replies, kept in ``{name}.jsonl``.

        Args:
            name: of the file.
            prompts: to answer.
            edits: applied while answering.
            method: label of the rows.
            draw: of a random method.
            options: of `emotrace.generate`, beside those of the method.
        """
        common: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed, "progress": self.progress}
        out = self.file(f"{name}.jsonl")
        options = {**common, **self.decoding_of(method), **options}
        return generate(self.model, prompts, edits, method=method, draw=draw, out=out, **options)

    def begun(
        self, name: str, prompts: Prompts, openings: Mapping[Any, Opening], *, method: str, label: str = "emotion"
    ) -> list[Row]:
        """Judged replies of the un-edited model that begin as most do, no longer than those that begin by themselves.

        Args:
            name: of the file.
            prompts: that name no emotion, with the label that chooses the opening.
            openings: of `replies.openings`.
            method: label of the rows.
            label: whose values have openings.
        """
        told = [{"key": p.key, "token_ids": list(openings[p.labels[label]].token_ids)} for p in prompts]
        most = self.decoding_of(method).get("max_new_tokens", MAX_NEW_TOKENS) - max(
            len(one["token_ids"]) for one in told
        )
        begun = prompts.with_replies(told)
        rows = self.generated(name, begun, method=method, prefill=True, max_new_tokens=max(1, most))
        return self.judged(name, rows)

    def judged(self, name: str, rows: Sequence[Row]) -> list[Row]:
        """The rows with verdicts, kept in ``{name}.verdicts.jsonl``.

        Raises:
            EmotraceError: where there is no judge, and as `emotrace.judges.judge_rows`.
        """
        if self.judge is None:
            raise EmotraceError(f"evaluation: {name!r} is to be judged, and no judge was given.")
        path = self.file(f"{name}.verdicts.jsonl")
        with nullcontext() if path is None else Log(path) as log:
            return judges.judge_rows(rows, self.judge, log=log, target=self.target, progress=self.progress)

    def from_third(self, name: str, rows: Sequence[Row]) -> list[Row]:
        """The rows with ``verdict_from_third``: of the reply from its third token on, kept in ``{name}.third.verdicts.jsonl``.

        Raises:
            EmotraceError: as `judged`.
        """
        encoder = self.model.sites.encoder
        cut: list[Row] = [
            {**row, "gen_text": text_of(encoder, row["token_ids"][SKIPPED:]), "token_ids": row["token_ids"][SKIPPED:]}
            for row in rows
        ]
        found = replace(self, target=False).judged(f"{name}.third", cut)
        return [{**row, "verdict_from_third": one["verdict"]} for row, one in zip(rows, found, strict=True)]

    def second_opinion(self, rows: Sequence[Row], judge: Judge) -> list[Row]:
        """The rows with another judge's verdict as ``verdict_second``, kept in ``second.verdicts.jsonl``.

        What one judge chose, another tests: settings that suit the mistakes of the first gain nothing from the second.
        """
        path = self.file("second.verdicts.jsonl")
        with nullcontext() if path is None else Log(path) as log:
            told = judges.judge_rows(rows, judge, log=log, progress=self.progress)
        return [{**row, "verdict_second": other["verdict"]} for row, other in zip(rows, told, strict=True)]

    def replies(
        self, name: str, prompts: Prompts, edits: Sequence[Edit] = (), *, method: str = "none", draw: int = 0
    ) -> list[Row]:
        """`generated`, then `judged`."""
        return self.judged(name, self.generated(name, prompts, edits, method=method, draw=draw))

    def measured(
        self, rows: list[Row], plain: Prompts, bounds: Bounds | None = None, name: str | None = None
    ) -> list[Row]:
        """The same rows with perplexity after their plain prompts, length, repetition and, with bounds, what is fluent.

        Args:
            rows: of `generated`.
            plain: prompts that perplexity is measured after.
            bounds: of what is fluent.
            name: of the file ``{name}.scores.jsonl`` that keeps perplexity; None keeps none.
        """
        kept = None if name is None else self.file(f"{name}.scores.jsonl")
        scoring.add_perplexity(self.model, rows, by_key(plain), self.batch_size, self.progress, kept)
        add_length_and_repetition(rows)
        if bounds is not None:
            mark_fluent(rows, bounds)
        return rows

    def divergence(
        self,
        aimed: Prompts,
        base: Sequence[Row],
        prompts: Prompts,
        edits: Sequence[Edit],
        name: str | None = None,
    ) -> dict[str, float]:
        """KL(base ‖ edited) along the un-edited model's own replies, in nats a token: the same whatever the edited model writes.

        Args:
            aimed: ``prompts``, once for each emotion.
            base: replies of the un-edited model to ``prompts``.
            prompts: plain prompts.
            edits: of one arm; none moves nothing.
            name: of the file ``{name}.scores.jsonl`` that keeps them; None keeps none.

        Returns:
            By key of ``aimed``; prompts whose reply is empty are left out.
        """
        if not edits:
            return dict.fromkeys(aimed.keys, 0.0)
        asked, replies = plain_of(prompts, aimed), {row["key"]: row["token_ids"] for row in base}
        told = [{"key": p.key, "token_ids": replies[asked[p.key]]} for p in aimed if replies[asked[p.key]]]
        if not told:
            return {}
        forced = aimed.with_replies(told)
        scored = scoring.Scored(None if name is None else self.file(f"{name}.scores.jsonl"), "kl")
        by, ids = [made_by(self.model), edits_digest(edits)], self.model.sites.encoder.ids(forced)
        made = {p.key: disk.digest([by, i, p.reply_ids, p.about]) for p, i in zip(forced, ids, strict=True)}
        lacking = [p for p in forced if made[p.key] not in scored.values]
        if lacking:
            values = scoring.kl(self.model, lacking, edits, self.batch_size).tolist()
            scored.add({made[p.key]: value for p, value in zip(lacking, values, strict=True)})
        return {key: value for key, digest in made.items() if (value := scored.values[digest]) is not None}


def plain_of(prompts: Prompts, aimed: Prompts) -> dict[str, str]:
    """The key of the plain prompt that each prompt of ``prompts.for_each(emotion=…)`` repeats."""
    times = len(aimed) // len(prompts)
    return {p.key: prompts[i // times].key for i, p in enumerate(aimed)}


def repeated(base: Sequence[Row], prompts: Prompts, aimed: Prompts) -> list[Row]:
    """One reply of the un-edited model for all emotions: the rows of plain prompts, once for each emotion aimed at."""
    asked, of = plain_of(prompts, aimed), {row["key"]: row for row in base}
    rows = []
    for p in aimed:
        row = of[asked[p.key]]
        rows.append({**row, "key": p.key, **p.labels, "meta": dict(row["meta"])})
    return rows


def by_key(prompts: Prompts) -> dict[str, Prompt]:
    """Prompts by their keys."""
    return {p.key: p for p in prompts}
