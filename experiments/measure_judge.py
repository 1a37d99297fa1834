"""Accuracy of a judge on the published sets: 2,847 accepted replies of EmotionCircuits, and GoEmotions' development rows.

The sets are read from ``$EMOTRACE_ORACLES`` and are never copied into the project. Rows of GoEmotions count if they have
one label, and that is one of the six emotions (joy for happiness).

    EMOTRACE_ORACLES=… python experiments/measure_judge.py --judge lexicon
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from emotrace import cli, judges
from emotrace.cli.options import Judge
from emotrace.datasets import read_jsonl
from emotrace.labels import ALIASES, ANSWERS, EMOTIONS, EmotraceError


def main(
    judge: Judge = "lexicon",
) -> None:
    """Print accuracy and confusion on both sets."""
    folder = os.environ.get("EMOTRACE_ORACLES", "")
    if not folder or not Path(folder).is_dir():
        raise EmotraceError(
            "set EMOTRACE_ORACLES to the folder with the published artefacts; it is not part of the project."
        )
    replies = [row for _, row in read_jsonl(Path(folder) / "emotion_circuits" / "labeled_sev" / "accepted.jsonl")]
    comments = pd.read_csv(Path(folder) / "goemotions" / "dev.csv")
    names = [str(c) for c in comments.columns if c not in ("text", "classes", "ids")]
    single = comments[comments[names].sum(axis=1) == 1]
    first = [names[i] for i in np.asarray(single[names]).argmax(axis=1)]
    label = pd.Series([ALIASES.get(name, name) for name in first], index=single.index)
    kept = label.isin(EMOTIONS)
    the_judge = judges.make(judge)
    report(the_judge, "published replies", [r["gen_text"] for r in replies], [r["emotion"] for r in replies])
    report(the_judge, "GoEmotions, single label", single["text"][kept].tolist(), label[kept].tolist())


def report(judge: judges.Judge, name: str, texts: list[str], labels: list[str]) -> None:
    """Accuracy and confusion on one set."""
    answers = [v["predicted"] or "unjudged" for v in judge.judge(texts)]
    right = sum(a == b for a, b in zip(answers, labels, strict=True))
    print(f"{judge.name} on {name}: {right / len(labels):.1%} of {len(labels)}")
    table = pd.crosstab(pd.Series(labels, name="label"), pd.Series(answers, name="answer"))
    print(
        table.reindex(index=EMOTIONS, columns=[a for a in (*ANSWERS, "unjudged") if a in table.columns], fill_value=0),
        end="\n\n",
    )


if __name__ == "__main__":
    cli.experiment(main)
