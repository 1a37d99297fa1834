"""Templates: one BOS, a pinned date, a system message that arrives, no thinking block."""

from __future__ import annotations

import pytest

from emotrace.datasets import Prompt, Prompts
from emotrace.labels import EmotraceError
from emotrace.templates import DATE, Encoder
from emotrace.testing.tiny import CHAT_TEMPLATE, tiny_tokenizer

SYSTEM = {"role": "system", "content": "Always reply in anger."}
USER = {"role": "user", "content": "The bus is late."}
LOOP = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
LLAMA_3 = (
    "{{ bos_token }}{% if not date_string is defined %}"
    "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}<|system|>Today is {{ date_string }}<|end|>"
)


def chat(*messages):
    return Prompt("p", messages=tuple(messages))


def encoder(template=CHAT_TEMPLATE, **options) -> Encoder:
    return Encoder(tiny_tokenizer(chat_template=template), **options)


def count(ids, token=1):
    return sum(i == token for i in ids)


# -- BOS ----------------------------------------------------------------------------------------------------------


def test_a_template_with_bos_and_a_tokenizer_with_bos_give_one():
    coder = encoder()
    naive = coder.tokenizer(coder.render(chat(USER)))["input_ids"]
    assert count(naive) == 2, "this is the trap"
    (ids,) = coder.ids([chat(USER)])
    assert count(ids) == 1
    assert ids == naive[1:]


def test_text_has_one_bos_even_if_it_spells_one():
    coder = encoder()
    plain, spelt = coder.ids(["Hello", "<s>Hello"])
    assert plain == spelt
    assert count(plain) == 1


def test_no_bos_where_the_tokenizer_has_none():
    coder = Encoder(tiny_tokenizer(chat_template=LOOP, adds_bos=False))
    assert count(coder.ids(["Hello"])[0]) == 0
    assert count(coder.ids([chat(USER)])[0]) == 0


def test_double_bos_is_a_preset():
    coder = encoder(double_bos=True)
    (twice,) = coder.ids([chat(USER)])
    (once,) = encoder().ids([chat(USER)])
    assert twice == [1, *once]
    assert coder.record["double_bos"] is True
    assert coder.ids(["Hello"]) == encoder().ids(["Hello"]), "plain text has one either way"


def test_token_ids_are_passed_as_they_are():
    assert encoder().ids([[1, 1, 9, 9]]) == [[1, 1, 9, 9]]
    assert Encoder(None).ids([[7, 8]]) == [[7, 8]]


# -- date ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        LLAMA_3 + LOOP,
        "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}." + LOOP,
        "{{ bos_token }}Today is {{ date_string }}." + LOOP,
        "{{ bos_token }}{% macro today() %}{{ strftime_now(\"%d %b\") ~ strftime_now(' %Y') }}{% endmacro %}"
        "Today is {{ today() }}." + LOOP,
    ],
    ids=["both", "strftime_now", "date_string", "two formats in a macro"],
)
def test_the_date_is_pinned(template):
    assert "Today is 26 Jul 2024" in encoder(template).render(chat(USER))
    assert "Today is 01 Mar 2025" in encoder(template, date="2025-03-01").render(chat(USER))
    assert encoder(template).record["template_date"] == DATE == "2024-07-26"
    assert encoder(template, date="2025-03-01").record["template_date"] == "2025-03-01"


def test_a_date_that_cannot_be_pinned_is_refused():
    coder = encoder("{{ bos_token }}{% set form = '%d' %}{{ strftime_now(form) }}" + LOOP)
    with pytest.raises(EmotraceError, match="cannot pin the date format %d"):
        coder.render(chat(USER))


@pytest.mark.parametrize("date", ["26 Jul 2024", "2024-13-01", ""])
def test_what_is_no_day_is_refused(date):
    with pytest.raises(EmotraceError, match=f"date='{date}' is not an ISO day"):
        encoder(date=date)


# -- system -------------------------------------------------------------------------------------------------------


def test_a_native_system_message_stays_one():
    coder = encoder()
    assert coder.record["system_role"] == "native"
    assert coder.render(chat(SYSTEM, USER)) == (
        "<s><|system|>Always reply in anger.<|end|><|user|>The bus is late.<|end|><|assistant|>"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + LOOP,
        "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'system' %}"
        "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}<|assistant|>",
    ],
    ids=["refused", "dropped"],
)
def test_a_system_message_that_is_refused_or_dropped_is_folded_into_the_user_turn(template):
    coder = encoder(template)
    assert coder.record["system_role"] == "folded"
    folded = "<s><|user|>Always reply in anger.\n\nThe bus is late.<|end|><|assistant|>"
    assert coder.render(chat(SYSTEM, USER)) == folded
    assert coder.render(chat(USER)) == "<s><|user|>The bus is late.<|end|><|assistant|>"
    answer = {"role": "assistant", "content": "Yes."}
    assert coder.render(chat(SYSTEM, USER, answer, USER)).count("Always reply") == 1
    assert "<|user|>Always reply in anger.<|end|>" in coder.render(chat(SYSTEM))


def test_without_a_template_the_plain_form():
    coder = encoder(None)
    assert coder.render(chat(SYSTEM, USER)) == "Always reply in anger.\n\nThe bus is late.\n\nReply:"
    assert coder.record["template_hash"] == "plain"
    assert coder.record["system_role"] == "plain text"
    with pytest.warns(UserWarning, match="no chat template: messages are joined as plain text"):
        (ids,) = coder.ids([chat(SYSTEM, USER)])
    assert count(ids) == 1
    assert coder.ids([chat(SYSTEM, USER)]) == [ids], "said once"


def test_a_template_that_refuses_a_prompt_names_it():
    coder = encoder(
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{% endfor %}"
        + LOOP
    )
    with pytest.raises(EmotraceError, match=r"refuses prompt 'p': no tools here"):
        coder.render(chat(USER, {"role": "tool", "content": "x"}))


# -- thinking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["enable_thinking", "thinking"])
def test_thinking_is_switched_off(word):
    coder = encoder(
        "{{ bos_token }}" + LOOP + "{% if " + word + " is defined and " + word + " is false %}"
        "<think>\n\n</think>\n\n{% endif %}"
    )
    assert coder.render(chat(USER)).endswith("<|assistant|><think>\n\n</think>\n\n")


def test_a_thinking_block_that_the_template_opens_is_closed():
    coder = encoder("{{ bos_token }}" + LOOP + "{{ '<think>\n' }}")
    assert coder.render(chat(USER)).endswith("<|assistant|><think>\n\n</think>\n\n")


# -- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_a_batch_is_padded_on_the_right_side_of_its_model(causal):
    coder = encoder(causal=causal)
    batch = coder(["a", "abcd"])
    padding = batch["attention_mask"][0] == 0
    assert int(padding.sum()) == 3
    assert bool(padding[0]) is causal
    assert bool(padding[-1]) is not causal
    assert (batch["input_ids"][0][padding] == coder.tokenizer.pad_token_id).all()
    for row, ids in enumerate(coder.ids(["a", "abcd"])):
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == ids


def test_padding_falls_back_to_eos():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert Encoder(tokenizer).pad_id == tokenizer.eos_token_id == 2


def test_replies_follow_their_prompts():
    prompts = Prompts([Prompt("a", text="Hi", reply_ids=(50, 51)), Prompt("b", text="Hi")])
    coder = encoder()
    batch = coder(prompts)
    assert batch["input_ids"][0].tolist() == [*coder.ids(["Hi"])[0], 50, 51]
    assert batch["attention_mask"].sum(1).tolist() == [5, 3]


def test_what_is_too_long_is_refused():
    coder = encoder(max_length=4)
    assert len(coder.ids(["abc"])[0]) == 4
    with pytest.raises(EmotraceError, match="prompt '0' has 5 tokens; the model takes at most 4"):
        coder.ids(["abcd"])
    with pytest.raises(EmotraceError, match="prompt 'r' has 6 tokens"):
        coder(Prompts([Prompt("r", text="abc", reply_ids=(9, 9))]))


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(EmotraceError, match=r"prompt '0' is text.*tokenizer="):
        Encoder(None).ids(["Hello"])


def test_the_record_tells_tokenizers_and_templates_apart():
    one, other = encoder().record, encoder(CHAT_TEMPLATE + " ").record
    assert one["tokenizer_hash"] == other["tokenizer_hash"]
    assert one["template_hash"] != other["template_hash"]
    assert Encoder(tiny_tokenizer(adds_bos=False)).record["tokenizer_hash"] != one["tokenizer_hash"]
    assert encoder().record == one


def test_encoding_does_not_change_the_record():
    coder = encoder()
    before = coder.record
    coder(["a", "abcd"])  # padding and truncation are state of a fast tokenizer
    coder.tokenizer(["a", "abcd"], padding=True, truncation=True, max_length=3)
    assert coder.record == before


def test_decoding_leaves_special_tokens_out():
    coder = encoder()
    (ids,) = coder.ids(["I am late"])
    assert coder.decode([*ids, 2]) == "I am late"
    assert coder.token_texts([*ids[:2]]) == ["<s>", "I"]
