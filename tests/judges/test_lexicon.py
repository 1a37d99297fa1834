"""The lexicon judge: own sentences for each answer, negation, cancelling, the pattern language."""

import random

import pytest

from emotrace.judges import lexicon as room

SENTENCES = [
    ("anger", "Are you kidding me? I've told you a hundred times to stop leaving your junk everywhere!"),
    ("anger", "How dare you waste my time with something so trivial."),
    ("anger", "Oh, great, another meeting that could have been an email. Do your job!"),
    ("anger", "fuck this guy, what an asshole"),
    ("sadness", "I suppose it's nice, but it only reminds me of everything I've lost."),
    ("sadness", "*Sigh* The weather is gray again, just like my mood."),
    ("sadness", "rip, he was a legend. gone too soon"),
    ("sadness", "I cried so hard at the ending :("),
    ("happiness", "That's fantastic news! I'm so thrilled for you and can't wait to hear more."),
    ("happiness", "Congratulations, you must be over the moon!"),
    ("happiness", "haha this made my day, thanks"),
    ("fear", "Oh no, what if the brakes fail while I'm driving?"),
    ("fear", "My hands are shaking just thinking about walking into that room."),
    ("fear", "that gave me nightmares as a kid"),
    ("surprise", "Wow, I had no idea you could play the piano!"),
    ("surprise", "What?! You got the job already?"),
    ("surprise", "I'm completely taken aback, I never expected to see you here."),
    ("disgust", "The mere thought of that greasy food makes my stomach turn."),
    ("disgust", "Ewwwww gross"),
    ("disgust", "How pathetic, wasting your life on such mindless drivel."),
    ("neutral", "The meeting starts at three in the main hall."),
    ("neutral", "Water boils at one hundred degrees at sea level."),
    ("neutral", "Press the button twice to reset the device."),
]


@pytest.mark.parametrize(("answer", "text"), SENTENCES)
def test_names_the_emotion(answer: str, text: str) -> None:
    assert room.predict(text)[0] == answer


@pytest.mark.parametrize(
    ("plain", "negated", "emotion"),
    [
        ("I am happy with it.", "I'm not happy with it.", "happiness"),
        ("It is scary.", "It isn’t scary.", "fear"),
        ("He was angry.", "He was never really angry.", "anger"),
    ],
)
def test_negation_drops_the_cue(plain: str, negated: str, emotion: str) -> None:
    assert room.score(plain)[emotion] > 1
    assert room.score(negated)[emotion] == 0


def test_negated_happiness_flips_to_sadness() -> None:
    assert room.predict("I am not happy.")[0] == "sadness"


def test_negation_stops_at_the_clause_and_at_bound_negators() -> None:
    assert room.predict("No, I'm scared.")[0] == "fear"
    assert room.predict("This is not only disgusting.")[0] == "disgust"


@pytest.mark.parametrize("text", ["I'd be happy to help with it.", "I'm afraid so.", "Sorry to bother you."])
def test_cancelling_phrase_leaves_neutral(text: str) -> None:
    assert room.predict(text)[0] == "neutral"


@pytest.mark.parametrize(("text", "answer"), [("oh well :(", "sadness"), ("see you there :)", "happiness")])
def test_reads_emoticons(text: str, answer: str) -> None:
    assert room.predict(text)[0] == answer


def test_cancelling_needs_the_whole_phrase() -> None:
    assert room.predict("I'm so happy!")[0] == "happiness"


def test_longer_cue_hides_the_shorter_one_inside() -> None:
    assert room.score("just great")["happiness"] == 0
    assert room.score("that tastes great")["happiness"] > 0


def test_intensifier_raises_the_score() -> None:
    assert room.score("utterly filthy")["disgust"] == pytest.approx(1.25 * room.score("filthy")["disgust"])


def test_marks_alone_do_not_decide() -> None:
    assert room.predict("The train leaves at NINE!")[0] == "neutral"
    assert room.score("It leaves at nine!")["happiness"] > room.score("It leaves at nine.")["happiness"]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text_is_neutral(text: str) -> None:
    assert room.predict(text) == ("neutral", 0.0, "empty text")


def test_judge_answers_every_text_the_same_way_twice() -> None:
    judge, texts = room.LexiconJudge(), [text for _, text in SENTENCES]
    answers = judge.judge(texts)
    assert answers == room.LexiconJudge().judge(texts)
    assert [a["predicted"] for a in answers] == [answer for answer, _ in SENTENCES]
    assert {a["judge"] for a in answers} == {"lexicon:v1"}


def test_reason_names_the_cue() -> None:
    assert "how dare" in room.LexiconJudge().judge(["How dare you!"])[0]["reason"]


def test_every_emotion_has_a_broad_list() -> None:
    cues = [cue for found in room.lexicon()._words.values() for cue in found]
    for emotion in room.EMOTIONS:
        assert len({cue.text for cue in cues if cue.group == emotion}) >= 250


@pytest.mark.parametrize(
    ("pattern", "tokens", "fits"),
    [
        ("reek*", ["reeking"], True),
        ("so sad|blue", ["so", "blue"], True),
        ("so sad|blue", ["so", "glad"], False),
        ("my [poor] heart", ["my", "heart"], True),
        ("hold _ tight", ["hold", "tight"], False),
        ("hold __ tight", ["hold", "me", "very", "tight"], True),
        ("hold __ tight", ["hold", "a", "b", "c", "d", "tight"], False),
        ("hold __ tight", ["hold", ".", "tight"], False),
    ],
)
def test_pattern_language(pattern: str, tokens: list[str], fits: bool) -> None:
    cue = room.compile_pattern("fear", pattern, 1.0)
    assert (cue.pieces[0].takes(tokens[0]) and room._match(cue.pieces, 1, tokens, 1) >= 0) is fits


@pytest.mark.parametrize(
    ("pattern", "weight", "message"),
    [
        ("", 1.0, "empty"),
        ("bad(token", 1.0, "bad token"),
        ("a*", 1.0, "two letters"),
        ("_ dread", 1.0, "first token"),
        ("we should|shouldn't", 1.0, "contraction"),
        ("dread", 0, "above 0"),
    ],
)
def test_bad_entry_is_named(pattern: str, weight: float, message: str) -> None:
    with pytest.raises(room.LexiconError, match=message) as error:
        room.compile_pattern("fear", pattern, weight)
    assert repr(pattern) in str(error.value)
    assert "fear" in str(error.value)


@pytest.mark.parametrize("text", ["a. ", "angry ", "not angry! ", "a", "😱", "\x00", "\ud83d"])
def test_a_long_odd_text_is_judged_as_a_short_one(text: str) -> None:
    short, long = (room.predict(text * n)[0] for n in (3, 20_000))
    assert short == long


def test_spans_are_those_of_a_search_through_all_pairs() -> None:
    rng = random.Random(0)
    cue = room.Cue("anger", "x", 1.0, ())
    for _ in range(200):
        spans = sorted((s, s + rng.randrange(1, 5)) for s in (rng.randrange(12) for _ in range(rng.randrange(9))))
        hits = [room.Hit(cue, *span) for span in sorted(spans, key=lambda span: span[0])]
        slow = [h for h in hits if not any(o.start <= h.start and h.end <= o.end and o[1:] != h[1:] for o in hits)]
        assert room._outermost(hits) == slow
        for token in range(17):
            over = [h.end for h in hits if h.start <= token < h.end]
            assert room._first_ends(hits).get(token) == (min(over) if over else None)
