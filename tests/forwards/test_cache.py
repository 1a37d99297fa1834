"""An edit means the same with and without a key-value cache: it acts wherever the columns of its positions pass."""

from contextlib import ExitStack
from functools import cache

import pytest
import torch
import transformers

import emotrace as et
from emotrace import model as model_
from emotrace.forwards.conversation import Conversation
from emotrace.forwards.decoding import configuration
from emotrace.forwards.finite import Item
from emotrace.forwards.generated import generated
from emotrace.sites.twin import randomise
from emotrace.testing import tiny
from emotrace.traced import passing
from tests.helpers import hooked, loaded
from tests.suite.test_paired import vectors

IDS = [[11, 12, 13, 14, 15], [21]]
NEW, LAYER = 4, 1
VECTOR = 5 * torch.randn(32, generator=torch.Generator().manual_seed(2))
POSITIONS = {
    "last": lambda n: (n - 1, n),
    "prompt": lambda n: (0, n),
    (0, 3): lambda n: (0, 3),
    "steer": lambda n: (n - 1, 99),
    "generated": lambda n: (n, 99),
}


@cache
def cacheless():
    """OpenAI GPT has no cache, whatever ``use_cache`` says."""
    config = transformers.OpenAIGPTConfig(vocab_size=tiny.VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    module = transformers.OpenAIGPTLMHeadModel(config).eval()
    randomise(module, 0)
    return model_.load(module, tokenizer=tiny.tiny_tokenizer())


def reference(lm, ids, positions, added=None):
    """The whole sequence again for every token, one prompt at a time, with plain hooks at the columns of the positions."""
    module, ids, n = lm._module, list(ids), len(ids)
    first, stop = POSITIONS[positions](n)

    def change(h, vector):
        if isinstance(h, list):  # what a layer of OpenAI GPT returns
            return [change(h[0], vector), *h[1:]]
        return torch.cat([h[:, :first], h[:, first:stop] + vector, h[:, stop:]], 1)

    layers = next(m for m in module.modules() if isinstance(m, torch.nn.ModuleList))
    for _ in range(NEW):
        with ExitStack() as hooks, torch.no_grad():
            for layer, vector in (added or {LAYER: VECTOR}).items():
                hooks.enter_context(hooked(layers[layer], "output", lambda h, v=vector: change(h, v)))
            ids.append(int(module(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            return ids[n:-1]
    return ids[n:]


@pytest.mark.parametrize("positions", ["last", (0, 3), "steer", "generated"])
@pytest.mark.parametrize(("make", "use_cache"), [(loaded, False), (cacheless, True)])
def test_the_columns_of_the_positions_are_edited_whenever_they_pass(make, use_cache, positions):
    lm = make()
    edit = et.Add("resid_post", layers=LAYER, vector=VECTOR.numpy(), positions=positions)
    rows = et.generate(lm, IDS, [edit], max_new_tokens=NEW, use_cache=use_cache, batch_size=1, progress=False)
    want = [reference(lm, i, positions) for i in IDS]
    assert [row["token_ids"] for row in rows] == want
    assert want != [reference(lm, i, positions, {LAYER: 0 * VECTOR}) for i in IDS], "the edit changes nothing"


@pytest.mark.parametrize("site", ["resid_mid", "z"])
def test_every_kind_of_place_agrees_with_and_without_a_cache(site):
    lm = loaded()
    vector = 3 * torch.randn(lm.sites.address(site, 0).width, generator=torch.Generator().manual_seed(3)).numpy()
    edits = [
        et.Add(site, layers=[0, 2], vector=vector, positions="prompt", scale="rms"),
        et.Project(site, layers=1, vector=vector, positions="steer"),
    ]
    found = [
        [r["token_ids"] for r in et.generate(lm, IDS, e, max_new_tokens=NEW, use_cache=c, progress=False)]
        for e, c in ((edits, True), (edits, False), ([], True))
    ]
    assert found[0] == found[1] != found[2]


def test_a_conversation_with_a_model_without_a_cache():
    lm = cacheless()
    talk = Conversation(lm, vectors(), "joy=1", strength=6.0, positions="prompt", decoding={"max_new_tokens": NEW})
    mixed = talk.edits[0].payload
    added = {int(layer): 6.0 * torch.tensor(mixed.sel(layer=layer).values) for layer in mixed["layer"].values}
    for text in ("Hi", "So?"):
        (ids,) = lm.sites.encoder.ids([[*talk.history, {"role": "user", "content": text}]])
        assert list(talk.say(text).token_ids) == reference(lm, ids, "prompt", added)


@pytest.mark.parametrize("positions", ["last", (0, 3)])
def test_a_prompt_that_comes_in_pieces(positions):
    lm, ids = loaded(), IDS[0]
    edit = [et.Add("resid_post", layers=LAYER, vector=VECTOR.numpy(), positions=positions)]
    config = configuration(lm, {"max_new_tokens": NEW, "use_cache": True}, 0)
    config.prefill_chunk_size = 2
    (reply,), _ = generated(lm, [Item("a", ids)], edit, config, None)
    assert list(reply.token_ids) == reference(lm, ids, positions)


def test_what_arrives_says_where_a_forward_begins():
    def begins(width, *arrived):
        done, found = 0, []
        for n in arrived:
            found.append(passing.first(n, done, width))
            done = found[-1] + n
        return found

    assert begins(4, 4, 1, 1) == [0, 4, 5]
    assert begins(4, 4, 5, 6) == [0, 0, 0]
    assert begins(4, 3, 1, 1) == [0, 3, 4]
    assert begins(1, 1, 1, 3) == [0, 1, 0]  # a cache that is dropped on the way
    for width, arrived in ((4, (5,)), (4, (4, 3)), (4, (3, 2))):
        with pytest.raises(ValueError, match="columns"):
            begins(width, *arrived)


@pytest.mark.parametrize("positions", ["prompt", (0, 3), "steer"])
def test_an_edit_of_logits_finds_all_columns_of_a_prompt(positions):
    """A prompt's forward would compute the logits of its last token alone."""
    model = loaded("llama")
    vector = 30.0 * (torch.arange(tiny.VOCAB) == 77)
    edits = [et.Scale("logits", strength=0.5, positions="prompt"), et.Add("logits", vector=vector, positions=positions)]
    rows = et.generate(model, [[11, 12, 13, 14, 15], [21]], edits, max_new_tokens=NEW, progress=False)
    plain = et.generate(model, [[11, 12, 13, 14, 15], [21]], max_new_tokens=NEW, progress=False)
    for row, without, n in zip(rows, plain, (5, 1), strict=True):
        first, stop = POSITIONS[positions](n)
        raised = [first <= n - 1 + step < stop for step in range(NEW)]
        assert (row["token_ids"] == without["token_ids"]) == (not any(raised))
        assert all(token == 77 for token, here in zip(row["token_ids"], raised, strict=False) if here)
