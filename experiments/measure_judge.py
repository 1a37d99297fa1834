"""How far judges can be trusted: on replies that were published, and on texts that people labelled.

1. A judge on both published sets: the accepted replies of EmotionCircuits, and GoEmotions' rows with one label of the six.
2. Judges made here (``--fit``): from the replies, tested on the human labels; and from human labels, on rows that they had not
   seen, on the replies; and from both. Recall of each emotion and macro-F1 with intervals; below .70 a judge carries no claim.
3. The agreement of two judges (``--second``) on both sets, beyond chance.

The sets are read from ``$EMOTRACE_ORACLES`` and are never copied into the project. Rows of GoEmotions count if they have one
label, and that is one of the six emotions (joy for happiness).

    EMOTRACE_ORACLES=… python experiments/measure_judge.py --judge lexicon --fit --second likelihood:ID_OR_DIR
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from emotrace import cli, datasets, judges, stats
from emotrace.cli.options import Judge, Seed
from emotrace.disk import write_json
from emotrace.files import read_jsonl
from emotrace.judges.measurement import compared, labelled
from emotrace.labels import ALIASES, EMOTIONS, EmotraceError

HELD_OUT = 0.25
"""Share of the human-labelled rows that a judge made from the others is tested on."""
CHARACTERS, LAYERS, FOLDS = (2, 5), (0, 8), 10
"""Of the judge of both sets."""
ON = ("published replies", "GoEmotions, single label")
Rows = list[dict[str, Any]]


class Asked(NamedTuple):
    """A set that judges are asked about."""

    on: str
    texts: list[str]
    labels: list[str]
    groups: np.ndarray

    @classmethod
    def of(cls, rows: Rows, on: str, limit: int | None, seed: int) -> Asked:
        """The rows, or some of them, drawn by lot."""
        if limit is not None and limit < len(rows):
            rows = [rows[i] for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:limit])]
        found = labelled(rows, "emotion", None, "skeleton_id" if "skeleton_id" in rows[0] else None)
        return cls(on, found.texts, found.labels, found.groups)


def main(
    judge: Judge = "lexicon",
    second: Annotated[str | None, typer.Option(help="another judge, measured too, and its agreement with the first")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="make judges from both sets, and test each on what it has not seen")] = False,
    embeddings: Annotated[str | None, typer.Option(help="with --fit: whose layers 0 and 8 a judge of both sets reads")] = None,
    replies: Annotated[Path | None, typer.Option(help="accepted replies in the published form, in the place of those")] = None,
    comments: Annotated[Path | None, typer.Option(help="a file of GoEmotions in the place of its development rows")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="rows of each set, drawn by lot")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the figures and the judges that were made")] = None,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Print accuracy, recall, macro-F1 and confusion on both sets; with --out, write them and the judges that were made."""
    named = [judges.make(spec) for spec in (judge, second) if spec]
    both = (read_replies(replies), read_comments(comments))
    some = [Asked.of(rows, name, limit, seed) for rows, name in zip(both, ON, strict=True)]
    said = [[[v["predicted"] for v in one.judge(asked.texts, progress=True)] for asked in some] for one in named]
    measured = [
        compared(one.name, asked.on, asked.labels, [a or "unjudged" for a in mine], asked.groups, seed=seed)
        for one, answers in zip(named, said, strict=True)
        for asked, mine in zip(some, answers, strict=True)
    ]
    made = fitted(*both, embeddings, seed) if fit else []
    for one in made:
        print(f"{one.name}: {one.card['n']} rows, {one.card['folds']} folds of {one.card['n_groups']} groups; expected error of "
              f"its probabilities {one.card['cross_validated']['calibration']['expected_error']:.1%}")  # fmt: skip
        crossed = {k: v for k, v in one.card["cross_validated"].items() if k != "calibration"}
        measured += [judges.Measurement.of(crossed), *one.tested]
    for found in measured:
        print(found, end="\n\n")
    for one in (*named, *made):
        found = judges.standing(one)
        print(f"{'may carry a claim' if found.may_claim else 'MAY CARRY NO CLAIM'}: {found.why}")
    agreement = {}
    for asked, (one, other) in zip(some, zip(*said, strict=True), strict=True) if second else ():
        kappa = stats.cohen_kappa(one, other, asked.groups, seed=seed)
        print(f"{named[0].name} and {named[1].name} on {asked.on}: Cohen's kappa {kappa}")
        agreement[asked.on] = kappa._asdict()
    if out is not None:
        for one in made:
            one.save(out / one.name.partition(":")[2])
        write_json(out / "measured.json", {"measured": [m.record for m in measured], "agreement": agreement})
        print(f"figures and judges in {out}")


def read_replies(file: Path | None) -> Rows:
    """Accepted replies with their emotion and skeleton."""
    fields = ("gen_text", "emotion", "skeleton_id")
    found = read_jsonl(file or _published("emotion_circuits/labeled_sev/accepted.jsonl"))
    return [{name: row[name] for name in fields} for _, row in found]


def read_comments(file: Path | None) -> Rows:
    """Comments of one label, which is one of the six emotions."""
    back = {v: k for k, v in ALIASES.items()}
    found = datasets.goemotions(file or _published("goemotions/dev.csv"), emotions=[back.get(e, e) for e in EMOTIONS])
    return [{"gen_text": p.text, "emotion": ALIASES.get(e := str(p.labels["emotion"]), e)} for p in found]


def _published(name: str) -> Path:
    """A published artefact.

    Raises:
        EmotraceError: where they are not at hand.
    """
    folder = os.environ.get("EMOTRACE_ORACLES", "")
    if not folder or not Path(folder).is_dir():
        raise EmotraceError(
            "set EMOTRACE_ORACLES to the folder with the published artefacts; it is not part of the project."
        )
    return Path(folder) / name


def fitted(replies: Rows, comments: Rows, embeddings: str | None, seed: int) -> list[judges.FittedJudge]:
    """A judge from the replies and one from three quarters of the comments, each tested on what it was not made from.

    And one of both sets, which weighs characters and, with ``embeddings``, what that model makes of a text; what its folds say of
    each set is its measurement. Settings are `fit`'s but for these.
    """
    order = np.random.default_rng(seed).permutation(len(comments))
    held = set(order[: round(HELD_OUT * len(comments))].tolist())
    test = [row for i, row in enumerate(comments) if i in held]
    seen = {row["gen_text"] for row in test}
    train = [row for i, row in enumerate(comments) if i not in held and row["gen_text"] not in seen]
    of_replies = judges.fit(replies, name="published_replies", groups="skeleton_id", seed=seed)
    of_people = judges.fit(train, name="goemotions", seed=seed)
    together = [
        {**row, "group": row.get("skeleton_id", f"comment {i}"), "on": on}
        for on, rows in zip(ON, (replies, comments), strict=True)
        for i, row in enumerate(rows)
    ]
    of_both = judges.fit(
        together, name="people_and_replies", groups="group", sets="on", ngrams=None, characters=CHARACTERS,
        embeddings=embeddings, layers=None if embeddings is None else LAYERS, folds=FOLDS, seed=seed,
    )  # fmt: skip
    return [
        of_both,
        of_replies.test(comments, on="GoEmotions, single label"),
        of_people.test(test, on="GoEmotions rows that it was not made from").test(
            replies, on="published replies", groups="skeleton_id"
        ),
    ]


if __name__ == "__main__":
    cli.experiment(main)
