"""What is wrong with an argument is said before the model works, and nothing is taken that cannot be meant."""

import contextlib
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import discovery, extraction, prompt_tuning, replies
from emotrace.datasets import Prompts
from emotrace.edits import check, refuse_unreached
from emotrace.forwards.conversation import Conversation
from emotrace.judges import flags
from emotrace.suite import arms, measure
from emotrace.suite.raters import LexiconIntensity
from emotrace.suite.summary import check_rows
from tests.helpers import loaded

model = loaded  # the tiny llama of other tests


@contextlib.contextmanager
def idle():
    """No module of any model runs inside."""

    def refuse(module, *_):
        raise AssertionError(f"{type(module).__name__} ran")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def vectors(layers=(0, 1), emotions=("anger", "fear"), site="resid_post"):
    width = model().sites.d_model
    values = np.random.default_rng(0).normal(size=(len(emotions), len(layers), width)).astype("float32")
    coords = {"emotion": list(emotions), "layer": list(layers)}
    return xr.DataArray(values, dims=("emotion", "layer", "dim"), coords=coords, attrs={"site": site})


def add(**given):
    return et.Add("resid_post", **{"layers": [1], "vector": np.ones(model().sites.d_model), **given})


def never():
    """Something that judges or rates, and must not be asked."""

    def refuse(*_, **__):
        raise AssertionError("was asked")

    return SimpleNamespace(name="never", judge=refuse, rate=refuse)


def texts(*labels):
    return Prompts.of([{"key": str(i), "text": f"word {i}", "emotion": label} for i, label in enumerate(labels)])


generate = partial(et.generate, progress=False)
capture = partial(et.capture, progress=False)
IDS = [[5, 6, 7]]
ROW = {"key": "a", "method": "m", "gen_text": "x"}
BAD = {
    "colder than logits bear": (lambda p: generate(model(), IDS, do_sample=True, temperature=1e-300), "temperature"),
    "controls used up": (lambda p: arms(model(), texts("anger"), vectors(), controls=iter(["randon"])), "'random'"),
    "perplexity without ids": (lambda p: measure([ROW | {"query": "q"}], model=model(), judge=never()), "token_ids"),
    "no query for the topic": (lambda p: measure([ROW | {"emotion": "fear"}], judge=never(), topic=never()), "'query'"),
    "an intensity of neutral": (
        lambda p: measure([ROW | {"emotion": "neutral"}], judge=never(), intensity=LexiconIntensity()), "'neutral'"
    ),
    "a perplexity of 0": (lambda p: measure([ROW | {"meta": {"perplexity": 0}}], judge=never()), "above 0"),
    "half a character of a system message": (
        lambda p: Conversation(model(), vectors(), system="\udcff"), "surrogate"
    ),
    "layers in a text": (lambda p: capture(model(), IDS, "resid_post", layers="12"), "a list of whole numbers"),
    "half a layer": (lambda p: capture(model(), IDS, "resid_post", layers=[0.5]), "whole number"),
    "True for a layer": (lambda p: capture(model(), IDS, "resid_post", layers=True), "layers=True"),
    "a layer twice": (lambda p: capture(model(), IDS, "resid_post", layers=[1, 1]), "1 occurs twice"),
    "half a batch": (lambda p: capture(model(), IDS, "resid_post", batch_size=1.5), "whole number"),
    "a word for a flag": (lambda p: capture(model(), IDS, "resid_post", share_prefixes="no"), "True or False"),
    "the whole model as a place": (lambda p: capture(model(), IDS, et.Site("")), "is the whole model"),
    "a capture below a file": (lambda p: capture(model(), IDS, out=p / "file" / "x.zarr"), "is a file, so no folder"),
    "a prompt of bytes": (lambda p: capture(model(), [b"abc"], "resid_post"), "prompt 0 is b'abc'"),
    "half a surrogate pair": (lambda p: capture(model(), ["x\ud800"], "resid_post"), "half of a surrogate pair"),
    "a span beyond all": (lambda p: generate(model(), IDS, [add(positions=(50, 60))], max_new_tokens=3), "would never fire"),
    "the last token, which is never fed": (
        lambda p: generate(model(), IDS, [add(positions=(5, 6))], max_new_tokens=3), "the longest sequence has 5 tokens",
    ),
    "half a token": (lambda p: generate(model(), IDS, max_new_tokens=2.5), "max_new_tokens=2.5"),
    "more least than most": (lambda p: generate(model(), IDS, max_new_tokens=2, min_new_tokens=3), "is more than"),
    "sampling by a word": (lambda p: generate(model(), IDS, do_sample="yes"), "do_sample='yes'"),
    "a temperature that is no number": (lambda p: generate(model(), IDS, do_sample=True, temperature=np.nan), "finite"),
    "a seed below 0": (lambda p: generate(model(), IDS, seed=-1), "seed=-1"),
    "a method without a name": (lambda p: generate(model(), IDS, method=" "), "not blank"),
    "rows into a folder": (lambda p: generate(model(), IDS, out=p), "is a folder; give a file"),
    "rows to no path": (lambda p: generate(model(), IDS, out=3), "a path is due"),
    "an edit's layer twice": (lambda p: add(layers=[1, 1]), "1 occurs twice"),
    "a unit twice": (lambda p: et.Add("neuron", layers=[1], units=[3, 3], vector=[1.0, 2.0]), "3 occurs twice"),
    "half a head": (lambda p: et.Ablate("z", layers=[1], heads=[0.0]), "whole number"),
    "True for a strength": (lambda p: add(strength=True), "finite number"),
    "a complex vector": (lambda p: check([add(vector=np.ones(model().sites.d_model) * 1j)], model().sites), "complex"),
    "flags for a vector": (lambda p: check([add(vector=np.ones(model().sites.d_model) > 0)], model().sites), "torch.bool"),
    "two vectors of a name": (
        lambda p: check([add(vector=vectors(emotions=("anger", "anger")))], model().sites), "two vectors of emotion 'anger'",
    ),
    "a layer twice in a payload": (lambda p: check([add(vector=vectors(layers=(1, 1))[0])], model().sites), "layer twice"),
    "arms of a layer that is not there": (
        lambda p: arms(model(), texts("a"), vectors(layers=(0, 9)), progress=False), "no layer 9",
    ),
    "a control twice": (lambda p: arms(model(), texts("a"), vectors(), controls=["random", "random"]), "occurs twice"),
    "a dose that is no number": (lambda p: et.dose.dose_response(model(), IDS, vectors(), None, doses=[np.nan]), "finite"),
    "doses of a layer that is not there": (
        lambda p: et.dose.dose_response(model(), IDS, vectors(layers=(0, 9)), None), "no layer 9",
    ),
    "no such other side": (
        lambda p: extraction.text_vectors(model(), texts(*"ababab"), against="c"), r"unknown emotion 'c' in text_vectors",
    ),
    "one side alone": (lambda p: extraction.text_vectors(model(), texts(*"aaaa"), against="a"), "nothing but 'a'"),
    "more components than texts": (
        lambda p: extraction.text_vectors(model(), texts(*"abababab"), against="a", remove_neutral=9), "0 to 2",
    ),
    "vectors of a layer that is not there": (
        lambda p: extraction.text_vectors(model(), texts(*"abababab"), against="a", layers=[9]), "no layer 9",
    ),
    "vectors into a file": (
        lambda p: extraction.text_vectors(model(), texts(*"abababab"), against="a", out=p / "file"), "is a file; give a folder",
    ),
    "measures into a file": (lambda p: measure([ROW], model=model(), out=p / "file"), "is a file; give a folder"),
    "prompts tuned into a file": (
        lambda p: prompt_tuning.tune_all(model(), {}, ["joy"], [0], out=p / "file"), "is a file; give a folder",
    ),
    "a seed twice": (lambda p: prompt_tuning.tune_all(model(), {}, ["joy"], [0, 0], out=p / "x"), "0 occurs twice"),
    "a circuit into a file": (
        lambda p: et.circuits.discover(model(), texts("anger"), vectors(), out=p / "file"), "is a file; give a folder",
    ),
    "no such cluster": (lambda p: check_rows([ROW], "theme", "none"), "has no 'theme'"),
    "no such baseline": (lambda p: check_rows([ROW], None, "foo"), "unknown baseline 'foo'"),
    "a reply twice": (lambda p: check_rows([ROW, ROW], None, "none"), "two rows have key 'a'"),
    "a price that is no number": (lambda p: flags(price="nan,1"), "finite number"),
    "a price below 0": (lambda p: flags(price="1,-2"), "at least 0"),
    "nodes by the half": (lambda p: discovery.select(xr.DataArray([1.0, 2.0], dims="node"), 1.0), "whole number"),
    "queries in a text": (lambda p: et.datasets.emotion_query([], emotions="joy"), r"\['joy'\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_it_is_refused_before_any_forward(case, tmp_path):
    run, words = BAD[case]
    model()
    (tmp_path / "file").write_text("x")
    with idle(), pytest.raises(et.EmotraceError, match=words):
        run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"], "nothing is left behind"


def test_numbers_of_numpy_are_numbers():
    plain = capture(model(), IDS, "resid_post", layers=[1]).sel()
    assert (capture(model(), IDS, "resid_post", layers=np.int64(1)).sel() == plain).all()
    edit = add(layers=np.array([1]), strength=np.float32(2), positions=(np.int64(0), np.int8(2)))
    assert (edit.layers, edit.strength, edit.positions) == ((1,), 2, (0, 2))
    rows = [
        generate(model(), IDS, [add()], max_new_tokens=n, seed=np.int64(1))[0]["token_ids"] for n in (2, np.int8(2))
    ]
    assert rows[0] == rows[1]
    refuse_unreached([add(positions=(2, 9))], [3, 1], [4, 2])


def test_a_floor_is_said_to_be_one():
    rows = [{"key": str(i), "skeleton_id": str(i), "verdict": {"match": 1}} for i in range(40)]
    others = [{**row, "verdict": {"match": 0}} for row in rows]
    found = replies.paired_test(rows, others, permutations=99)
    assert found["p"] == found["p_floor"] == 0.01
    few = replies.paired_test(rows[:4], others[:4])
    assert (few["exact"], few["p_floor"], few["p"]) == (True, 0, 2 / 2**4)
