"""Modulation and checkpoints on the command line."""

import numpy as np
import pytest
import torch
import transformers

import emotrace as et
from emotrace.testing import tiny
from tests.cli.inner import refused, refused_with
from tests.test_cli import run

TEXTS = ("Why", "So it is", "The bus was late", "b")


def modulated(folder, emotion, *more):
    """What `modulate` prints, sampled, since random weights hardly move the likeliest token."""
    args = ("--emotion", emotion, "--strength", 8, "--max-new-tokens", 12, "--sample", "--seed", 3)
    return run("modulate", *TEXTS, "--model", folder / "model", *args, *more)


def test_modulate_prints_the_baseline_and_what_the_circuit_does(place):
    folder, _, _, _ = place
    said = modulated(folder, "joy", "--circuit", folder / "circuit")
    blocks = [block.split("\n") for block in said.removesuffix("\n\n").split("\n\n")]
    assert [b[0] for b in blocks] == [f"prompt:   {text}" for text in TEXTS]
    lm, circuit = et.load(folder / "model"), et.Circuit.load(folder / "circuit")
    prompts = et.datasets.Prompts.of(
        {"messages": [{"role": "user", "content": text}], "emotion": "happiness"} for text in TEXTS
    )
    options = {"max_new_tokens": 12, "do_sample": True, "seed": 3, "progress": False}
    for edits, at, start in ((None, 1, "baseline: "), (circuit.edits(8.0), 2, "happiness:")):
        rows = et.generate(lm, prompts, edits, **options)
        assert [b[at] for b in blocks] == [start + r["gen_text"] for r in rows]
    assert any(b[1][10:] != b[2][10:] for b in blocks)
    assert modulated(folder, "joy", "--circuit", folder / "circuit", "--system", "Be brief.") != said


def test_a_published_circuit_changes_heads_in_the_whole_prompt(place, tmp_path):
    folder, _, _, _ = place
    circuit = et.Circuit.load(folder / "circuit")
    circuit.meta["preset"] = "emotion_circuits"
    circuit.save(tmp_path)
    steer = modulated(folder, "fear", "--circuit", folder / "circuit")
    whole = modulated(folder, "fear", "--circuit", folder / "circuit", "--head-positions", "all")
    assert modulated(folder, "fear", "--circuit", tmp_path) == whole != steer
    assert modulated(folder, "fear", "--circuit", tmp_path, "--head-positions", "steer") == steer


def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor([[11, 12, 13, 14]])).logits[0].numpy()


@pytest.mark.parametrize("layers", [None, "0,2"])
def test_export_bakes_a_circuit(place, tmp_path, layers):
    folder, _, _, _ = place
    args = ("--model", folder / "model", "--circuit", folder / "circuit", "--emotion", "joy", "--strength", 3)
    said = run("export", *args, "--out", tmp_path / "m", *(("--layers", layers) if layers else ()))
    assert f"neuron of layers {'0 2' if layers else '0 1 2'}, z of" in said
    lm, circuit = et.load(folder / "model"), et.Circuit.load(folder / "circuit")
    if layers:
        rows = circuit.components[circuit.components["layer"] != 1]
        circuit = et.Circuit(rows, circuit.payload, circuit.meta)
    prompts = et.datasets.Prompts.of([{"token_ids": [11, 12, 13, 14], "emotion": "happiness"}])
    edits = circuit.edits(3.0, neuron_positions="all", head_positions="all")
    wanted = et.capture(lm, prompts, ["logits"], positions="all", edits=edits, progress=False).sel("logits").values
    np.testing.assert_allclose(logits(tmp_path / "m"), np.squeeze(wanted), atol=1e-4)
    assert np.abs(logits(tmp_path / "m") - logits(folder / "model")).max() > 0.01


def test_export_bakes_a_direction_of_a_given_length(place, tmp_path, monkeypatch, capsys):
    folder, _, _, _ = place
    args = ("export", "--model", folder / "model", "--directions", folder / "dirs", "--emotion", "anger")
    run(*args, "--layers", "1", "--strength", 2.5, "--out", tmp_path / "m")
    state = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").state_dict()
    v = et.directions.load(folder / "dirs").sel(emotion="anger", layer=1, sublayer="resid_post")
    np.testing.assert_allclose(state["model.layers.1.mlp.down_proj.bias"], 2.5 * v.values, atol=1e-6)
    assert not state["model.layers.0.mlp.down_proj.bias"].any()
    before = sorted((tmp_path / "m").iterdir())
    error = refused(monkeypatch, capsys, *args, "--strength", 1, "--out", tmp_path / "m")
    assert "exists already" in error
    assert sorted((tmp_path / "m").iterdir()) == before
    norm = float(v["norm"])
    error = refused(monkeypatch, capsys, *args, "--layers", "1", "--out", tmp_path / "n")
    assert f"the differences behind these directions are {norm:.3g} to {norm:.3g} long." in error


def test_export_says_why_a_model_cannot_hold_an_addition(place, tmp_path, monkeypatch, capsys):
    folder, _, _, _ = place
    tiny.save("gemma", tmp_path / "gemma")  # its MLP has no biases, and no setting for them
    args = ("--model", tmp_path / "gemma", "--emotion", "anger", "--strength", 1, "--out", tmp_path / "m")
    error = refused(monkeypatch, capsys, "export", *args, "--directions", folder / "dirs")
    assert "made with the model model (" in error
    assert "not for this model, gemma (" in error
    run("adopt", folder / "dirs", "--model", tmp_path / "gemma", "--out", tmp_path / "adopted")
    error = refused(monkeypatch, capsys, "export", *args, "--directions", tmp_path / "adopted")
    assert "has no bias, and GemmaConfig cannot give it one" in error
    assert not (tmp_path / "m").exists()


BAD = {
    "no circuit": (("modulate", "Hi", "@model", "--circuit", "@/dirs", "--emotion", "joy"), "circuit.json"),
    "an emotion that it lacks": (
        ("modulate", "Hi", "@model", "--circuit", "@/circuit", "--emotion", "boredom"), "unknown emotion 'boredom'",
    ),
    "a span of nothing": (
        ("modulate", "Hi", "@model", "--circuit", "@/circuit", "--emotion", "joy", "--head-positions", "a:b"),
        "--head-positions a:b: a span is START:STOP",
    ),
    "a strength of NaN": (
        ("modulate", "Hi", "@model", "--circuit", "@/circuit", "--emotion", "joy", "--strength", "nan"),
        "--strength nan is not a finite number",
    ),
    "sampling flags alone": (
        ("modulate", "Hi", "@model", "--circuit", "@/circuit", "--emotion", "joy", "--top-k", 3), "need --sample.",
    ),
    "exporting nothing": (("export", "@model", "--emotion", "joy", "--out", "@/x"), "give one of them."),
    "a site of a circuit": (
        ("export", "@model", "--circuit", "@/circuit", "--emotion", "joy", "--out", "@/x", "--site", "z"),
        "a circuit has its own sites",
    ),
    "layers beyond the circuit": (
        ("export", "@model", "--circuit", "@/circuit", "--emotion", "joy", "--out", "@/x", "--layers", "2-3"),
        "unknown layer 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_line_and_leaves_nothing(place, monkeypatch, capsys, case):
    args, message = BAD[case]
    assert message in refused_with(place, monkeypatch, capsys, args)
