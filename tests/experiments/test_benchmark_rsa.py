"""The benchmark of RSA runs from end to end on tiny sizes; no time is asserted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.rsa import ATTRIBUTES, QUICK, case, loop

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.benchmark
def test_the_questions_are_answered():
    command = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "rsa.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.split("| question |")[1].splitlines()[2:] if line.startswith("|")]
    assert [row.split("|")[1].split(",")[0].strip() for row in rows] == [
        "all-neuron τ-b", "its seconds", "its largest error", "all-neuron τ-b", "its seconds", "its largest error",
        "its peak memory",
    ]  # fmt: skip
    assert all(row.endswith("| yes |") for row in rows if "error" in row or "memory" in row)


def test_the_cases_have_and_lack_ties():
    size = dict(zip(("seed", "emotion", "layer", "unit"), QUICK, strict=True))
    for ties in (False, True):
        acts, references = case(QUICK, ties)
        assert acts.sizes == size
        distances = np.abs(acts.values[:, :, None] - acts.values[:, None]).mean(0)[np.triu_indices(QUICK[1], 1)]
        assert (len(np.unique(distances[:, 0, 0])) < len(distances)) is ties
        found = loop(acts.values.reshape(*QUICK[:2], -1)[..., :3], references.values)
        assert found.shape == (2, 3, ATTRIBUTES)
