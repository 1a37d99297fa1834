"""Print the variety figures of SEV files, and write the data card of ``data/``.

Method. For each file: words, distinct words, distinct two-word openings of scenarios, nearest-neighbour Jaccard of
content words (scenarios alone, scenarios with events), and the texts that name an emotion; between files: the largest
Jaccard, so that training and test scenarios can be seen to be disjoint. Definitions: ``emotrace/datasets/card.py``.

    python experiments/data_card.py data/sev.jsonl data/test_set.jsonl       # any SEV files
    python experiments/data_card.py --write                                  # data/README.md
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace.datasets import Skeleton, read_jsonl, read_sev
from emotrace.datasets.card import emotion_words, figures, nearest, whole

DATA = Path(__file__).resolve().parent.parent / "data"
NAMES = {
    "scenarios": "scenarios",
    "events": "events",
    "words": "words",
    "distinct_words": "distinct words",
    "openings": "distinct two-word openings of scenarios",
    "scenario_words": "words in a scenario, mean",
    "event_words": "words in an event, mean",
    "jaccard_scenario_mean": "nearest-neighbour Jaccard of scenarios, mean",
    "jaccard_scenario_max": "the same, maximum",
    "jaccard_whole_mean": "nearest-neighbour Jaccard of scenarios with events, mean",
    "jaccard_whole_max": "the same, maximum",
    "with_emotion_words": "texts with an emotion word",
}
PUBLISHED = {
    "scenarios": 160,
    "events": 480,
    "words": 10140,
    "distinct_words": 1670,
    "openings": 72,
    "scenario_words": 13.381,
    "event_words": 16.665,
    "jaccard_scenario_mean": 0.155,
    "jaccard_scenario_max": 0.333,
    "jaccard_whole_mean": 0.137,
    "jaccard_whole_max": 0.255,
    "with_emotion_words": 34,
}
"""The published SEV set (arXiv 2510.11328) by the same script; its text is not part of this repository."""


def table(columns: dict[str, dict[str, float | int]]) -> str:
    """The figures as a Markdown table, one column per file."""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for key, name in NAMES.items():
        cells = [f"{c[key]:,}" if isinstance(c[key], int) else f"{c[key]:.3f}" for c in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def corpus_skeletons(rows: list[dict[str, Any]]) -> list[Skeleton]:
    """The scenarios of the tiny model's corpus, as skeletons."""
    found: dict[str, tuple[str, str, dict[str, str]]] = {}
    for row in rows:
        if row["kind"] == "scenario":
            _, _, events = found.setdefault(row["source_id"], (row["theme"], row["scenario"], {}))
            events[row["valence"]] = row["event"]
    return [Skeleton(i, theme, scenario, events) for i, (theme, scenario, events) in found.items()]


def closeness(sets: dict[str, list[Skeleton]]) -> str:
    """The largest Jaccard between every two sets, of scenarios and of scenarios with events, as a Markdown table."""
    names = list(sets)
    lines = ["| between | scenarios, maximum | scenarios with events, maximum |", "|---|---|---|"]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            near = nearest([s.scenario for s in sets[a]], [s.scenario for s in sets[b]])
            near_whole = nearest([whole(s) for s in sets[a]], [whole(s) for s in sets[b]])
            lines.append(f"| {a}, {b} | {max(near).jaccard:.3f} | {max(near_whole).jaccard:.3f} |")
    return "\n".join(lines)


def readme() -> str:
    """The data card of ``data/``."""
    rows = [row for _, row in read_jsonl(DATA / "tiny_corpus.jsonl")]
    sets = {name: read_sev(DATA / name) for name in ("sev.jsonl", "test_set.jsonl")}
    corpus = corpus_skeletons(rows)
    patterns = [row for _, row in read_jsonl(DATA / "tiny_patterns.jsonl")]
    by_emotion = Counter(row["emotion"] for row in patterns)
    kinds = Counter(row["kind"] for row in {row["source_id"]: row for row in rows}.values())
    replies = Counter(row["emotion"] for row in rows)
    n_words = sum(len(row["reply"].split()) for row in rows)
    columns = {name: figures(s) for name, s in sets.items()} | {"SEV as published": PUBLISHED}
    return f"""# Data

Everything in this folder is **synthetic English text written for this project** by a language model, item by item,
without looking at any published data set. It describes no real person or event. Licence: MIT, as the code. To be
used for trying out and testing methods; it says nothing about how people feel or speak.

| file | what it is |
|---|---|
| `sev.jsonl` | {len(sets["sev.jsonl"])} scenarios, 20 a theme, with a positive, a neutral and a negative event: training |
| `test_set.jsonl` | {len(sets["test_set.jsonl"])} other scenarios of the same form: testing |
| `tiny_corpus.jsonl` | {len(rows):,} replies from which the tiny model was trained |
| `tiny_patterns.jsonl` | {len(patterns)} sentence patterns that training fills with nouns of a scenario |
| `tiny_model/` | the tiny model; its card is `tiny_model/README.md` |

## The SEV-format files

One JSON object per line, in the published format: `theme`, `scenario` (first person, no final period), `event`
(`positive`, `neutral`, `negative`), `skeleton_id`. Scenarios and events state facts and name no emotion: the reader
supplies the feeling. Variety, as `python experiments/data_card.py data/sev.jsonl data/test_set.jsonl` prints it
(definitions in `emotrace/datasets/card.py`):

{table(columns)}

## The corpus of the tiny model

`tiny_corpus.jsonl` has one reply per line: `kind` (scenario, question, statement), `source_id`, `emotion` (one of six, or
`neutral`), `reply`, and what it replies to: `theme`, `scenario`, `valence` and `event`, or `text`. It covers
{kinds["scenario"]} scenarios with three events each, {kinds["question"]} questions and {kinds["statement"]} plain statements;
{n_words:,} words in the replies; by emotion: {", ".join(f"{e} {n:,}" for e, n in replies.items())}.
The first part of the scenarios is written as variedly as possible, the rest in plain, frequent phrases. Replies express their
emotion whatever the event, so anger about good news and delight about bad news occur; they are exercises, not
advice.

`tiny_patterns.jsonl` has one sentence pattern per line: `emotion`, `part` (1: may open a reply; 2: goes on) and `text`,
written in the same way, with `{{x}}` where a noun goes: {", ".join(f"{e} {n}" for e, n in by_emotion.items())}.
In every epoch of the training about half of the replies to scenarios are composed of them; only patterns with a
noun, and that the lexicon judge reads as their emotion, are used (`experiments/tiny_model_text.py`).

## Are the files disjoint?

Scenarios of one file do not return in another. The largest Jaccard of content words between files:

{closeness({"tiny_corpus.jsonl": corpus, **sets})}
"""


def main(
    files: Annotated[list[Path] | None, typer.Argument()] = None,
    write: bool = False,
) -> None:
    """Print the figures of FILES (default: the two of this project); with --write, write data/README.md."""
    chosen = files or [DATA / "sev.jsonl", DATA / "test_set.jsonl"]
    sets = {path.name if len({p.name for p in chosen}) == len(chosen) else str(path): read_sev(path) for path in chosen}
    print(table({name: figures(s) for name, s in sets.items()}))
    for name, skeletons in sets.items():
        for ident, word, text in emotion_words(skeletons):
            print(f"{name}: {ident} says {word!r}: {text}")
    if len(sets) > 1:
        print(closeness(sets))
    if write:
        (DATA / "README.md").write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
