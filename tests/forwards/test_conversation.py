"""Conversation: turns are those of generate, told piece by piece; the mixture changes between them."""

import pytest

import emotrace as et
from emotrace.edits import mixture
from emotrace.forwards.conversation import Conversation, _Streamer
from emotrace.labels import EmotraceError
from tests.helpers import loaded
from tests.suite.test_paired import vectors

OPTIONS = {"max_new_tokens": 8, "do_sample": True}


def turn(text, *before, system="Be brief."):
    said = [{"role": role, "content": c} for role, c in zip(("user", "assistant") * len(before), before, strict=False)]
    return [[{"role": "system", "content": system}, *said, {"role": "user", "content": text}]]


def test_turns_equal_generate_and_carry_what_was_said():
    lm = loaded()
    talk = Conversation(lm, vectors(), "joy=1", strength=3.0, system="Be brief.", seed=5, decoding=OPTIONS)
    edits = mixture(vectors(), "joy=1", strength=3.0)
    # generate draws its first batch from seed · 1000003, so that is the seed of the turn
    talk.seed = 5 * 1_000_003
    first = talk.say("Hello")
    (row,) = et.generate(lm, turn("Hello"), edits, seed=5, progress=False, **OPTIONS)
    assert list(first.token_ids) == row["token_ids"]
    assert first.fired == (2 * (len(first.token_ids) + first.stopped),)
    talk.mix = "anger=1,fear=-0.5"
    talk.seed = 6 * 1_000_003 - 1
    second = talk.say("Why?")
    edits = mixture(vectors(), "anger=1,fear=-0.5", strength=3.0)
    (row,) = et.generate(lm, turn("Why?", "Hello", first.text), edits, seed=6, progress=False, **OPTIONS)
    assert list(second.token_ids) == row["token_ids"]
    assert [m["content"] for m in talk.history] == ["Hello", first.text, "Why?", second.text]
    talk.reset()
    assert (talk.history, talk.turn, talk.mix) == ([], 0, {"anger": 1.0, "fear": -0.5})


def test_pieces_make_up_the_reply_and_come_one_by_one():
    pieces: list[str] = []
    reply = Conversation(loaded(), vectors(), "joy=1", decoding=OPTIONS, seed=2).say("Hello", pieces.append)
    assert "".join(pieces) == reply.text
    assert len(pieces) > 2


def test_the_user_ends_a_reply_and_what_was_said_stays():
    asked: list[int] = []

    def third():
        asked.append(1)
        return len(asked) == 3

    talk = Conversation(loaded(), vectors(), "joy=1", decoding={"max_new_tokens": 30, "min_new_tokens": 30})
    reply = talk.say("Hello", stop=third)
    assert not reply.stopped
    assert len(reply.token_ids) == 3
    assert talk.history[-1]["content"] == reply.text


def test_base_and_steered_share_seed_and_history_and_the_base_is_not_kept():
    talk = Conversation(loaded(), vectors(), {}, decoding=OPTIONS, seed=3)
    assert talk.label == "base"
    assert talk.answer("Hello", steered=False) == talk.answer("Hello")
    talk.mix, talk.strength = "joy=1", 3.0
    assert talk.label == "joy=1 ×3"
    steered, base = talk.answer("Hello"), talk.answer("Hello", steered=False)
    assert steered.token_ids != base.token_ids
    assert base.fired == ()
    assert talk.history == []
    talk.strength = 0.0
    assert talk.edits == []
    assert talk.answer("Hello") == base


def test_half_a_character_waits():
    told: list[str] = []
    texts = {1: "a", 2: "a\ufffd", 3: "aé", 4: "aé "}
    streamer = _Streamer(lambda ids: texts[len(ids)].strip(), 0, told.append, lambda: False)
    for n in texts:
        streamer.show(list(range(n)))
    assert told == ["a", "é"]


def test_mistakes_change_nothing():
    talk = Conversation(loaded(max_position_embeddings=64), vectors(), "joy=1", decoding=OPTIONS)
    for wrong in ("boredom=1", "joy"):
        with pytest.raises(EmotraceError, match="mix"):
            talk.mix = wrong
    assert talk.mix == {"joy": 1.0}
    with pytest.raises(EmotraceError, match="/reset"):
        talk.say("x" * 60)
    with pytest.raises(EmotraceError, match="nothing to reply"):
        talk.say("  ")
    assert talk.history == []
    with pytest.raises(EmotraceError, match="unknown option 'beams'"):
        Conversation(loaded(), vectors(), decoding={"beams": 2})
    with pytest.raises(EmotraceError, match="masked"):
        Conversation(loaded("bert"), vectors())
