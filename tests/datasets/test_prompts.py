"""Prompts: every way to say what a prompt is, identities, digest, and selections that are the same for every run."""

import itertools

import numpy as np
import pandas as pd
import pytest

from emotrace.datasets import Prompt, Prompts, spread
from emotrace.labels import EMOTIONS, EmotraceError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def skeletons(n_themes=3, each=4, valences=("positive", "negative")):
    return Prompts(
        Prompt(
            f"t{t}_{i}__{v}", text=f"{t} {i} {v}", labels={"skeleton_id": f"t{t}_{i}", "theme": f"t{t}", "valence": v}
        )
        for t in range(n_themes)
        for i in range(each)
        for v in valences
    )


def test_of_every_form():
    assert Prompts.of("hi")[0] == Prompt("0", text="hi")
    assert [p.text for p in Prompts.of(["a", "b"])] == ["a", "b"]
    assert Prompts.of(["a", "b"]).keys == ("0", "1")
    assert Prompts.of([CHAT, CHAT])[1] == Prompt("1", messages=tuple(CHAT))
    assert Prompts.of([[5, 6], [7]])[0] == Prompt("0", token_ids=(5, 6))
    assert Prompts.of(Prompt("k", text="x")).keys == ("k",)
    assert Prompts.of(f"line {i}" for i in range(3)).keys == ("0", "1", "2")
    mixed = Prompts.of(["a", [1, 2], CHAT, {"text": "b", "emotion": "fear"}])
    assert mixed.keys == ("0", "1", "2", "3")
    assert mixed[3].labels == {"emotion": "fear"}
    assert Prompts.of(mixed) is mixed


def test_of_rows_and_frames():
    rows = [
        {"key": "a", "messages": CHAT, "emotion": "anger"},
        {"key": "b", "token_ids": [1, 2], "reply_ids": [3], "emotion": "fear"},
    ]
    prompts = Prompts.of(rows)
    assert prompts.keys == ("a", "b")
    assert prompts[0].messages == tuple(CHAT)
    assert (prompts[1].token_ids, prompts[1].reply_ids) == ((1, 2), (3,))
    assert rows[0]["key"] == "a", "the rows are not changed"
    gaps = pd.DataFrame({"text": ["p", "q"], "mood": ["Wut", np.nan], "fold": pd.array([None, 2], dtype="Int64")})
    assert [dict(p.labels) for p in Prompts.of(gaps)] == [{"mood": "Wut"}, {"fold": 2}]
    frame = pd.DataFrame({"key": ["x", "y"], "text": ["p", "q"], "fold": np.array([1, 2])})
    assert Prompts.of(frame).table.to_dict("list") == {"key": ["x", "y"], "fold": [1, 2]}
    assert Prompts.of([{"text": "a", "fold": np.int64(3)}])[0].labels == {"fold": 3}
    assert Prompts.of(frame).digest


NOT_PROMPTS = {
    "empty list": ([], "there are no prompts"),
    "empty text": ("", "'0' is empty"),
    "empty ids": ([{"token_ids": []}], "is empty"),
    "one token list": ([1, 2, 3], "prompt 0 is 1"),
    "none": (None, "not NoneType"),
    "number": (5, "not int"),
    "mapping": ({"text": "a"}, "not dict"),
    "array": ([np.array([1, 2])], "prompt 0 is"),
    "two contents": ([{"text": "a", "token_ids": [1]}], "exactly one"),
    "no content": ([{"emotion": "anger"}], "exactly one"),
    "text that is none": ([{"text": 5}], "text is a string, not 5"),
    "no text": (
        pd.DataFrame({"satz": ["a"], "mood": ["b"]}),
        r"a column text, messages or token_ids: .* \(satz, mood\)",
    ),
    "missing text": (pd.DataFrame({"text": ["a", np.nan]}), "text is a string, not nan"),
    "message without content": ([[{"role": "user"}]], "a message is"),
    "content that is no text": ([[{"role": "user", "content": 3}]], "a message is"),
    "message that is none": ([{"messages": ["hi"]}], "a message is"),
    "negative id": ([[1, -2]], "integers from 0, not -2"),
    "half id": ([{"token_ids": [1, 2.5]}], "integers from 0, not 2.5"),
    "label": ([{"text": "a", "emotion": ["anger"]}], r"label 'emotion' is \['anger'\]"),
    "same key": ([{"key": "a", "text": "x"}, {"key": "a", "text": "y"}], "two prompts have the key 'a'"),
}


@pytest.mark.parametrize("case", NOT_PROMPTS)
def test_what_is_no_prompt_is_refused(case):
    source, message = NOT_PROMPTS[case]
    with pytest.raises(EmotraceError, match=message):
        Prompts.of(source)


def test_digest_is_of_content_labels_and_order():
    def digest(**change):
        base = {"key": "a", "text": "x", "labels": {"e": "1", "f": 2}}
        return Prompts([Prompt(**(base | change)), Prompt("b", text="y")]).digest

    assert digest() == digest() == digest(labels={"f": 2, "e": "1"})
    others = [
        digest(key="c"),
        digest(text="z"),
        digest(labels={"e": "1"}),
        digest(reply_ids=(1,)),
        digest(text=None, token_ids=(1,)),
        digest(text=None, messages=tuple(CHAT)),
        digest(text=None, messages=tuple(CHAT[::-1])),
    ]
    assert len({digest(), *others}) == 8
    a, b = Prompt("a", text="x"), Prompt("b", text="y")
    assert Prompts([a, b]).digest != Prompts([b, a]).digest


def test_rows_whose_key_is_empty_are_numbered():
    table = pd.DataFrame({"key": ["a", None, np.nan, ""], "text": list("abcd")})
    assert Prompts.of(table).keys == ("a", "1", "2", "3")


def test_sequence_and_labels():
    prompts = skeletons()
    assert prompts.label_names == ("skeleton_id", "theme", "valence")
    assert isinstance(prompts[2:5], Prompts)
    assert prompts[2:5].keys == prompts.keys[2:5]
    assert list(prompts.table.columns) == ["key", "skeleton_id", "theme", "valence"]
    assert "24; skeleton_id, theme, valence" in repr(prompts)
    some = prompts.where(theme=["t0", "t2"], valence="negative")
    assert len(some) == 8
    assert {p.labels["theme"] for p in some} == {"t0", "t2"}
    with pytest.raises(EmotraceError, match=r"unknown label 'thema'.*Did you mean 'theme'"):
        prompts.where(thema="t0")
    with pytest.raises(EmotraceError, match=r"unknown theme 't9' in Prompts.where.*t0"):
        prompts.where(theme="t9")
    with pytest.raises(EmotraceError, match="unknown theme 't9'"):
        prompts.where(theme=np.array(["t0", "t9"]))
    with pytest.raises(EmotraceError, match="no prompts"):
        prompts.where(theme="t0", skeleton_id=[p.labels["skeleton_id"] for p in prompts.where(theme="t1")])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 11, 12, 100])
def test_limit_is_spread_evenly_and_keeps_whole_skeletons_in_order(n):
    prompts = skeletons()
    kept = prompts.limit(n)
    table = kept.table
    assert table["skeleton_id"].nunique() == min(n, 12)
    assert (table.groupby("skeleton_id").size() == 2).all()
    counts = table.drop_duplicates("skeleton_id").groupby("theme").size().reindex(["t0", "t1", "t2"], fill_value=0)
    assert counts.max() - counts.min() <= 1
    assert kept.keys == tuple(k for k in prompts.keys if k in set(kept.keys))
    assert kept.digest == skeletons().limit(n).digest


def test_a_larger_limit_contains_a_smaller_one():
    prompts = skeletons(3, 5)
    sets = [set(prompts.limit(n).keys) for n in range(1, 16)]
    assert all(a < b for a, b in itertools.pairwise(sets))
    assert prompts.limit(None) is prompts
    with pytest.raises(EmotraceError, match="limit=0"):
        prompts.limit(0)


def test_limit_without_labels_counts_prompts_and_uneven_themes_give_what_they_have():
    assert Prompts.of(["a", "b", "c"]).limit(2).keys == ("0", "1")
    assert spread({"a": "x", "b": "x", "c": "x", "d": "y"}, 3) == {"a", "d", "b"}


def test_for_each_labels_and_names_every_value():
    aimed = skeletons(1, 1).for_each(emotion=EMOTIONS)
    assert len(aimed) == 12
    assert aimed.keys[:2] == ("t0_0__positive__anger", "t0_0__positive__sadness")
    assert aimed[1].labels["emotion"] == "sadness"
    assert aimed[0].text == aimed[5].text
    for wrong in ({}, {"a": ["x"], "b": ["y"]}, {"emotion": "anger"}):
        with pytest.raises(EmotraceError, match="for_each"):
            skeletons(1, 1).for_each(**wrong)


def test_with_replies_keeps_those_that_have_one_and_never_tokenises():
    prompts = Prompts.of(["a", "b", "c"])
    replied = prompts.with_replies([{"key": "2", "token_ids": [7, 8], "gen_text": "x"}, {"key": "0", "token_ids": []}])
    assert replied.keys == ("0", "2")
    assert [p.reply_ids for p in replied] == [(), (7, 8)]
    assert replied[1].text == "c"
    for rows, message in (
        ([{"key": "0", "gen_text": "x"}], "no 'token_ids'"),
        ([{"token_ids": [1]}], "no 'key'"),
        ([{"key": "9", "token_ids": [1]}], "none of the 1 replies"),
        ([{"key": "0", "token_ids": [1]}, {"key": "0", "token_ids": [2]}], "second, other reply to '0'"),
    ):
        with pytest.raises(EmotraceError, match=message):
            prompts.with_replies(rows)


def test_replies_to_another_prompt_of_the_same_key_are_refused():
    prompts = Prompts.of([{"key": "a", "text": "x", "emotion": "fear", "n": 3}])
    rows = [{"key": "a", "token_ids": [1], "emotion": "fear", "n": 3, "verdict": {"match": 0}}]
    assert prompts.with_replies(rows)[0].reply_ids == (1,)
    with pytest.raises(
        EmotraceError, match=r"row 'a' is a reply to another prompt \(emotion: 'joy' there, 'fear' now\)"
    ):
        prompts.with_replies([{**rows[0], "emotion": "joy"}])


def test_a_list_of_messages_is_one_chat():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert Prompts.of(chat)[0].messages == Prompts.of([chat])[0].messages == tuple(chat)
    assert len(Prompts.of(chat)) == 1
