"""Views against what transformers and plain matrix products say."""

import numpy as np
import pytest
import torch
import xarray as xr

from emotrace.attribution import top_prompts, views
from emotrace.attribution.views import attention, top_tokens
from emotrace.datasets import Prompts
from emotrace.forwards import streams
from emotrace.forwards.capturing import capture
from emotrace.labels import EMOTIONS, EmotraceError
from emotrace.testing import hooks
from emotrace.testing.planted import FAMILIES, planted
from tests.helpers import loaded

RNG = np.random.default_rng(0)
PROMPTS = Prompts.of(
    [
        {
            "key": f"p{i}",
            "token_ids": RNG.integers(10, 150, 3 + i % 4).tolist(),
            "emotion": "fear" if i % 2 else "anger",
        }
        for i in range(11)
    ]
)


def directions(width=32, layers=2):
    return xr.DataArray(
        RNG.normal(size=(2, layers, width)).astype(np.float32),
        dims=("emotion", "layer", "dim"),
        coords={"emotion": ["anger", "fear"], "layer": [0, 3][:layers]},
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "bert"])
def test_top_tokens_are_those_of_norm_and_unembedding(name):
    lm, mine = loaded(name), directions()
    table = top_tokens(lm, mine, k=4)
    assert list(table.columns) == ["emotion", "layer", "rank", "token_id", "token", "logit"]
    assert len(table) == 2 * 2 * 4
    module, norm = lm._module, lm.sites.addresses.get("final_norm")
    for (e, layer), part in table.groupby(["emotion", "layer"], sort=False):
        v = torch.tensor(mine.sel(emotion=e, layer=layer).values)
        v = v / v.square().mean().sqrt()
        with torch.no_grad():
            bert = name == "bert"  # whose head is more than a norm and a matrix
            h = module.get_submodule("cls" if bert else norm[None].path)(v)
            logits = h if bert else module.get_output_embeddings()(h)
        want = logits.topk(4)
        assert part["token_id"].tolist() == want.indices.tolist()
        np.testing.assert_allclose(part["logit"], want.values, rtol=1e-4, atol=1e-5)
        assert part["token"].tolist() == lm.sites.encoder.token_texts(want.indices.tolist())
        assert part["rank"].tolist() == [0, 1, 2, 3]


def test_the_length_of_a_direction_does_not_matter_but_its_sign_does(monkeypatch):
    lm, mine = loaded(), directions()
    table = top_tokens(lm, mine, 3)
    np.testing.assert_allclose(top_tokens(lm, 1e-3 * mine, 3)["logit"], table["logit"], rtol=1e-4)
    assert top_tokens(lm, -mine, 3)["token_id"].tolist() != table["token_id"].tolist()
    monkeypatch.setattr(views, "LOGIT_ELEMENTS", 1)  # a large vocabulary leaves one direction a forward
    assert top_tokens(lm, mine, 3).drop(columns="logit").equals(table.drop(columns="logit"))
    alone = top_tokens(lm, mine.sel(emotion="fear", layer=3), 3)
    assert list(alone.columns) == ["rank", "token_id", "token", "logit"]
    assert alone["token_id"].tolist() == table.query("emotion == 'fear' and layer == 3")["token_id"].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_planted_direction_says(family):
    known = planted(family)
    acts = capture(known.model, known.prompts, ["resid_post"], layers=[2], progress=False)
    means = acts.sel().groupby("emotion").mean("token").isel(sublayer=0, layer=0, drop=True)
    table = top_tokens(known.model, means - means.mean("emotion"), 1)
    assert dict(zip(table["emotion"], table["token_id"], strict=True)) == {e: known.answers[e] for e in EMOTIONS}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_attention_is_what_transformers_returns(name):
    lm = loaded(name, attn_implementation="eager")
    ids, reply = [1, 20, 30, 40], [50, 60]
    pattern = attention(lm, {"key": "p", "token_ids": ids, "reply_ids": reply}, layer=1, head=2)
    with torch.no_grad():
        theirs = lm._module(torch.tensor([ids + reply]), output_attentions=True).attentions[1][0, 2]
    np.testing.assert_allclose(pattern.values, theirs, atol=1e-6)
    np.testing.assert_allclose(pattern.sum("key"), 1, atol=1e-5)
    assert pattern["key_token"].values.tolist() == lm.sites.encoder.token_texts(ids + reply)
    assert pattern.sel(query=3)["query_token"].item() == lm.sites.encoder.token_texts([40])[0]
    assert (pattern.attrs["layer"], pattern.attrs["head"], pattern.attrs["prompt"]) == (1, 2, "p")
    text = attention(lm, "Hello", 0, 0)
    assert text.sizes["query"] == len(lm.sites.encoder.ids(["Hello"])[0])


def test_attention_refusals():
    eager = loaded(attn_implementation="eager")
    with pytest.raises(EmotraceError, match="attn_implementation='eager'"):
        attention(loaded(attn_implementation="sdpa"), "Hello", 0, 0)
    with pytest.raises(EmotraceError, match="layers are 0 to 2"):
        attention(eager, "Hello", 5, 0)
    with pytest.raises(EmotraceError, match="heads 0 to 3"):
        attention(eager, "Hello", 0, 4)
    with pytest.raises(EmotraceError, match="one prompt, not 11"):
        attention(eager, PROMPTS, 0, 0)


def test_top_prompts_are_sorted_by_what_hooks_read(monkeypatch):
    lm = loaded()
    monkeypatch.setattr(streams, "fitting", lambda size: 4)  # several chunks
    table = top_prompts(lm, PROMPTS, 1, [7, 3], k=4, batch_size=3, progress=False)
    assert table["unit"].tolist() == [7] * 4 + [3] * 4
    seen = [hooks.recorded(lm, {"input_ids": torch.tensor([p.token_ids])})["neuron", 1][0, -1] for p in PROMPTS]
    for unit, part in table.groupby("unit"):
        values = np.array([float(h[unit]) for h in seen])
        order = np.argsort(-values)[:4]
        assert part["key"].tolist() == [PROMPTS[int(i)].key for i in order]
        np.testing.assert_allclose(part["activation"], values[order], atol=1e-5)
        assert part["emotion"].tolist() == [PROMPTS[int(i)].labels["emotion"] for i in order]
    assert table["rank"].tolist() == [0, 1, 2, 3] * 2
    assert len(top_prompts(lm, PROMPTS, 1, 5, k=50, progress=False)) == len(PROMPTS)
    chat = [[{"role": "system", "content": "x"}, {"role": "user", "content": "What is it?"}], "Plain text"]
    assert set(top_prompts(lm, chat, 1, 5, progress=False)["text"]) == {"What is it?", "Plain text"}


def test_view_refusals():
    lm = loaded()
    for message, call in (
        ("with the dim 'dim'", lambda: top_tokens(lm, directions().rename(dim="d"))),
        ("32 wide", lambda: top_tokens(lm, directions(9))),
        ("not zero", lambda: top_tokens(lm, directions() * 0)),
        ("1 to 160", lambda: top_tokens(lm, directions(), 0)),
        ("units 0 to 47", lambda: top_prompts(lm, PROMPTS, 1, [48])),
        ("is empty", lambda: top_prompts(lm, PROMPTS, 1, [])),
        ("at least 1", lambda: top_prompts(lm, PROMPTS, 1, 0, k=0)),
        ("has no site 'neuron'", lambda: top_prompts(loaded("mixtral"), PROMPTS, 1, 0)),
    ):
        with pytest.raises(EmotraceError, match=message):
            call()


def test_top_prompts_of_stored_activations_are_tokens(tmp_path):
    lm = loaded()
    rows = [
        {"key": p.key, "token_ids": p.token_ids, "reply_ids": (20 + i, 30, 40 + i), **p.labels}
        for i, p in enumerate(PROMPTS)
    ]
    acts = capture(lm, rows, "neuron", positions="steer", out=tmp_path / "a.zarr", progress=False)
    table = top_prompts(acts, 1, [7, 3], k=4)
    tokens = acts.tokens
    for unit, part in table.groupby("unit"):
        values = acts.neuron.sel(layer=1, unit=unit).values
        order = np.argsort(-values, kind="stable")[:4]
        assert part["activation"].tolist() == values[order].tolist()
        for column in ("key", "position", "position_from_end", "token_id", "token_text", "emotion"):
            assert part[column].tolist() == tokens[column].iloc[order].tolist()
    replies = top_prompts(acts.where(position="generated"), 1, 7, k=100)
    assert len(replies) == 3 * len(PROMPTS)
    assert (replies["position_from_end"] >= 0).all()
    last = top_prompts(acts.where(position="last"), 1, [7, 3], k=4)
    streamed = top_prompts(lm, PROMPTS, 1, [7, 3], k=4, progress=False)
    for column in ("unit", "rank", "key", "position", "position_from_end", "token_id", "token_text"):
        assert last[column].tolist() == streamed[column].tolist(), column
    with pytest.raises(EmotraceError, match="unknown unit 48"):
        top_prompts(acts, 1, 48)
