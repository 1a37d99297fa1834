"""Ranks and Dask workers killed at random moments, again and again: the tree is that of one writer. Part of `make soak`."""

import os
import random
import signal
import threading
import time
from contextlib import suppress

import pytest

import emotrace as et
from tests.helpers import loaded
from tests.ranks.test_capture import IDS, OPTIONS, started, tree

RUNS = int(os.environ.get("EMOTRACE_SOAK_RUNS", "20"))
pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path, begun = tmp_path_factory.mktemp("alone") / "a.zarr", time.monotonic()
    et.capture(loaded(), IDS, out=path, **OPTIONS)
    return tree(path), time.monotonic() - begun


def test_ranks_as_plain_processes(alone, tmp_path):
    wanted, longest = alone
    rng, kills = random.Random(0), 0
    for run in range(RUNS):
        path = tmp_path / f"{run}.zarr"
        living = {started(path, (i, 3)): i for i in range(3)}
        left = 4
        while living:
            time.sleep(rng.random() * longest / 3)
            if left and rng.random() < 0.7:
                os.kill(rng.choice(list(living)), signal.SIGKILL)
                kills, left = kills + 1, left - 1
            for child, index in list(living.items()):
                done, status = os.waitpid(child, os.WNOHANG)
                if not done:
                    continue
                del living[child]
                code = os.waitstatus_to_exitcode(status)
                assert code in (0, -signal.SIGKILL), code
                if code:
                    living[started(path, (index, 3))] = index
        assert tree(path) == wanted, f"run {run}"
    assert kills > RUNS // 2
    print(f"{RUNS} runs, {kills} kills")


def test_dask_workers(alone, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
    import dask

    rng, kills = random.Random(1), [0]
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1000}),
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        for name in ("first", "warm"):  # the first has workers import torch and load the model
            begun = time.monotonic()
            et.capture(loaded(), IDS, out=tmp_path / f"{name}.zarr", client=client, **OPTIONS)
            usual = time.monotonic() - begun
        for run in range(RUNS):
            over = threading.Event()

            def kill(over=over):
                for _ in range(3):
                    if over.wait(usual * rng.random()):
                        return
                    pids = [nanny.pid for nanny in cluster.workers.values() if nanny.pid]
                    for pid in pids if rng.random() < 0.2 else rng.sample(pids, min(1, len(pids))):  # or all at once
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                            kills[0] += 1
                # A nanny gives up a worker that dies before it has begun; who runs a cluster replaces it.
                while not over.wait(5):
                    cluster.scale(3)

            killer = threading.Thread(target=kill)
            killer.start()
            try:
                et.capture(loaded(), IDS, out=tmp_path / f"{run}.zarr", client=client, **OPTIONS)
            finally:
                over.set()
                killer.join()
            assert tree(tmp_path / f"{run}.zarr") == alone[0], f"run {run}"
    assert kills[0] > RUNS // 2
    print(f"{RUNS} runs, {kills[0]} kills")
