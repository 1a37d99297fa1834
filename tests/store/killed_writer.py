"""A writer that is killed again and again: run as a program by test_write.py.

A process of its own, because its children are forked after the imports but before zarr has started any thread.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import zarr  # noqa: F401  (imported before the forks, so that the children need not)

from emotrace import store

KILLS = 50
N_PROMPTS, LENGTH, DIM = 16, 5, 8
ROWS = N_PROMPTS * LENGTH
WHOLE = np.random.default_rng(0).standard_normal((2, 2, ROWS, DIM)).astype(np.float32)


def write(path: Path) -> None:
    rows = store.Rows.of(
        [f"prompt_{i}" for i in range(N_PROMPTS)],
        [range(LENGTH)] * N_PROMPTS,
        [LENGTH] * N_PROMPTS,
        [range(LENGTH)] * N_PROMPTS,
        str,
        [{"emotion": "fear"}] * N_PROMPTS,
    )
    coords = {"layer": [0, 1], "sublayer": ["resid_mid", "resid_post"]}
    variable = store.Variable("residual", ("layer", "sublayer", "dim"), coords, {"dim": DIM})
    with store.create_or_resume(path, store.Plan.make(rows, [variable], {"model_id": "tiny"}, max_rows=4)) as writer:
        for group in writer.pending():
            buffers = writer.buffers(group)
            buffers["residual"][...] = WHOLE[:, :, group.rows]
            writer.submit(group, buffers)


def start(path: Path) -> int:
    child = os.fork()
    if not child:
        try:
            write(path)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child


def killed(child: int, at: float) -> int:
    """Kill the child at that moment unless it has finished; returns its wait status."""
    while time.monotonic() < at:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def main(folder: Path) -> dict[str, int]:
    begun = time.monotonic()
    assert os.waitpid(start(folder / "undisturbed"), 0)[1] == 0
    longest = time.monotonic() - begun
    wanted = files(folder / "undisturbed")
    rng = random.Random(0)
    seen = {"kills": 0, "stores": 0, "before_creation": 0, "part_written": 0}
    while seen["kills"] < KILLS:
        path = folder / "killed"
        while True:
            status = killed(start(path), time.monotonic() + rng.random() * rng.choice((0.1, 0.3, 1)) * longest)
            if os.WIFEXITED(status):
                assert status == 0, "the writer failed by itself"
                break
            seen["kills"] += 1
            seen["before_creation"] += not path.exists()
            records = len(list(path.glob("row_groups/commit/0*.json")))
            seen["part_written"] += 0 < records < ROWS // 4
        assert files(path) == wanted, "the bytes differ"
        assert sorted(p.name for p in folder.iterdir()) == ["killed", "undisturbed"], "something was left behind"
        shutil.rmtree(path)
        seen["stores"] += 1
    return seen


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
