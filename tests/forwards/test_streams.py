from __future__ import annotations

import numpy as np
import pytest

import emotrace as et
from emotrace.attribution import stream
from emotrace.datasets import Prompts
from emotrace.forwards import streams
from emotrace.labels import EmotraceError
from tests.helpers import loaded

TEXTS = ["one", "two words", "a third prompt", "x", "and the last of five"]
SITES = ("z", "neuron", "resid_mid", "resid_post")


def labelled():
    return Prompts.of([{"key": f"k{i}", "text": t, "emotion": ("anger", "fear")[i % 2]} for i, t in enumerate(TEXTS)])


@pytest.mark.parametrize("prompts_per_chunk", [1, 2, 5, 100])
def test_chunks_are_one_capture_in_the_order_of_the_prompts(prompts_per_chunk):
    model, prompts = loaded("llama"), labelled()
    whole = et.capture(model, prompts, SITES, positions="last", progress=False)
    seen = []
    for rows, acts in stream(model, prompts, SITES, prompts_per_chunk=prompts_per_chunk, progress=False):
        assert len(acts) == len(rows) <= prompts_per_chunk
        assert acts.tokens["key"].tolist() == [prompts[i].key for i in rows]
        for name in ("z", "neuron", "residual"):
            part = whole.sel(name, key=[prompts[i].key for i in rows])
            np.testing.assert_allclose(acts.sel(name).values, part.values, atol=1e-5)
        seen += rows
    assert seen == list(range(5))


def test_a_later_start_gives_the_same_bits_as_the_whole():
    model, prompts = loaded("llama"), labelled()
    whole = list(stream(model, prompts, "z", prompts_per_chunk=2, progress=False))
    late = list(stream(model, prompts, "z", prompts_per_chunk=2, start=2, progress=False))
    assert [r for r, _ in late] == [r for r, _ in whole[1:]] == [range(2, 4), range(4, 5)]
    for (_, a), (_, b) in zip(whole[1:], late, strict=True):
        np.testing.assert_array_equal(a.sel("z").values, b.sel("z").values)
    assert list(stream(model, prompts, "z", prompts_per_chunk=2, start=5, progress=False)) == []


def test_layers_and_edits_reach_the_capture():
    model, prompts = loaded("llama"), labelled()
    edits = [et.Ablate("z", layers=[1], heads=[2], positions="all")]
    want = et.capture(model, prompts, "resid_post", layers=[1], edits=edits, progress=False)
    ((_, got),) = stream(model, prompts, "resid_post", layers=[1], edits=edits, progress=False)
    np.testing.assert_array_equal(got.residual.values, want.residual.values)
    plain = et.capture(model, prompts, "resid_post", layers=[1], progress=False)
    assert np.abs(got.residual.values - plain.residual.values).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"prompts_per_chunk": 0}, "at least 1"),
        ({"start": 3, "prompts_per_chunk": 2}, "multiple"),
        ({"start": 6}, "of 5 prompts"),
        ({"edits": [et.Ablate("z", layers=[9])]}, "no layer 9"),
    ],
)
def test_bad_settings_are_refused_without_iterating(options, word):
    with pytest.raises(EmotraceError, match=word):
        stream(loaded("llama"), labelled(), "z", **options)


def test_chunk_sizes_are_bounded_multiples_of_a_batch():
    assert streams.fitting(1) == 1024
    assert streams.fitting(1 << 40) == 32
    for row_bytes in (1 << 16, 100_000, 917_504):
        size = streams.fitting(row_bytes)
        assert size % 32 == 0
        assert size * row_bytes <= streams.CHUNK_BYTES < (size + 32) * row_bytes


def test_accepted_prompts_keep_their_order():
    prompts = labelled()
    assert streams.accepted_only(prompts, None) is prompts
    assert streams.accepted_only(prompts, ["k3", "k0", "other"]).keys == ("k0", "k3")
    with pytest.raises(EmotraceError, match="none of the keys"):
        streams.accepted_only(prompts, ["other"])


def test_codes_count_the_values_in_the_order_given():
    prompts = labelled()
    assert streams.codes(prompts, "emotion", ["fear", "anger"]).tolist() == [1, 0, 1, 0, 1]
    for values, label, word in (
        (["anger"], "emotion", "'fear'"),
        (["anger", "fear", "joy"], "emotion", "joy"),
        (["anger"], "emotoin", "Did you mean 'emotion'"),
    ):
        with pytest.raises(EmotraceError, match=word):
            streams.codes(prompts, label, values, "here")


def test_the_origin_changes_with_model_and_prompts():
    prompts = labelled()
    one = streams.origin(loaded("llama"), prompts)
    assert one == streams.origin(loaded("llama"), labelled())
    assert one["weights_hash"] != streams.origin(loaded("llama", seed=1), prompts)["weights_hash"]
    assert one["prompts_digest"] != streams.origin(loaded("llama"), prompts[:4])["prompts_digest"]
