"""The shipped data: format, variety no less than the published set, disjoint files, a whole corpus."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from emotrace.datasets import card, read_jsonl, read_sev, sev
from emotrace.datasets.sev import Skeleton
from emotrace.labels import ANSWERS, THEMES, VALENCES, EmotraceError

DATA = Path(__file__).resolve().parent.parent / "data"
SEV_FILES = ("sev.jsonl", "test_set.jsonl")


@pytest.fixture(scope="module")
def corpus():
    return [row for _, row in read_jsonl(DATA / "tiny_corpus.jsonl")]


@pytest.mark.parametrize("name", SEV_FILES)
def test_sev_files_have_the_published_format(name):
    rows = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    assert len(rows) == 160
    tag = "_test" if name == "test_set.jsonl" else ""
    expected = [(f"{prefix}{tag}_{i:02d}", theme) for prefix, theme in THEMES.items() for i in range(20)]
    assert [(r["skeleton_id"], r["theme"]) for r in rows] == expected
    for row in rows:
        assert list(row) == ["theme", "scenario", "event", "skeleton_id"]
        assert list(row["event"]) == list(VALENCES)
        assert not row["scenario"].endswith(".")
        assert re.search(r"\b(?:I|my|me|we|our|us)\b", row["scenario"], re.IGNORECASE)
        assert all(event.endswith(".") for event in row["event"].values())
        assert all(text.isascii() for text in (row["scenario"], *row["event"].values()))


@pytest.mark.parametrize("name", SEV_FILES)
def test_variety_is_no_less_than_the_published_set(name):
    found = card.figures(DATA / name)
    assert found["distinct_words"] / found["words"] >= 1670 / 10140
    assert found["distinct_words"] >= 1670
    assert found["openings"] >= 72
    assert found["jaccard_scenario_mean"] <= 0.15
    assert found["jaccard_scenario_max"] <= 0.31
    assert found["with_emotion_words"] == 0


def test_files_share_no_scenario(corpus):
    sets = {name: read_sev(DATA / name) for name in SEV_FILES}
    sets["corpus"] = list(
        {
            r["source_id"]: Skeleton(r["source_id"], r["theme"], r["scenario"], {})
            for r in corpus
            if r["kind"] == "scenario"
        }.values()
    )
    for a, b in (("sev.jsonl", "test_set.jsonl"), ("corpus", "sev.jsonl"), ("corpus", "test_set.jsonl")):
        near = max(card.nearest([s.scenario for s in sets[a]], [s.scenario for s in sets[b]]))
        assert near.jaccard < 0.35, near


def test_corpus_is_whole(corpus):
    groups = {}
    for row in corpus:
        assert row["emotion"] in ANSWERS
        assert row["kind"] in ("scenario", "question", "statement")
        assert row["reply"].isascii()
        assert 3 <= len(row["reply"].split()) <= 60
        groups.setdefault((row["source_id"], row.get("valence")), []).append(row["emotion"])
    for (source_id, _), emotions in groups.items():
        assert len(set(emotions)) == len(emotions)
        assert set(emotions) == set(ANSWERS) if source_id.startswith("scenario") else "neutral" in emotions
    sources = Counter(source_id for source_id, _ in groups)
    assert all(n == (3 if s.startswith("scenario") else 1) for s, n in sources.items())
    scenarios = sum(s.startswith("scenario") for s in sources)
    assert scenarios >= 200
    assert len(sources) - scenarios >= 200


def test_patterns_have_a_part_and_an_emotion():
    patterns = [row for _, row in read_jsonl(DATA / "tiny_patterns.jsonl")]
    assert {(p["emotion"], p["part"]) for p in patterns} == {(e, part) for e in ANSWERS for part in (1, 2)}
    assert len({p["text"] for p in patterns}) >= 0.98 * len(patterns)
    assert sum("{x}" in p["text"] for p in patterns) > 0.8 * len(patterns)
    assert all(p["text"].isascii() and p["text"][-1] in ".!?" for p in patterns)


def test_prompts_have_the_size_of_the_paper():
    assert len(sev(DATA / "sev.jsonl")) == 2880
    assert len(sev(DATA / "sev.jsonl", instruction=False)) == 480


# -- the figures themselves, on texts whose answer is known -------------------------------------------------------


def skeleton(scenario, event="It rained.", ident="a_00"):
    return Skeleton(ident, "Work/Job", scenario, {"neutral": event})


def test_figures_by_hand():
    found = card.figures(
        [
            skeleton("I painted the blue door", "Rain came."),
            skeleton("I painted a red door", "Snow came."),
            skeleton("We sold bread", "Nobody ate."),
        ]
    )
    assert (found["scenarios"], found["events"], found["words"]) == (3, 3, 5 + 5 + 3 + 2 + 2 + 2)
    assert found["distinct_words"] == 15  # i painted the blue door a red we sold bread rain came snow nobody ate
    assert found["openings"] == 2
    # {painted, blue, door} and {painted, red, door} share 2 of 4; {sold, bread} shares nothing
    assert found["jaccard_scenario_max"] == 0.5
    assert found["jaccard_scenario_mean"] == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_nearest_agrees_with_sets():
    texts = [s.scenario for s in read_sev(DATA / "sev.jsonl")[:30]]
    for i, found in enumerate(card.nearest(texts)):
        sets = [card.content_words(t) for t in texts]
        slow = max(len(sets[i] & s) / len(sets[i] | s) for j, s in enumerate(sets) if j != i)
        assert found.jaccard == pytest.approx(slow)
        assert found.text == texts[i]
        assert found.nearest != texts[i]


def test_nearest_among_others_finds_a_copy():
    (found,) = card.nearest(["I baked bread"], ["We sold a boat", "My brother baked bread"])
    assert found.nearest == "My brother baked bread"
    assert found.jaccard == pytest.approx(2 / 3)


def test_nearest_needs_two_texts():
    with pytest.raises(EmotraceError, match="at least two texts"):
        card.nearest(["alone"])


def test_emotion_words_are_found():
    found = card.emotion_words([skeleton("I was so Angry at the door"), skeleton("I sang", "They loved it.", "a_01")])
    assert [(ident, word) for ident, word, _ in found] == [("a_00", "Angry"), ("a_01", "loved")]
    assert card.emotion_words([skeleton("I wore a glove in the hangar", "A fan fell into the gladiolus.")]) == []
