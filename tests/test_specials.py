"""Specials: a BOS token that is missing is said, recorded, and put there or taken away; EOS, CLS and SEP are not overlooked."""

from __future__ import annotations

import inspect
import itertools
import json
import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from tokenizers import processors

import emotrace as et
from emotrace.cli.app import app
from emotrace.datasets import Prompt, Prompts
from emotrace.forwards.conversation import Conversation
from emotrace.forwards.likelihood import continued
from emotrace.labels import EmotraceError
from emotrace.prompt_tuning.layout import Layout
from emotrace.store.layout import settle
from emotrace.templates import Encoder
from emotrace.testing import tiny

BOS, EOS = 1, 2
WITHOUT = tiny.CHAT_TEMPLATE.replace("{{ bos_token }}", "")
CHAT = Prompt("c", messages=({"role": "user", "content": "Rain"},))
TALK = Prompt(
    "t", messages=(*CHAT.messages, {"role": "assistant", "content": "<s>Oh."}, {"role": "user", "content": "Go"})
)
SHOTS = Prompt("f", text="Rain\nsadness reaction: <s>I sigh.\n\nSun\njoy reaction:")


def tokenizer(adds=True, template=tiny.CHAT_TEMPLATE, **options):
    return tiny.tiny_tokenizer(adds_bos=adds, chat_template=template, **options)


def said(act):
    """What is warned of, and the result."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = act()
    return [str(w.message) for w in told], found


@pytest.mark.parametrize(
    ("adds", "template", "begins"),
    [
        (True, tiny.CHAT_TEMPLATE, {"text": True, "chat": True}),
        (False, tiny.CHAT_TEMPLATE, {"text": False, "chat": True}),
        (True, WITHOUT, {"text": True, "chat": False}),
        (False, WITHOUT, {"text": False, "chat": False}),
        (True, None, {"text": True, "chat": True}),
        (False, None, {"text": False, "chat": False}),
    ],
)
def test_a_bos_that_is_not_added_is_said_recorded_and_switched(adds, template, begins):
    module = tiny.build("llama")
    made = tokenizer(adds, template)
    told, model = said(lambda: et.load(module, tokenizer=made))
    assert model.sites.encoder.record["begins_with_bos"] == begins
    assert model.sites.encoder.record["bos"] is None
    nowhere = not any(begins.values())
    assert [("'<s>'" in t, "bos=True" in t) for t in told] == [(True, True)] * nowhere, "at load, once, if at all"
    for prompt, kind in ((SHOTS, "text"), (CHAT, "chat")):
        first = said(lambda prompt=prompt: model.sites.encoder.ids([prompt]))
        assert (first[1][0][0] == BOS) is begins[kind]
        lacking = not begins[kind] and not nowhere
        assert sum("without the BOS token '<s>'" in t for t in first[0]) == lacking
        assert said(lambda prompt=prompt: model.sites.encoder.ids([prompt]))[0] == [], "a kind is told of once"
    for bos in (True, False):
        told, coder = said(lambda bos=bos: et.load(module, tokenizer=made, bos=bos).sites.encoder)
        assert told == []
        assert coder.record["bos"] is bos
        assert coder.record["begins_with_bos"] == {"text": bos, "chat": bos}
        coder.has_template or said(lambda coder=coder: coder.ids([CHAT]))
        for prompt in (SHOTS, CHAT, TALK, Prompt("s", text="<s>Rain")):
            ids, plain = coder.ids([prompt])[0], Encoder(made)._coded([coder.render(prompt)], False)[0]
            bare = plain[1:] if plain[0] == BOS else plain
            assert ids == [BOS] * bos + bare, "exactly one or none, and nothing else is touched"


def test_given_ids_and_replies_stay_as_they_are():
    prompts = Prompts(
        [Prompt("a", token_ids=(1, 1, 9)), Prompt("b", token_ids=(9,)), Prompt("r", text="Hi", reply_ids=(1, 50))]
    )
    for bos in (True, False):
        coder = Encoder(tokenizer(False), bos=bos)
        assert coder.ids(prompts)[:2] == [[1, 1, 9], [9]]
        assert coder(prompts)["input_ids"][2].tolist()[-2:] == [1, 50]


def test_turns_texts_that_go_on_and_soft_prompts_begin_alike():
    for bos in (True, False):
        model = et.load(tiny.build("llama"), tokenizer=tokenizer(not bos), bos=bos)
        asked = []
        ids_of = model.sites.encoder.ids
        model.sites.encoder.ids = lambda prompts, f=ids_of, seen=asked: seen.append(f(prompts)) or f(prompts)
        chat = Conversation(model, _vectors(model), site="resid_post", decoding={"max_new_tokens": 2})
        chat.say("Rain")
        chat.say("Go")
        assert [ids[0].count(BOS) for ids in asked] == [int(bos)] * 2
        for prompt in (Prompt("p", text="Rain"), CHAT):
            found = continued(model, prompt, " falls", "k")
            assert [*found.token_ids[:1]].count(BOS) == bos
            assert model.sites.encoder.decode(found.reply_ids) == "falls"
        layout = Layout(model.sites.encoder, 2)
        assert layout.bare().ids[:1] == ((BOS,) if bos else (layout.placeholder,))


def _vectors(model):
    values = np.ones((2, 3, model.sites.d_model), np.float32)
    return xr.DataArray(
        values, dims=("emotion", "layer", "dim"), coords={"emotion": ["joy", "fear"], "layer": range(3)}
    )


@pytest.mark.parametrize("adds", [True, False])
def test_a_file_that_says_otherwise_than_the_tokenizer_does(adds, tmp_path):
    tokenizer(adds).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    told = {}
    for says in (adds, not adds):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": says}))
        told[says] = said(lambda: et.load(tiny.build("llama"), tokenizer=str(tmp_path)))[0]
    assert told[adds] == []
    assert len(told[not adds]) == 1
    for part in (f"add_bos_token={not adds}", "every text" if adds else "no text", f"bos={not adds}"):
        assert part in told[not adds][0]


def test_an_eos_that_is_appended_is_left_out_of_prompts_and_said():
    closing = tokenizer(template=None)
    closing._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    told, model = said(lambda: et.load(tiny.build("llama"), tokenizer=closing))
    assert len(told) == 1
    assert "'</s>'" in told[0]
    assert model.sites.encoder.record["left_out"] == "</s>"
    plain = Encoder(tokenizer(template=None))
    assert plain.record["left_out"] is None
    texts = ["Rain", "Rain</s>"]
    assert model.sites.encoder.ids(texts) == plain.ids(texts), "what the text itself spells stays"
    assert continued(model, Prompt("p", text="Rain"), " falls", "k").reply_ids[-1] != EOS
    masked = et.load(tiny.build("bert"), tokenizer=closing).sites.encoder
    assert masked.ids(["Rain"])[0][-1] == EOS, "an encoder's text is whole"


def test_a_masked_model_begins_with_cls():
    names = {"cls_token": "<|user|>", "sep_token": "<|end|>"}
    bare = tokenizer(False, None, specials=names)
    told, _ = said(lambda: et.load(tiny.build("bert"), tokenizer=bare))
    assert [("CLS" in t, "SEP" in t, "BOS" in t) for t in told] == [(True, False, False), (False, True, False)]
    full = tokenizer(False, None, specials=names)
    ends = [(t, full.convert_tokens_to_ids(t)) for t in names.values()]
    full._tokenizer.post_processor = processors.TemplateProcessing(single="<|user|> $A <|end|>", special_tokens=ends)
    assert said(lambda: et.load(tiny.build("bert"), tokenizer=full))[0] == []
    with pytest.raises(EmotraceError, match=r"begins with its CLS token '<\|user\|>'"):
        et.load(tiny.build("bert"), tokenizer=full, bos=True)


def test_a_switch_that_cannot_hold_is_refused():
    none = tokenizer(False)
    none.bos_token = None
    assert said(lambda: et.load(tiny.build("llama"), tokenizer=none))[0] == [], "no BOS, nothing to say"
    assert Encoder(none, bos=False).ids(["Hi"]) == Encoder(none).ids(["Hi"])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tokenizer": none, "bos": True}, "the tokenizer has no BOS token"),
        ({"bos": True}, "there is no tokenizer"),
        ({"bos": "yes"}, "choices are True, False and None"),
        *(({"tokenizer": tokenizer(), "bos": b, "double_bos": True}, "contradict each other") for b in (True, False)),
    ]
    for given, match in cases:
        with pytest.raises(EmotraceError, match=match):
            et.load(tiny.build("llama"), **given)


def test_a_store_of_the_version_before_is_continued_as_it_was_begun(tmp_path):
    before, now = ({k: v for k, v in Encoder(tokenizer()).record.items() if k not in ("bos", "begins_with_bos", "left_out")},
                   Encoder(tokenizer()).record)  # fmt: skip
    without = Encoder(tokenizer(), bos=False).record
    settle(tmp_path, before, now)
    with pytest.raises(EmotraceError, match=r"settings \(bos: None there, False now\)"):
        settle(tmp_path, before, without)
    with pytest.raises(EmotraceError, match=r"\(begins_with_bos\.chat: .*; bos: None there, False now\)"):
        settle(tmp_path, now, without)


def test_every_command_and_experiment_that_loads_a_model_has_the_switch():
    for command in app.registered_commands:
        assert command.callback is not None
        takes = inspect.signature(command.callback).parameters
        assert ("dtype" in takes) == ("bos" in takes), takes
    for adds, bos in itertools.product((True, False), repeat=2):
        assert (Encoder(tokenizer(adds), bos=bos).ids(["Hi"])[0][0] == BOS) is bos
