"""Means over positions, taken where the model lives, are those of stored rows; so are directions of them that store nothing."""

import numpy as np
import pytest

import emotrace as et
from emotrace.datasets import Prompt, Prompts
from emotrace.forwards import centred
from emotrace.labels import EmotraceError
from emotrace.testing import tiny
from tests.helpers import loaded


def prompts(n=30):
    rng = np.random.default_rng(0)

    def ids(some):
        return tuple(rng.integers(len(tiny.SPECIALS), tiny.VOCAB, some).tolist())

    return Prompts(
        Prompt(
            f"p{i}", token_ids=ids(rng.integers(3, 9)), reply_ids=ids(rng.integers(0, 6) if i % 7 else 0),
            labels={"emotion": ("anger", "fear", "joy")[i % 3], "skeleton_id": f"s{i // 3}", "valence": "negative"},
        ) for i in range(n)
    )  # fmt: skip


SITES = ("resid_mid", "resid_post")


@pytest.mark.parametrize("positions", ["generated", "all", (1, 4)])
def test_means_are_those_of_stored_rows(tmp_path, positions):
    rows = et.capture(loaded(), prompts(), (*SITES, "z"), positions=positions, progress=False)
    means = et.capture(
        loaded(), prompts(), (*SITES, "z"), positions=positions, reduce="mean", out=tmp_path / "a.zarr", row_group_bytes=9_000,
        batch_size=5, progress=False,
    )  # fmt: skip
    assert means.n_groups > 2
    assert means.attrs["reduce"] == "mean"
    for variable in ("residual", "z"):
        wanted = rows.sel(variable).groupby("prompt").mean()
        found = means.sel(variable)
        order = [*found.dims[: found.dims.index("token")], "prompt", *found.dims[found.dims.index("token") + 1 :]]
        np.testing.assert_allclose(found.values, wanted.transpose(*order).values, atol=1e-5)
    counts = rows.tokens.groupby("prompt").size()
    assert means.tokens.prompt.tolist() == counts.index.tolist()
    assert means.tokens.averaged.tolist() == counts.tolist()
    assert means.tokens.position.tolist() == rows.tokens.groupby("prompt").position.max().tolist()


def test_packed_as_for_a_server_they_are_the_same(monkeypatch):
    from emotrace import model as model_

    here = et.capture(loaded(), prompts(9), SITES, positions="all", reduce="mean", progress=False)
    packed = model_.load(tiny.build("llama"), tokenizer=tiny.tiny_tokenizer(), remote="local")
    there = et.capture(packed, prompts(9), SITES, positions="all", reduce="mean", progress=False)
    np.testing.assert_allclose(there.residual.values, here.residual.values, atol=1e-6)


def test_gradients_and_labels_of_that_name_are_refused():
    with pytest.raises(EmotraceError, match="belong to single rows"):
        et.capture(loaded(), prompts(), "z", reduce="mean", components=True)
    named = Prompts([Prompt("a", token_ids=(11, 12), labels={"averaged": 1})])
    with pytest.raises(EmotraceError, match="'averaged' of its own"):
        et.capture(loaded(), named, "z", reduce="mean")


@pytest.mark.parametrize("within", [("skeleton_id", "valence"), None])
def test_directions_that_store_nothing_are_those_of_stored_means(tmp_path, monkeypatch, within):
    monkeypatch.setattr(centred, "PER_CHUNK", 4)
    some = prompts()
    means = et.capture(loaded(), some, SITES, positions="generated", reduce="mean", progress=False)
    wanted = et.directions.centered_mean(means, within=within, position="all", complete=False)
    options = {"within": within, "complete": False, "progress": False}
    found = et.stream_directions(loaded(), some, out=tmp_path / "a", **options)
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-5)
    np.testing.assert_allclose(found.norm.values, wanted.norm.values, rtol=1e-4)
    assert found.dims == wanted.dims
    assert {n: c.values.tolist() for n, c in found.coords.items() if n != "norm"} == {
        n: c.values.tolist() for n, c in wanted.coords.items() if n != "norm"
    }
    assert sum(p.stat().st_size for p in (tmp_path / "a").iterdir()) < 100_000
    calls = []
    monkeypatch.setattr(centred, "weighted_sums", lambda *a, real=centred.weighted_sums: calls.append(1) or real(*a))
    again = et.stream_directions(loaded(), some, out=tmp_path / "a", **options)
    assert not calls
    assert again.values.tobytes() == found.values.tobytes()
    with pytest.raises(EmotraceError, match="positions"):
        et.stream_directions(loaded(), some, positions="all", out=tmp_path / "a", **options)


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(EmotraceError, match="several variables"):
        et.stream_directions(loaded(), prompts(), ("resid_post", "z"), progress=False)
    with pytest.raises(EmotraceError, match="no prompt has such a position"):
        et.stream_directions(loaded(), [[11, 12], [13, 14]], progress=False)
