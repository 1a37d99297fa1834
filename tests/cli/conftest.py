"""What the stages up to the circuit make of a tiny model, each out of the files of those before."""

import json

import pytest

from emotrace.datasets import sev
from emotrace.testing import tiny
from tests.cli.inner import QUICK
from tests.test_cli import run, write_sev


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what every stage made of a tiny model and two skeletons, each out of the files of those before."""
    folder = tmp_path_factory.mktemp("circuits")
    tiny.save("llama", folder / "model")
    model, data = ("--model", folder / "model"), ("--data", write_sev(folder / "sev.jsonl"), "--limit", 2)
    common = (*model, *data, "--directions", folder / "dirs")
    judged = [
        {"key": p.key, "method": "prompt", "verdict": {"match": int(p.labels["valence"] != "neutral")}}
        for p in sev(folder / "sev.jsonl", limit=2)
    ]
    (folder / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    rows = ("--rows", folder / "judged.jsonl")
    run("capture", *model, *data, "--out", folder / "acts.zarr")
    run("directions", folder / "acts.zarr", *rows, "--out", folder / "dirs")
    few = ("--neurons-per-layer", 0.1, "--heads-per-layer", 1)
    commands = {
        "neurons": (*common, *rows, "--out", folder / "neurons", "--top", 3),
        "heads": (*common, *rows, "--out", folder / "heads", "--head-readout", "normed", "--by", "mean"),
        "influence": (*common, *rows, "--out", folder / "influence", "--doses", "0.1,0.5"),
        "circuit": (*common, *rows, "--out", folder / "circuit", *few),
        "curves": (folder / "neurons", *common, *rows, "--out", folder / "curves", "--how", "mean", *QUICK),
    }
    said = {name: run(name, *args) for name, args in commands.items()}
    return folder, common, commands, said
