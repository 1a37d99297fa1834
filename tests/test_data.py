"""The shipped data: format, variety no less than the published set, disjoint files, a whole corpus."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from emotrace.datasets import card, elicitations, read_jsonl, read_sev, sev
from emotrace.datasets.sev import Skeleton
from emotrace.labels import ANSWERS, THEMES, VALENCES, EmotraceError

DATA = Path(__file__).resolve().parent.parent / "data"
SEV_FILES = {"sev.jsonl": ("", 20), "test_set.jsonl": ("_test", 20), "confirm_set.jsonl": ("_confirm", 10)}
"""File → what its skeleton ids have behind the theme, and how many scenarios a theme has."""
PUBLISHED = {"distinct_words": 1670, "words": 10140, "openings": 72, "scenarios": 160}


@pytest.fixture(scope="module")
def corpus():
    return [row for _, row in read_jsonl(DATA / "tiny_corpus.jsonl")]


@pytest.mark.parametrize("name", SEV_FILES)
def test_sev_files_have_the_published_format(name):
    rows = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    tag, n = SEV_FILES[name]
    expected = [(f"{prefix}{tag}_{i:02d}", theme) for prefix, theme in THEMES.items() for i in range(n)]
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
    found, share = card.figures(DATA / name), SEV_FILES[name][1] / 20
    assert found["distinct_words"] / found["words"] >= PUBLISHED["distinct_words"] / PUBLISHED["words"]
    assert found["distinct_words"] >= share * PUBLISHED["distinct_words"]
    assert found["openings"] >= share * PUBLISHED["openings"]
    assert found["jaccard_scenario_mean"] <= 0.15
    assert found["jaccard_scenario_max"] <= 0.31
    assert found["with_emotion_words"] == 0


def scenarios(corpus):
    """Every set of texts, by its file: scenarios of the SEV files and of the corpus, and what models are asked elsewhere."""
    found = {name: [s.scenario for s in read_sev(DATA / name)] for name in SEV_FILES}
    found["tiny_corpus.jsonl"] = list({r["source_id"]: r.get("scenario") or r["text"] for r in corpus}.values())
    asked = json.loads((DATA / "emotion_query_sample.json").read_text())
    found["emotion_query_sample.json"] = [text for texts in asked.values() for text in texts]
    found["emotion_query_plus_sample.json"] = json.loads((DATA / "emotion_query_plus_sample.json").read_text())
    situations = json.loads((DATA / "emotion_phrases.json").read_text())["situations"]
    found["emotion_phrases.json"] = [text for texts in situations.values() for text in texts]
    found["goemotions_sample.csv"] = pd.read_csv(DATA / "goemotions_sample.csv")["text"].tolist()
    found["elicitation.json"] = [example.scenario for way in elicitations() for example in way.examples]
    return found


def test_files_share_no_scenario(corpus):
    """By their content words: the confirmatory file with every other, and training, test and corpus among themselves."""
    sets = scenarios(corpus)
    pairs = {("confirm_set.jsonl", name) for name in sets} - {("confirm_set.jsonl", "confirm_set.jsonl")}
    pairs |= {
        ("sev.jsonl", "test_set.jsonl"),
        ("tiny_corpus.jsonl", "sev.jsonl"),
        ("tiny_corpus.jsonl", "test_set.jsonl"),
    }
    for a, b in pairs:
        near = max(card.nearest(sets[a], sets[b]))
        assert near.jaccard < 0.35, (a, b, near)


def test_the_confirmatory_file_is_the_one_that_the_card_names():
    """Nothing was chosen on it: whoever changes it afterwards changes this digest, and the card's."""
    digest = hashlib.sha256((DATA / "confirm_set.jsonl").read_bytes()).hexdigest()
    assert digest == "207a26de28c1c09af0d8a5275bb43082e85dca08eae99b6fcb339c61a7885823"
    assert digest in (DATA / "README.md").read_text(encoding="utf-8")


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
