"""Generation with edits equals torch hooks, token for token, under every position policy."""

import copy
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace.forwards import decoding
from emotrace.labels import EmotraceError
from emotrace.runlog import Log
from emotrace.testing import tiny
from tests.helpers import families, hooked, loaded

LENGTHS = (4, 9, 6)
NEW = 7
IDS = [list(range(10 + 7 * i, 10 + 7 * i + n)) for i, n in enumerate(LENGTHS)]
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(1))


def reference(lm, ids, layers, strength, scale, positions, use_cache=True):
    """One prompt at a time, no padding, plain torch hooks on the decoder layers."""
    hf, n = lm._module, len(ids)
    wanted = {
        "last": lambda p: p == n - 1,
        "generated": lambda p: p >= n,
        "steer": lambda p: p >= n - 1,
        "prompt": lambda p: p < n,
        "all": lambda p: True,
        (2, 11): lambda p: 2 <= p < 11,
    }[positions]
    seen = {}

    def hook(layer):
        def change(h):
            first = seen.get(layer, 0) if use_cache else 0
            seen[layer] = first + h.shape[1]
            mask = torch.tensor([float(wanted(first + t)) for t in range(h.shape[1])])[None, :, None]
            v = VECTOR if scale == "raw" else VECTOR / VECTOR.norm()
            size = h.pow(2).mean(-1, keepdim=True).add(1e-12).sqrt() if scale == "rms" else 1.0
            return h + strength * size * v * mask

        return change

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(hooked(hf.model.layers[layer], "output", hook(layer)))
        out = hf.generate(
            torch.tensor([ids]),
            max_new_tokens=NEW,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
            eos_token_id=2,
        )
    reply = out[0, n:].tolist()
    return reply[: reply.index(2)] if 2 in reply else reply


@pytest.mark.parametrize("positions", ["last", "generated", "steer", "prompt", "all", (2, 11)])
@pytest.mark.parametrize(("scale", "strength"), [("raw", 0.8), ("rms", 6.0)])
def test_generation_equals_hooks(positions, scale, strength):
    lm = loaded()
    edit = et.Add("resid_post", layers=[0, 2], vector=VECTOR, strength=strength, scale=scale, positions=positions)
    rows = et.generate(lm, IDS, [edit], max_new_tokens=NEW, batch_size=2, progress=False)
    expected = [reference(lm, ids, [0, 2], strength, scale, positions) for ids in IDS]
    assert [row["token_ids"] for row in rows] == expected
    plain = et.generate(lm, IDS, max_new_tokens=NEW, batch_size=2, progress=False)
    assert [r["token_ids"] for r in plain] != expected, "the edit changes nothing, so the test shows nothing"


CAUSAL = [n for n in tiny.NAMES if not any(c in n for c in ("bert", "electra"))]


def transformers_replies(module, prompts, ends):
    """Greedy replies of transformers' own ``generate`` to a left-padded batch, up to the token that ends each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = module.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=ends
    )
    found = [row[width:].tolist() for row in out]
    return [next((row[:i] for i, token in enumerate(row) if token in ends), row) for row in found]


@pytest.mark.parametrize("name", families(CAUSAL, "mixtral", "opt"))
def test_greedy_replies_are_those_of_transformers(name):
    lm, module = loaded(name), tiny.build(name).eval()
    with torch.no_grad():
        assert torch.equal(module(torch.tensor([IDS[0]])).logits, lm._module(torch.tensor([IDS[0]])).logits)
    ends = decoding.ends_of(decoding.configuration(lm, {}, lm.sites.encoder.pad_id))
    alone = [transformers_replies(module, [ids], ends)[0] for ids in [*IDS, IDS[1]]]
    for size in (1, 2, 4):
        rows = et.generate(lm, [*IDS, IDS[1]], max_new_tokens=NEW, batch_size=size, progress=False)
        assert [row["token_ids"] for row in rows] == alone
    if lm.sites.beginnings.padded:
        assert transformers_replies(module, [*IDS, IDS[1]], ends) == alone, "padded by transformers"


def test_in_bfloat16_replies_and_captures_are_those_of_transformers():
    module = tiny.build("llama").to(torch.bfloat16).eval()
    lm = et.load(tiny.build("llama").to(torch.bfloat16), tokenizer=tiny.tiny_tokenizer())
    ends = decoding.ends_of(decoding.configuration(lm, {}, 0))
    rows = et.generate(lm, IDS, max_new_tokens=NEW, batch_size=1, progress=False)
    assert [row["token_ids"] for row in rows] == [transformers_replies(module, [ids], ends)[0] for ids in IDS]
    acts = et.capture(lm, IDS, "resid_post", batch_size=1, progress=False)
    with torch.no_grad():
        states = [module(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:-1] for ids in IDS]
    for layer in range(lm.sites.n_layers - 1):
        wanted = torch.stack([each[layer][0, -1] for each in states])
        assert torch.equal(torch.tensor(acts.sel(layer=layer, sublayer="resid_post").values), wanted.float())


def test_without_a_cache_the_same_tokens_are_edited():
    lm = loaded()
    edit = et.Add("resid_post", layers=[1], vector=VECTOR, strength=1.0)
    rows = et.generate(lm, IDS, [edit], max_new_tokens=NEW, use_cache=False, progress=False)
    assert [r["token_ids"] for r in rows] == [
        reference(lm, ids, [1], 1.0, "raw", "steer", use_cache=False) for ids in IDS
    ]


@pytest.mark.parametrize("name", ["gpt2", "falcon", "gemma2", "opt", "gpt-neox"])
def test_other_families_batch_like_single_prompts(name):
    lm = loaded(name)
    width = lm.sites.d_model
    edit = et.Add("resid_post", layers=[0, 1], vector=np.linspace(-1, 1, width), strength=0.5, positions="steer")
    together = et.generate(lm, IDS, [edit], max_new_tokens=5, batch_size=3, progress=False)
    alone = [et.generate(lm, [ids], [edit], max_new_tokens=5, progress=False)[0] for ids in IDS]
    assert [r["token_ids"] for r in together] == [r["token_ids"] for r in alone]


def test_payload_is_gathered_per_prompt_by_its_label():
    lm = loaded()
    table = xr.DataArray(
        np.stack([VECTOR.numpy() * 3, -VECTOR.numpy() * 3]),
        dims=("emotion", "dim"),
        coords={"emotion": ["anger", "fear"]},
    )
    prompts = [
        {"key": f"{i}{e}", "token_ids": ids, "emotion": e} for i, ids in enumerate(IDS) for e in ("anger", "fear")
    ]
    rows = et.generate(lm, prompts, [et.Add("resid_post", layers=[1], vector=table)], max_new_tokens=5, progress=False)
    for row, prompt in zip(rows, prompts, strict=True):
        single = et.Add("resid_post", layers=[1], vector=table.sel(emotion=prompt["emotion"]))
        alone = et.generate(lm, [prompt["token_ids"]], [single], max_new_tokens=5, progress=False)
        assert row["token_ids"] == alone[0]["token_ids"]
    assert rows[0]["token_ids"] != rows[1]["token_ids"]


def test_resume_generates_only_what_is_missing_and_ends_alike(tmp_path):
    lm = loaded()
    whole = et.generate(lm, IDS, max_new_tokens=NEW, batch_size=1, out=tmp_path / "whole.jsonl", progress=False)
    part = tmp_path / "part.jsonl"
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    part.write_text(lines[0] + lines[1][:20])  # killed in the middle of a line
    again = et.generate(lm, IDS, max_new_tokens=NEW, batch_size=1, out=part, progress=False)
    assert again == whole
    assert sorted(map(json.loads, part.read_text().splitlines()), key=str) == sorted(whole, key=str)


def test_resume_refuses_other_settings(tmp_path):
    lm, out = loaded(), tmp_path / "rows.jsonl"
    et.generate(lm, IDS, max_new_tokens=3, out=out, progress=False)
    with pytest.raises(EmotraceError, match=r"rows.jsonl.*max_new_tokens"):
        et.generate(lm, IDS, max_new_tokens=4, out=out, progress=False)


def test_nothing_is_written_or_continued_of_weights_that_were_changed_since_they_were_loaded(tmp_path):
    lm, out = et.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer()), tmp_path / "rows.jsonl"
    et.generate(lm, IDS, max_new_tokens=2, out=out, progress=False)
    before = out.read_bytes()
    lm._module.model.layers[0].mlp.down_proj.weight.data[0, 0] += 1
    with pytest.raises(EmotraceError, match=r"other weights than it was loaded with.*load it again"):
        et.generate(lm, IDS, max_new_tokens=2, out=out, progress=False)
    with pytest.raises(EmotraceError, match="other weights than it was loaded with"):
        et.capture(lm, IDS, "z", out=tmp_path / "store", progress=False)
    assert (out.read_bytes(), (tmp_path / "store").exists()) == (before, False)


def test_sampling_is_seeded_and_batches_have_their_own_stream():
    lm = loaded()
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": NEW, "batch_size": 2, "progress": False}
    a, b = (et.generate(lm, IDS, seed=3, **options) for _ in range(2))
    c = et.generate(lm, IDS, seed=4, **options)
    assert a == b
    assert [r["token_ids"] for r in a] != [r["token_ids"] for r in c]


def test_an_edit_that_never_fires_is_an_error():
    lm = loaded()
    edit = et.Add("resid_post", layers=[1], vector=VECTOR, positions=(500, 600))
    with pytest.raises(EmotraceError, match="would never fire"):
        et.generate(lm, IDS, [edit], max_new_tokens=3, progress=False)


def test_early_end_stops_the_batch(monkeypatch):
    lm = loaded()
    first = et.generate(lm, [IDS[0]], max_new_tokens=1, progress=False)[0]["token_ids"][0]
    monkeypatch.setattr(lm._module.generation_config, "eos_token_id", first)
    edit = et.Scale("resid_post", layers=[0], strength=1.0, positions="all")
    row = et.generate(lm, [IDS[0]], [edit], max_new_tokens=NEW, progress=False)[0]
    assert row["token_ids"] == []
    assert row["meta"]["stopped"] is True


def test_a_reply_ends_before_a_stop_and_keeps_the_tokens_that_hold_what_is_left(tmp_path):
    lm = et.load(str(Path(__file__).parents[2] / "data" / "tiny_model"))
    prompts = [[{"role": "user", "content": text}] for text in ("I sold the boat.", "We ran.", "The dog is here now.")]
    options = {"max_new_tokens": 20, "batch_size": 3, "progress": False}
    whole, encoder = et.generate(lm, prompts, **options), lm.sites.encoder
    texts = encoder.token_texts(whole[0]["token_ids"])
    inside = next(i for i, text in enumerate(texts) if i > 2 and len(text.strip()) > 3)
    for name, stop in (("one", texts[inside].strip()[2:]), ("two", texts[inside - 1][-1:] + texts[inside][:2])):
        out = tmp_path / f"{name}.jsonl"
        rows = et.generate(lm, prompts, stop=[stop, "nowhere"], out=out, **options)
        assert stop in whole[0]["gen_text"]
        for row, full in zip(rows, whole, strict=True):
            ids = row["token_ids"]
            assert row["gen_text"] == full["gen_text"].split(stop)[0].strip()
            assert ids == full["token_ids"][: len(ids)]
            assert encoder.decode(ids).startswith(row["gen_text"])
            before, *after = encoder.decode_all(full["token_ids"]).split(stop)
            some = encoder.decode_all(ids)
            assert (
                some == before
                or not after
                or (some.startswith(before + stop) and encoder.decode_all(ids[:-1]) != before)
            )
            assert row["meta"]["stopped"] is (stop in full["gen_text"] or full["meta"]["stopped"])
        assert et.generate(lm, prompts, stop=[stop, "nowhere"], out=out, **options) == rows
        with pytest.raises(EmotraceError, match="stop"):
            et.generate(lm, prompts, out=out, **options)


@pytest.mark.parametrize("stop", [[""], [3], "ab"])
def test_a_stop_is_a_list_of_texts(stop):
    with pytest.raises(EmotraceError, match="stop"):
        et.generate(loaded(), IDS, stop=stop, progress=False)


def test_plain_strings_that_a_chat_model_does_not_answer_are_pointed_out(monkeypatch):
    lm = loaded()
    monkeypatch.setattr(lm.sites.encoder, "has_template", True)
    first = et.generate(lm, ["alpha beta"], max_new_tokens=1, progress=False)[0]["token_ids"][0]
    monkeypatch.setattr(lm._module.generation_config, "eos_token_id", first)
    with pytest.warns(UserWarning, match=r"1 of 1 replies are empty .*without the chat template") as caught:
        et.generate(lm, ["alpha beta"], max_new_tokens=2, progress=False)
    assert caught[0].filename == __file__


def test_a_plan_says_prompts_tokens_and_batches_and_makes_no_file(tmp_path, monkeypatch):
    lm, ran = loaded(), []
    monkeypatch.setattr("emotrace.forwards.generation.generated", lambda *_: ran.append(_))
    prompts = et.datasets.Prompts.of(IDS)
    prompts = prompts.with_replies([{"key": key, "token_ids": [7, 8]} for key in prompts.keys])
    dry = et.generate.plan(lm, prompts, max_new_tokens=5, prefill=True, batch_size=2, out=tmp_path / "a.jsonl")
    tokens = sum(map(len, IDS))
    assert (dry.prompts, dry.tokens, dry.new_tokens) == (len(IDS), tokens + 2 * len(IDS), 5 * len(IDS))
    assert dry.batches == -(-len(IDS) // 2)
    assert f"{tokens + 2 * len(IDS)} tokens → as many replies in {dry.batches} batches" in str(dry)
    assert not ran
    assert not any(tmp_path.iterdir())
    with pytest.raises(EmotraceError, match="max_new_tokens=0"):
        et.generate.plan(lm, IDS, max_new_tokens=0)


def test_a_file_is_free_again_once_its_rows_are_there(tmp_path, monkeypatch):
    lm, out, kept = loaded(), tmp_path / "rows.jsonl", []

    def opened(path):
        kept.append(Log(path))  # as something that still holds on to it would
        return kept[-1]

    monkeypatch.setattr("emotrace.forwards.generation.Log", opened)
    et.generate(lm, IDS[:1], max_new_tokens=2, out=out, progress=False)
    assert len(kept) == 1
    with Log(out) as log:  # another run may append at once
        log.append({"key": "other", "method": "none"})


@pytest.mark.parametrize("remote", [False, "local"])
def test_settings_beside_the_weights_change_no_reply(remote, monkeypatch):
    """A checkpoint's generation_config.json may ask for beams, penalties and forbidden tokens."""
    lm = loaded("llama") if not remote else et.load(loaded("llama")._module, remote="local")
    sampled = {"do_sample": True, "temperature": 1.5, "top_p": 0.95, "seed": 4}
    plain = [et.generate(lm, IDS, max_new_tokens=NEW, progress=False, **how) for how in ({}, sampled)]
    own = copy.deepcopy(lm._module.generation_config)
    monkeypatch.setattr(lm._module, "generation_config", own)
    seen = sorted({t for row in plain[0] + plain[1] for t in row["token_ids"]})
    own.update(
        num_beams=3, suppress_tokens=seen[:9], bad_words_ids=[[seen[-1]]], min_length=30, typical_p=0.1,
        exponential_decay_length_penalty=(1, 5.0), min_p=0.5, epsilon_cutoff=0.1, temperature=0.1,
        top_k=2, num_return_sequences=2,
    )  # fmt: skip
    assert [et.generate(lm, IDS, max_new_tokens=NEW, progress=False, **how) for how in ({}, sampled)] == plain
    assert lm._module.generation_config is own
    assert own.num_beams == 3


def test_a_reply_of_full_length_ends_with_the_token_that_the_model_forces(monkeypatch):
    """As transformers' own ``generate``: Bart's configuration forces an end, and that is no setting of the sampling."""
    lm = loaded("llama")
    plain = et.generate(lm, IDS, max_new_tokens=NEW, progress=False)
    forced = next(t for t in range(3, 90) if all(t not in row["token_ids"] for row in plain))
    monkeypatch.setattr(lm._module.generation_config, "forced_eos_token_id", forced)
    got = et.generate(lm, IDS, max_new_tokens=NEW, progress=False)
    full = [row for row in plain if len(row["token_ids"]) == NEW]
    assert full
    for row, was in zip(got, plain, strict=True):
        expected = [*was["token_ids"][:-1], forced] if was in full else was["token_ids"]
        assert row["token_ids"] == expected


def test_an_edit_that_acted_in_rows_of_an_earlier_run_alone_is_not_silent(tmp_path):
    lm = loaded("llama")
    edits = [et.Scale("resid_post", layers=[0], strength=0.5, positions=(14, 15))]
    options = {"max_new_tokens": 2, "batch_size": 1, "progress": False, "out": tmp_path / "rows.jsonl"}
    long, short = {"key": "long", "token_ids": list(range(20, 36))}, {"key": "short", "token_ids": [20, 21]}
    first = et.generate(lm, [long], edits, **options)
    assert et.generate(lm, [long, short], edits, **options)[0] == first[0]
    with pytest.raises(et.EmotraceError, match="never fire"):
        et.generate(lm, [short], edits, **options | {"out": tmp_path / "others.jsonl"})
