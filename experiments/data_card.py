"""Print the variety figures of SEV files, as the data card of ``data/`` has them.

Method. For each file: words, distinct words, distinct two-word openings of scenarios, nearest-neighbour Jaccard of
content words (scenarios alone, scenarios with events), and the texts that name an emotion; between files: the largest
Jaccard, so that training and test scenarios can be seen to be disjoint. Definitions: ``emotrace/datasets/card.py``.

    python experiments/data_card.py                  # the files of this project
    python experiments/data_card.py FILE FILE        # any SEV files
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from emotrace.datasets import Skeleton, read_jsonl, read_sev
from emotrace.datasets.card import emotion_words, figures, nearest, whole

DATA = Path(__file__).resolve().parent.parent / "data"
SEV_FILES = ("sev.jsonl", "test_set.jsonl", "confirm_set.jsonl")
CORPUS = "tiny_corpus.jsonl"
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


def corpus_told(rows: list[dict[str, Any]]) -> str:
    """What the tiny model's corpus holds, in a line."""
    kinds = Counter(row["kind"] for row in {row["source_id"]: row for row in rows}.values())
    by_emotion = Counter(row["emotion"] for row in rows)
    n_words = sum(len(row["reply"].split()) for row in rows)
    counts = ", ".join(f"{name} {n:,}" for name, n in (*kinds.items(), *by_emotion.items()))
    return f"{CORPUS}: {len(rows):,} replies, {n_words:,} words; {counts}"


def main(files: Annotated[list[Path] | None, typer.Argument()] = None) -> None:
    """Print the figures of FILES (default: those of this project, and how near its corpus comes to them)."""
    chosen = files or [DATA / name for name in SEV_FILES]
    sets = {path.name if len({p.name for p in chosen}) == len(chosen) else str(path): read_sev(path) for path in chosen}
    published = {} if files else {"SEV as published": PUBLISHED}
    print(table({name: figures(s) for name, s in sets.items()} | published))
    for name, skeletons in sets.items():
        for ident, word, text in emotion_words(skeletons):
            print(f"{name}: {ident} says {word!r}: {text}")
    if not files:
        rows = [row for _, row in read_jsonl(DATA / CORPUS)]
        sets = {CORPUS: corpus_skeletons(rows), **sets}
        print(corpus_told(rows))
    if len(sets) > 1:
        print(closeness(sets))


if __name__ == "__main__":
    typer.run(main)
