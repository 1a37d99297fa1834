"""Bad inputs: what was tried, and the message that it gets. ``python -m tests.test_bad_inputs`` prints the table.

Every case ends with one `EmotraceError` (on the command line: one line and exit status 2) that names the value, its place
and what would have been right, before any model runs.
"""

import atexit
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import xarray as xr

import emotrace as et
from emotrace import cli, edits, judges, presets, replies, runlog, scoring
from emotrace.datasets import Prompts, read_sev, sev
from emotrace.forwards import beginnings
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError
from emotrace.run import Run
from emotrace.testing import tiny
from emotrace.traced import runs
from tests.helpers import loaded

IDS = [[11, 12, 13], [14, 15]]
V = np.ones(32, dtype=np.float32)


@cache
def place() -> Path:
    """A folder with one good thing of every kind, and some broken ones."""
    folder = Path(tempfile.mkdtemp(prefix="emotrace-bad-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    row = {"skeleton_id": "work_00", "theme": "Work/Job", "scenario": "I came", "event": dict.fromkeys(VALENCES, "So.")}
    write(folder / "sev.jsonl", row, {**row, "skeleton_id": "work_01"})
    write(folder / "torn.jsonl", row, text='{"skeleton_id": "work_01", "scen')
    write(folder / "column.jsonl", row, {k: v for k, v in row.items() if k != "scenario"})
    write(folder / "valence.jsonl", {**row, "event": {"happy": "So."}})
    write(folder / "empty.jsonl")
    write(folder / "noreply.jsonl", {"key": "a", "emotion": "anger"})
    write(folder / "odd_emotion.jsonl", {"key": "a", "method": "prompt", "emotion": "rage", "gen_text": "x"})
    judged = {"key": "work_00__positive__anger", "emotion": "anger", "gen_text": "x", "verdict": {"match": 1}}
    write(folder / "unjudged.jsonl", {k: v for k, v in judged.items() if k != "verdict"})
    write(folder / "methods.jsonl", {**judged, "method": "prompt"}, {**judged, "method": "steer"})
    write(folder / "other_rows.jsonl", {"key": "elsewhere", "token_ids": [11]})
    tiny.save("llama", folder / "model")
    tiny.save("llama", folder / "lacking", num_hidden_layers=2)
    config = json.loads((folder / "lacking" / "config.json").read_text())
    (folder / "lacking" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    tiny.save("llama", folder / "torn_weights")
    weights = next((folder / "torn_weights").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    prompts = sev(folder / "sev.jsonl")
    acts = et.capture(loaded(), prompts, ("resid_post",), out=folder / "acts.zarr", progress=False)
    et.directions.save(et.directions.centered_mean(acts), folder / "dirs")
    edits.save_edits([et.Add("resid_post", layers=[0], vector=V)], folder / "edits")
    (folder / "edits" / "edits.json").write_text('[{"edit": "Multiply"}]')
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("mine")
    Run(folder / "run", {"seed": 0, "limit": 4})
    return folder


def write(path, *rows, text=""):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + text, encoding="utf-8")


def command(*args):
    """The command line, as one process would run it; raises what it prints."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["emotrace", *(str(a).replace("@", f"{place()}/") for a in args)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    lines = err.getvalue().splitlines()
    assert (ended.value.code, len(lines), out.getvalue()) == (2, 1, ""), lines
    assert lines[0].startswith("error: "), lines
    raise EmotraceError(lines[0])


def capture(**wrong):
    return et.capture(loaded(), **{"prompts": IDS, "sites": ("resid_post",), "progress": False, **wrong})


def generate(**wrong):
    return et.generate(loaded(), **{"prompts": IDS, "max_new_tokens": 2, "progress": False, **wrong})


def steer(*args, emotion="anger"):
    return command("steer", "Hello", "--model", "@model", "--directions", "@dirs", "--emotion", emotion, *args)


def labelled(**coords):
    names = list(coords)
    shape = [len(c) for c in coords.values()]
    return xr.DataArray(np.ones((*shape, 32)), dims=(*names, "dim"), coords=coords)


def stored(**labels):
    return et.open_activations(place() / "acts.zarr").sel(**labels)


def rejudged():
    rows = [{"key": "a", "emotion": "anger", "gen_text": "x", "draw": 0}]
    with runlog.Log(place() / "v.jsonl") as log:
        judges.judge_rows(rows, judges.make("lexicon"), log=log, progress=False)


def changed_store():
    return et.capture(loaded(), sev(place() / "sev.jsonl"), ("resid_pre",), out=place() / "acts.zarr")


GEN = ("generate", "--model", "@model", "--data", "@sev.jsonl")
CAP = ("capture", "--model", "@model", "--data", "@sev.jsonl", "--out", "@new.zarr")

CASES = {
    # files
    "a missing file": (lambda: read_sev(place() / "sve.jsonl"), "sve.jsonl: no such file"),
    "a folder as file": (lambda: read_sev(place()), "is a directory, not a file"),
    "prompts of an emotion that none has": (
        lambda: sev(place() / "sev.jsonl").where(emotion="fears"),
        "unknown emotion 'fears' in Prompts.where. Did you mean 'fear'",
    ),
    "an empty file": (lambda: read_sev(place() / "empty.jsonl"), "has no rows"),
    "a torn line": (lambda: read_sev(place() / "torn.jsonl"), "torn.jsonl:2: not JSON"),
    "a missing column": (lambda: read_sev(place() / "column.jsonl"), "column.jsonl:2: field 'scenario' is missing"),
    "an unknown valence": (lambda: read_sev(place() / "valence.jsonl"), "valence.jsonl:1. Choices: positive"),
    # labels
    "an unknown emotion": (lambda: sev(place() / "sev.jsonl", emotions=["angr"]), "Did you mean 'anger'"),
    "one string as list": (lambda: sev(place() / "sev.jsonl", emotions="anger"), "a list of names is due"),
    "a limit of 0": (lambda: sev(place() / "sev.jsonl", limit=0), "limit=0"),
    "a label that prompts lack": (lambda: sev(place() / "sev.jsonl").where(topic="x"), "unknown label 'topic'"),
    # prompts
    "no prompts": (lambda: generate(prompts=[]), "there are no prompts"),
    "two prompts with one key": (lambda: Prompts.of([{"key": "a", "text": "x"}] * 2), "two prompts have the key 'a'"),
    "a prompt that is a number": (lambda: generate(prompts=[3]), "prompt 0 is 3"),
    "a message without content": (lambda: generate(prompts=[[{"role": "user"}]]), "a message is {'role'"),
    "an id outside the vocabulary": (lambda: capture(prompts=[[11, 160]]), "token id 160; the model knows 0 to 159"),
    "a prompt longer than the model": (
        lambda: et.capture(loaded("gpt2"), [[11] * 65], ("resid_post",)),
        "has 65 tokens; the model takes at most 64",
    ),
    "no room for the reply": (
        lambda: et.generate(loaded("gpt2"), [[11] * 60], max_new_tokens=9),
        "exceed the 64 positions",
    ),
    "replies to other prompts": (
        lambda: command(*CAP, "--positions", "generated", "--replies", "@other_rows.jsonl"),
        "none of the 1 replies has a key of these prompts",
    ),
    # sites and positions
    "a misspelt site": (lambda: capture(sites=("resid_pots",)), "Did you mean 'resid_post'"),
    "a site the model lacks": (
        lambda: et.capture(loaded("falcon"), IDS, ("resid_mid",)),
        "FalconForCausalLM has no site 'resid_mid'",
    ),
    "a layer that is not there": (lambda: capture(layers=[3]), "layers are 0 to 2"),
    "no site": (lambda: capture(sites=()), "name at least one site"),
    "a site twice": (lambda: capture(sites=("resid_post", "resid_post")), "names 'resid_post' twice"),
    "a place that is not there": (
        lambda: capture(sites=[et.Site("model.layers.9.mlp")]),
        "no module 'model.layers.9.mlp'",
    ),
    "attention patterns to disk": (lambda: capture(sites=("attn_pattern",)), "shown, not stored"),
    "an unknown position policy": (lambda: capture(positions="lasst"), "Did you mean 'last'"),
    "a span that ends before it begins": (lambda: capture(positions=(5, 2)), "0 <= start < stop"),
    "generated without replies": (lambda: capture(positions="generated"), "capture never generates"),
    "a batch of 0": (lambda: capture(batch_size=0), "batch_size=0"),
    "a slice of layers to capture": (lambda: capture(layers=slice(1, 3)), "give integers, e.g. range(1, …)"),
    # edits
    "a slice of layers": (lambda: et.Add("resid_post", layers=slice(1, 3), vector=V), "range(1, 4)"),
    "an addition of nothing": (lambda: et.Add("resid_post", layers=[1]), "an addition needs a vector"),
    "a strength of NaN": (lambda: et.Add("z", layers=[1], vector=V, strength=float("nan")), "not a finite number"),
    "an unknown scale": (lambda: et.Add("z", layers=[1], vector=V, scale="norm"), "Choices: raw, unit, rms"),
    "a vector of another width": (
        lambda: generate(edits=[et.Add("resid_post", layers=[1], vector=V[:8])]),
        "edits[0]: the payload has shape (8,)",
    ),
    "a vector of words": (
        lambda: generate(edits=[et.Add("resid_post", layers=[1], vector=["a"] * 32)]),
        "edits[0]: the payload is no array of numbers",
    ),
    "a payload of other layers": (
        lambda: generate(edits=[et.Add("resid_post", layers=[2], vector=labelled(layer=[0, 1]))]),
        "unknown layer in the payload 2",
    ),
    "prompts without the payload's label": (
        lambda: generate(edits=[et.Add("resid_post", layers=[1], vector=labelled(emotion=["fear"]))]),
        "unknown emotion of a prompt None",
    ),
    "heads of another site": (
        lambda: generate(edits=[et.Ablate("neuron", layers=[1], heads=[0])]),
        "heads belong to site 'z'",
    ),
    "a damaged file of edits": (lambda: edits.load_edits(place() / "edits"), "edits.json is damaged or no manifest of edits"),
    # models
    "a slip in a local path": (lambda: et.load("tests/no_such_model"), "not a directory"),
    "no model there": (lambda: et.load(place() / "foreign"), "no config.json in it"),
    "weights that are cut off": (lambda: et.load(place() / "torn_weights"), "cannot be loaded"),
    "weights that are missing": (lambda: et.load(place() / "lacking"), "the checkpoint lacks 9 weights"),
    "a device that is not there": (lambda: et.load(place() / "model", device="cuda:99"), "device='cuda:99'"),
    "an unknown dtype": (lambda: et.load(place() / "model", dtype="fp16"), "choices are float32"),
    "no transformers model": (lambda: et.load(torch.nn.Linear(2, 2)), "not Linear"),
    "text without a tokenizer": (
        lambda: et.capture(et.load(tiny.build("llama")), ["Hello"], ("resid_post",)),
        "this model has no tokenizer",
    ),
    "generation with a masked model": (lambda: et.generate(loaded("bert"), IDS), "is a masked model"),
    "perplexity with a masked model": (lambda: scoring.perplexity(loaded("bert"), IDS), "is a masked model"),
    "0 new tokens": (lambda: generate(max_new_tokens=0), "max_new_tokens=0: at least 1"),
    "a temperature of 0": (lambda: generate(do_sample=True, temperature=0.0), "sampling needs temperature >= 0.0001"),
    # stores and directions
    "no store there": (lambda: et.open_activations(place() / "foreign"), "not an activation store"),
    "a store of other settings": (changed_store, "sites: ['resid_post'] there"),
    "an unknown label in a selection": (lambda: stored(emotoin="fear"), "Did you mean 'emotion'"),
    "an unknown value in a selection": (lambda: stored(emotion="joy"), "unknown emotion 'joy'"),
    "a layer that was not stored": (lambda: stored(layer=7), "unknown layer 7"),
    "directions of an unknown label": (
        lambda: et.directions.centered_mean(et.open_activations(place() / "acts.zarr"), label="mood"),
        "unknown label 'mood'",
    ),
    "directions of no accepted reply": (
        lambda: et.directions.centered_mean(et.open_activations(place() / "acts.zarr"), accepted=["x"]),
        "none of the keys",
    ),
    "no directions there": (lambda: et.directions.load(place() / "foreign"), "directions.json does not exist"),
    # judges and evaluation
    "an unknown judge": (lambda: judges.make("lexikon"), "Did you mean 'lexicon'"),
    "a classifier without a name": (lambda: judges.make("classifier:"), "name a model id or directory"),
    "a judge without a key": (lambda: without_key(lambda: judges.make("openai")), "OPENAI_API_KEY"),
    "a log row without its identity": (rejudged, "'method'"),
    "the accuracy of no rows": (lambda: replies.accuracy_over_draws([]), "no rows"),
    "an unknown preset": (lambda: presets.preset("emotion_circuit"), "Did you mean 'emotion_circuits'"),
    # runs
    "a folder of something else": (lambda: Run(place() / "foreign", {}), "not empty and holds no run of emotrace"),
    "a run of other settings": (lambda: Run(place() / "run", {"seed": 1, "limit": 4}), "seed: 0 there, 1 now"),
    "a file as folder": (lambda: Run(place() / "sev.jsonl", {}), "is a file; give a folder"),
    # the command line
    "an unknown command": (lambda: command("steeer"), "No such command 'steeer'"),
    "a missing option": (lambda: command("generate", "--data", "x"), "Missing option '--model'"),
    "an unknown option": (lambda: command(*GEN, "--out", "x", "--temprature", "1"), "No such option"),
    "an option that is no number": (lambda: command(*GEN, "--out", "x", "--limit", "few"), "--limit"),
    "a batch of -1": (lambda: command(*GEN, "--out", "x", "--batch-size", "-1"), "a whole number of rows, or 'auto'"),
    "a missing data file": (lambda: command("generate", "--model", "@model", "--data", "@no", "--out", "x"), "no such file"),
    "an emotion on the line": (lambda: command(*GEN, "--out", "x", "--emotions", "anger,sadnes"), "unknown emotion 'sadnes'"),
    "a folder to write rows to": (lambda: command(*GEN, "--out", "@foreign"), "foreign is a folder; give a file"),
    "a model on the line": (lambda: command("sites", "@foreign"), "no config.json in it"),
    "a span on the line": (lambda: command(*CAP, "--positions", "1:x"), "a span is START:STOP"),
    "a policy on the line": (lambda: command(*CAP, "--positions", "frist"), "unknown position policy 'frist'"),
    "a site on the line": (lambda: command(*CAP, "--sites", "resid_mdi"), "Did you mean 'resid_mid'"),
    "rows without replies": (lambda: command("judge", "@noreply.jsonl", "--out", "x"), "noreply.jsonl:1: a reply to judge"),
    "rows of another emotion": (lambda: command("judge", "@odd_emotion.jsonl", "--out", "@x"), "unknown emotion 'rage'"),
    "verdicts over their replies": (
        lambda: command("judge", "@unjudged.jsonl", "--out", "@unjudged.jsonl"),
        "that is the file of the replies to judge",
    ),
    "a device for nothing": (
        lambda: command("evaluate", "@unjudged.jsonl", "--out", "@e", "--device", "cpu"),
        "--device cpu is of --model or --classifier",
    ),
    "a question the judge cannot ask": (
        lambda: command("judge", "@unjudged.jsonl", "--out", "@x", "--target-aware"),
        "no target-aware question",
    ),
    "directions of unjudged rows": (
        lambda: command("directions", "@acts.zarr", "--out", "@d", "--rows", "@unjudged.jsonl"),
        "unjudged.jsonl:1: a judged reply (of `emotrace judge`) has the field 'verdict or judge'",
    ),
    "directions of several methods": (
        lambda: command("directions", "@acts.zarr", "--out", "@d", "--rows", "@methods.jsonl"),
        "several methods (prompt, steer)",
    ),
    "steering to an unknown emotion": (lambda: steer(emotion="boredom"), "unknown emotion 'boredom'"),
    "layers on the line": (lambda: steer("--layers", "a-b"), "--layers a-b: give layers as 2-4 or 1,3"),
    "layers backwards": (lambda: steer("--layers", "2-1"), "2-1 ends before it begins"),
    "layers the model lacks": (lambda: steer("--layers", "7"), "unknown layer 7"),
    "a site without directions": (lambda: steer("--site", "resid_mid"), "unknown sublayer 'resid_mid'"),
    "a temperature without sampling": (lambda: steer("--temperature", "0.5"), "need --sample"),
    "a dose of NaN": (lambda: steer("--dose", "nan"), "--dose nan is not a finite number"),
    "no store on the line": (lambda: command("verify", "@foreign"), "not an activation store"),
}  # fmt: skip


def without_key(do):
    with mock.patch.dict("os.environ"):
        os.environ.pop("OPENAI_API_KEY", None)
        return do()


class _ForwardError(BaseException):
    """Not an Exception, so that nothing on the way can swallow it."""


@contextlib.contextmanager
def no_work():
    """Neither a trace nor a generation may begin, but those with which a load proves what a model allows."""
    loading, prove = [], beginnings.prove

    def proven(model):
        loading.append(model)
        try:
            return prove(model)
        finally:
            loading.pop()

    def refused(run):
        def refuse(*args, **options):
            if loading:
                return run(*args, **options)
            raise _ForwardError("a model ran before the input was refused")

        return refuse

    with (
        mock.patch.object(beginnings, "prove", proven),
        mock.patch.object(runs, "capture", refused(runs.capture)),
        mock.patch.object(runs, "generate", refused(runs.generate)),
    ):
        yield


def message(case):
    """The message that a case gets."""
    place()
    with no_work(), pytest.raises(EmotraceError) as caught:
        CASES[case][0]()
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_clear_message_before_any_work(case):
    said = message(case)
    assert CASES[case][1] in said
    assert "Traceback" not in said
    assert re.match(r"(error: )?\S", said)
    assert len(said) < 1000


def test_there_are_enough_cases_and_nothing_was_written():
    assert len(CASES) >= 30
    assert not (place() / "new.zarr").exists()
    assert not (place() / "d").exists()
    assert len(EMOTIONS) == 6


if __name__ == "__main__":
    width = max(map(len, CASES))
    for name in CASES:
        print(f"{name:<{width}}  {message(name).replace(str(place()) + '/', '').replace(chr(10), ' ')}")
