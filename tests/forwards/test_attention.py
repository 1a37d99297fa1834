"""Attention: grouped heads attend to keys and values as they are, with the same bits, in what emotrace runs alone."""

import pytest
import torch
from transformers.integrations import sdpa_attention

import emotrace as et
from emotrace.forwards import attention
from emotrace.testing import tiny
from tests.helpers import loaded

IDS = [list(range(20, 34)), list(range(40, 49))]


def decoded(module):
    """Logits of a padded prefill and of a step behind it."""
    ids, mask = torch.arange(5, 41).reshape(3, 12), torch.ones((3, 13), dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad():
        first = module(input_ids=ids, attention_mask=mask[:, :-1], use_cache=True)
        step = module(input_ids=ids[:, :1], attention_mask=mask, past_key_values=first.past_key_values)
    return torch.cat([first.logits, step.logits], dim=1)


@pytest.fixture
def repeated(monkeypatch):
    """How often keys or values were repeated."""
    found, real = [], sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *a: found.append(1) or real(*a))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_the_bits_are_those_of_repeated_keys_and_values(name, dtype, repeated):
    module = tiny.build(name).to(dtype).eval()
    plain = decoded(module)
    assert repeated, "nothing is repeated, so the test shows nothing"
    repeated.clear()
    with attention.grouped():
        assert torch.equal(decoded(module), plain)
    assert not repeated
    decoded(module)
    assert repeated  # what others run is as transformers decides


def test_replies_repeat_nothing(repeated):
    lm = loaded()
    et.generate(lm, IDS, max_new_tokens=3, progress=False)  # what is proven of a model is as others run it
    repeated.clear()
    et.generate(lm, [ids[2:] for ids in IDS], max_new_tokens=3, progress=False)
    assert not repeated
