"""Contributions, influence, circuit and curves on the command line, each from file to file, continued, and refused."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import emotrace as et
from emotrace import attribution
from emotrace.datasets import read_jsonl
from tests.cli.forked import Forked
from tests.cli.inner import QUICK, python, refused, refused_with
from tests.test_cli import run


def test_neurons_are_those_of_python_on_accepted_replies_and_the_best_are_printed(place):
    folder, _, _, said = place
    lm, prompts, dirs, keys = python(folder)
    found = attribution.load_scores(folder / "neurons", "neurons")
    xr.testing.assert_equal(found, attribution.neuron_contributions(lm, prompts, dirs, accepted=keys, progress=False))
    assert found["n"].values.tolist() == [4] * 6
    lines = said["neurons"].splitlines()
    assert lines[0] == "highest contrast (layer.unit score)"
    for line in lines[1:7]:
        label, *cells = line.split()
        scores = found["contrast"].sel(emotion=label).values
        assert len(cells) == 6
        assert [float(c) for c in cells[1::2]] == pytest.approx(np.sort(scores.ravel())[::-1][:3], rel=1e-3)
        layer, unit = map(int, cells[0].split("."))
        assert scores[layer, unit] == scores.max()


def test_heads_in_the_normed_space_ranked_by_mean(place):
    folder, _, _, said = place
    found = attribution.load_scores(folder / "heads", "heads")
    assert found.attrs["readout"] == "normed"
    label, first, score = said["heads"].splitlines()[1].split()[:3]
    layer, head = map(int, first.split("."))
    best = found["mean"].sel(emotion=label)
    assert float(best[layer, head]) == float(best.max()) == pytest.approx(float(score), rel=1e-3)


def test_influence_exact_and_at_doses(place):
    folder, _, _, said = place
    found = attribution.load_scores(folder / "influence", "influence")
    assert found["dose"].values.tolist() == [0.1, 0.5]
    assert found["n"].values.tolist() == [4] * 6
    table = [line.split() for line in said["influence"].splitlines()]
    assert table[0][:4] == ["influence", "on", "resid_post", "of"]
    assert [float(x) for x in table[-2][-6:]] == pytest.approx(
        found["influence"].isel(layer=-1).sel(sublayer="mlp_out").values.tolist(), rel=1e-3
    )


def test_circuit_is_saved_and_shown_with_its_overlap(place):
    folder, _, _, said = place
    found = et.Circuit.load(folder / "circuit")
    assert set(found.counts().loc["anger", "neuron"]) == {5}  # a tenth of 48
    assert set(found.counts().loc["anger", "head"]) == {1}
    assert said["circuit"].startswith(str(found))
    overlap = found.overlap()
    assert f"overlap of heads: Jaccard {float(overlap['mean'].sel(kind='head')):.3f} ±" in said["circuit"]
    neurons = attribution.load_scores(folder / "circuit" / "neuron", "neurons")
    xr.testing.assert_equal(neurons, attribution.load_scores(folder / "neurons", "neurons"))


def test_the_published_preset_follows_the_influence(place, tmp_path):
    folder, common, _, _ = place
    out, preset = tmp_path / "published", ("--preset", "emotion_circuits", "--influence", folder / "influence")
    run("circuit", *common, "--out", out, *preset)
    found = et.Circuit.load(out)
    assert (found.meta["preset"], found.meta["readout"], found.meta["by"]) == ("emotion_circuits", "normed", "mean")
    influence = attribution.load_scores(folder / "influence", "influence")
    plan = et.circuits.published_allocation(influence, available={"neuron": 48, "head": 4})
    counts = found.counts()
    for kind in ("neuron", "head"):
        assert counts.loc["fear", kind].tolist() == plan.sel(emotion="fear", kind=kind).values.tolist()


def test_curves_of_ablated_neurons(place):
    folder, _, _, said = place
    lm, prompts, dirs, keys = python(folder)
    found, neurons = (
        attribution.load_scores(folder / "curves", "curve"),
        attribution.load_scores(folder / "neurons", "neurons"),
    )
    options = {"how": "mean", "ks": (1, 2), "draws": 2, "accepted": keys, "progress": False}
    wanted = attribution.ablation_curve(lm, prompts, dirs, neurons, **options)
    np.testing.assert_array_equal(found["delta"], wanted["delta"])
    table = pd.read_csv(folder / "curves" / "curve.csv")
    assert set(table["curve"]) == {"neurons ablated"}
    one = table[(table["emotion"] == "joy") | (table["emotion"] == "happiness")]
    top = one[(one["which"] == "top") & (one["k"] == 2)]["delta"].item()
    assert top == pytest.approx(float(wanted["delta"].sel(emotion="happiness", which="top", k=2)))
    assert len(one[(one["which"] == "random") & one["draw"].notna()]) == 2 * 2
    row = next(line.split() for line in said["curves"].splitlines() if line.split()[:2] == ["happiness", "top"])
    assert float(row[-1]) == pytest.approx(top, rel=1e-3)


def test_curves_of_added_heads_out_of_a_circuit(place, tmp_path):
    folder, common, _, _ = place
    circuit = folder / "circuit"
    add = ("--what", "add", "--circuit", circuit, *QUICK, "--out", tmp_path / "c", "--by", "mean", "--seed", 7)
    run("curves", circuit / "head", *common, *add)
    found = attribution.load_scores(tmp_path / "c", "curve")
    assert found.attrs["method"] == "enhancement_curve"
    assert (found.attrs["site"], found.attrs["by"], found.attrs["seed"]) == ("z", "mean", 7)
    assert set(pd.read_csv(tmp_path / "c" / "curve.csv")["curve"]) == {"heads added"}


def state(folder):
    """Every file's bytes, and when what is computed last was written: it is read when a stage is repeated."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    kept = {p: p.stat().st_mtime_ns for p in files if "sums" in p.name or p.name == "scores.jsonl"}
    assert kept
    return {p: p.read_bytes() for p in files}, kept


@pytest.mark.parametrize("name", ["neurons", "heads", "influence", "circuit", "curves"])
def test_a_finished_stage_stays_and_refuses_other_settings(place, monkeypatch, capsys, name):
    folder, _, commands, said = place
    before = state(folder / name)
    assert run(name, *commands[name]) == said[name]
    assert state(folder / name) == before
    assert "other settings" in refused(monkeypatch, capsys, name, *commands[name], "--limit", 1)
    assert state(folder / name) == before


def test_ctrl_c_in_a_curve_and_the_same_command_again(place, tmp_path):
    folder, common, _, _ = place
    args = ["curves", folder / "heads", *common, "--batch-size", 1, "--ks", "1,2", "--draws", 3]
    process = Forked(tmp_path, *args, "--out", tmp_path / "c")
    scores = tmp_path / "c" / "scores.jsonl"
    process.interrupt_when(lambda: scores.exists() and scores.stat().st_size > 0)
    status, _, error = process.end()
    assert status == 130, error
    assert error.rstrip().endswith("interrupted; the same command continues where it stopped")
    held = scores.read_text()
    assert 0 < len(held.splitlines()) < 36
    assert not (tmp_path / "c" / "curve.json").exists()
    run(*args, "--out", tmp_path / "c")
    assert scores.read_text().startswith(held[: held.rfind("\n") + 1])
    run(*args, "--out", tmp_path / "whole")
    xr.testing.assert_identical(
        attribution.load_scores(tmp_path / "c", "curve"), attribution.load_scores(tmp_path / "whole", "curve")
    )


def test_directions_of_another_label_and_of_some_emotions(place, tmp_path):
    folder, _, _, _ = place
    run(
        "directions",
        folder / "acts.zarr",
        "--out",
        tmp_path / "v",
        "--label",
        "valence",
        "--within",
        "skeleton_id,emotion",
    )
    common = ("--model", folder / "model", "--data", folder / "sev.jsonl", "--limit", 2)
    run("neurons", *common, "--directions", tmp_path / "v", "--out", tmp_path / "n")
    assert attribution.load_scores(tmp_path / "n", "neurons")["n"].values.tolist() == [12, 12, 12]
    dirs = et.directions.load(folder / "dirs")
    et.directions.save(dirs.sel(emotion=["fear", "anger"]), tmp_path / "two")
    run("heads", *common, "--directions", tmp_path / "two", "--out", tmp_path / "h")
    assert attribution.load_scores(tmp_path / "h", "heads")["emotion"].values.tolist() == ["fear", "anger"]


BAD = {
    "a file for a folder": (("neurons", "@common", "--out", "@/sev.jsonl"), "is a file; give a folder."),
    "no directions": (("neurons", "@common", "--directions", "@/absent", "--out", "@/x"), "does not exist; directions:"),
    "replies not judged": (("heads", "@common", "--out", "@/x", "--rows", "@/sev.jsonl"), "sev.jsonl:1: a judged reply"),
    "no such score": (("heads", "@common", "--out", "@/x", "--by", "median"), "unknown choice 'median' in --by."),
    "no such read-out": (("heads", "@common", "--out", "@/x", "--head-readout", "norm"), "Did you mean 'normed'?"),
    "doses in words": (("influence", "@common", "--out", "@/x", "--doses", "a,b"), "--doses a,b: give numbers"),
    "a dose of zero": (("influence", "@common", "--out", "@/x", "--doses", "0,1"), "doses are different numbers, not zero"),
    "a preset without influence": (
        ("circuit", "@common", "--out", "@/x", "--preset", "emotion_circuits"),
        "a folder that `emotrace influence` wrote: give both or neither.",
    ),
    "influence without a preset": (("circuit", "@common", "--out", "@/x", "--influence", "@/influence"), "give both"),
    "an unknown preset": (("circuit", "@common", "--out", "@/x", "--preset", "circuits"), "Did you mean 'emotion_circuits'?"),
    "a preset and numbers": (
        ("circuit", "@common", "--out", "@/x", "--preset", "emotion_circuits", "--influence", "@/influence",
         "--heads-per-layer", 1), "leave out --heads-per-layer.",
    ),
    "more heads than there are": (("circuit", "@common", "--out", "@/x", "--heads-per-layer", 9), "layer 0 has 4 heads."),
    "contributions that are none": (("curves", "@/dirs", "@common", "--out", "@/x"), "has neither neurons.json nor heads.json"),
    "ks in words": (("curves", "@/heads", "@common", "--out", "@/x", "--ks", "1,many"), "--ks 1,many: give whole numbers"),
    "ks beyond the heads": (("curves", "@/heads", "@common", "--out", "@/x", "--ks", "1,9"), "rising integers from 1 to 4"),
    "no such ablation": (("curves", "@/heads", "@common", "--out", "@/x", "--how", "noise"), "unknown choice 'noise' in --how"),
    "adding what": (("curves", "@/heads", "@common", "--out", "@/x", "--what", "add"), "from --circuit FOLDER"),
    "a circuit to ablate": (("curves", "@/heads", "@common", "--out", "@/x", "--circuit", "@/circuit"), "nothing else does"),
    "adding a mean": (
        ("curves", "@/heads", "@common", "--out", "@/x", "--what", "add", "--circuit", "@/circuit", "--how", "mean"),
        "--how and --rows are of --what ablate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_line_and_leaves_nothing(place, monkeypatch, capsys, case):
    args, message = BAD[case]
    assert message in refused_with(place, monkeypatch, capsys, args)


def test_a_store_is_asked_in_the_place_of_a_model(place, tmp_path):
    folder, _, _, _ = place
    model, sites = ("--model", folder / "model"), "z,neuron,resid_mid"
    data = ("--data", folder / "sev.jsonl", "--limit", 2)
    run("capture", *model, *data, "--sites", sites, "--components", "--out", tmp_path / "acts.zarr")
    run(
        "covectors",
        *model,
        "--directions",
        folder / "dirs",
        "--head-readout",
        "normed",
        "--out",
        tmp_path / "covectors",
    )
    asked = ("--from", tmp_path / "acts.zarr", "--covectors", tmp_path / "covectors")
    rows = ("--rows", folder / "judged.jsonl")
    for name in ("neurons", "heads"):
        said = run(name, *asked, *rows, "--out", tmp_path / name, "--top", 3)
        got, want = (attribution.load_scores(at / name, name) for at in (tmp_path, folder))
        for score in want:
            assert float(np.abs(got[score] - want[score]).max()) <= 1e-6 * float(np.abs(want["mean"]).max())
        assert said.startswith("highest contrast")
    few = ("--neurons-per-layer", 0.1, "--heads-per-layer", 1)
    run("circuit", *asked, *rows, *few, "--out", tmp_path / "circuit")
    found = et.Circuit.load(tmp_path / "circuit")
    assert found.meta["readout"] == "normed"
    assert set(found.counts().loc["anger", "neuron"]) == {5}
    run("heads", *asked, "--where", "valence=positive,negative; layer=1;position=last", "--out", tmp_path / "some")
    some = attribution.load_scores(tmp_path / "some", "heads")
    assert some["layer"].values.tolist() == [1]
    assert some.attrs["selection"] == '[{"valence": ["positive", "negative"], "layer": [1], "position": "last"}]'


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("heads", "--out", "@/x"), "give --model, --data and --directions (--model, --data, --directions), or --from"),
        (("heads", "@common", "--covectors", "@/dirs", "--out", "@/x"), "(without --covectors and --where)"),
        (("heads", "--from", "@/acts.zarr", "--out", "@/x"), "give --covectors, and neither model nor prompts."),
        (("heads", "--from", "@/acts.zarr", "--covectors", "@/dirs", "@model", "--out", "@/x"), "(leave out --model)"),
        (("circuit", "--from", "@/acts.zarr", "--covectors", "@/dirs", "--out", "@/x"), "covectors"),
        (
            ("heads", "--from", "@/acts.zarr", "--covectors", "@/dirs", "--where", "layer", "--out", "@/x"),
            "--where 'layer'",
        ),
        (
            ("heads", "--from", "@/acts.zarr", "--covectors", "@/dirs", "--where", "layer=x", "--out", "@/x"),
            "unknown layer 'x'",
        ),
    ],
)
def test_what_does_not_go_with_a_store_is_refused(place, monkeypatch, capsys, args, message):
    assert message in refused_with(place, monkeypatch, capsys, args)


def test_a_store_is_asked_without_torch(place, tmp_path):
    folder, _, _, _ = place
    model, data = ("--model", folder / "model"), ("--data", folder / "sev.jsonl", "--limit", 2)
    run("capture", *model, *data, "--sites", "z,neuron,resid_mid", "--out", tmp_path / "acts.zarr")
    run("covectors", *model, "--directions", folder / "dirs", "--out", tmp_path / "covectors")
    asked = ["--from", tmp_path / "acts.zarr", "--covectors", tmp_path / "covectors"]
    names = ("heads", "neurons", "circuit")
    commands = [[str(word) for word in (name, *asked, "--out", tmp_path / name)] for name in names]
    code = f"""
import sys
from emotrace.cli import main
for words in {commands!r}:
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
    assert "torch" not in sys.modules, words
print("none imported torch")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("none imported torch\n")
    assert all(any((tmp_path / name).iterdir()) for name in names)


def test_labels_of_ones_own_go_the_whole_way(place, monkeypatch):
    """A CSV of texts and moods, from the store to curves and verdicts; no skeleton, no valence, none of the six emotions."""
    folder = place[0]
    monkeypatch.chdir(folder)
    moods = {"Wut": "The bus is late", "Stolz": "The boat is mine"}
    lines = [f'"{text}, day {i}",{mood}' for i in range(3) for mood, text in moods.items()]
    (folder / "mine.csv").write_text("said,mood\n" + "\n".join(lines) + "\n")
    model, data = ("--model", folder / "model"), ("--data", "mine.csv", "--text-column", "said")
    common = (*model, *data, "--directions", "moods")
    run("capture", *model, *data, "--out", "mine.zarr")
    run("directions", "mine.zarr", "--label", "mood", "--within", "", "--out", "moods")
    run("heads", *common, "--out", "mood_heads")
    found = run(
        "circuit", *common, "--within", "", "--neurons-per-layer", 2, "--heads-per-layer", 1, "--out", "mood_circuit"
    )
    assert "Wut" in found
    assert "Stolz" in run("curves", "mood_heads", *common, *QUICK, "--cluster", "key", "--out", "mood_curves")
    assert "Stolz" in run("influence", *common, "--out", "mood_influence")
    run("generate", *model, *data, "--max-new-tokens", 3, "--out", "said.jsonl")
    rows = [{"text": text, "emotion": mood} for mood, text in moods.items() for _ in range(2)]
    et.judges.fit([{**r, "text": f"{r['text']} {i}"} for i, r in enumerate(rows)], name="m", least=1, folds=2).save(
        "judge"
    )
    run("judge", "said.jsonl", "--judge", "fitted:judge", "--label", "mood", "--out", "judged_moods.jsonl")
    judged = [row for _, row in read_jsonl(folder / "judged_moods.jsonl")]
    assert {row["emotion"] for row in judged} == set(moods)
    assert et.replies.accuracy_table(judged, cluster="key")["by_valence"] == {}
