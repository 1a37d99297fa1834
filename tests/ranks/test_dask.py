"""Ranks handed to the workers of a Dask cluster."""

from typing import Any

import pytest
import xarray as xr

import emotrace as et
from emotrace.datasets import Prompt
from emotrace.labels import EmotraceError
from emotrace.ranks import workers
from emotrace.runlog import Log
from tests.helpers import loaded

IDS = [[10 + (i * 7 + j) % 140 for j in range(3 + i % 9)] for i in range(24)]
MANY = [
    Prompt(f"p{i}", token_ids=tuple(ids), labels={"emotion": ("anger", "fear", "disgust")[i % 3]})
    for i, ids in enumerate(IDS)
]
OPTIONS = {"sites": "resid_post", "batch_size": 2, "row_group_bytes": 4_000, "progress": False}


def files(path):
    return {p.relative_to(path).as_posix(): p.is_file() and p.read_bytes() for p in path.rglob("*")}


@pytest.mark.filterwarnings("ignore")
def test_a_store_and_replies_of_workers_are_those_of_one_process(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
    model = loaded()
    judge = et.judges.make("lexicon")
    aimed: dict[str, Any] = {
        "label": "emotion",
        "sites": "resid_post",
        "within": None,
        "positions": "last",
        "progress": False,
    }
    et.capture(model, IDS, out=tmp_path / "one.zarr", **OPTIONS)
    whole = et.stream_directions(model, MANY, **aimed)
    rows = et.generate(model, IDS, max_new_tokens=3, batch_size=4, out=tmp_path / "one.jsonl", progress=False)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        acts = et.capture(model, IDS, out=tmp_path / "a.zarr", client=client, **OPTIONS)
        made = et.generate(
            model, IDS, max_new_tokens=3, batch_size=4, out=tmp_path / "rows.jsonl", client=client, progress=False
        )
        some: list[Any] = [{**row, "emotion": "fear", "gen_text": f"I am afraid of {i}."} for i, row in enumerate(rows)]
        judged = et.ranks.on_workers(
            client, et.judges.judge_rows, some, judge, Log(tmp_path / "judged.jsonl"), progress=False
        )
        summed = et.ranks.on_workers(client, et.stream_directions, model, MANY, out=tmp_path / "sums", **aimed)
    assert acts.complete
    assert files(tmp_path / "a.zarr") == files(tmp_path / "one.zarr")
    assert made == rows
    assert judged == et.judges.judge_rows(some, judge, progress=False) == Log(tmp_path / "judged.jsonl").rows()
    xr.testing.assert_identical(summed.drop_attrs(), whole.drop_attrs())
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_cluster_that_loses_its_workers_is_not_waited_for_for_ever(monkeypatch):
    class Lost:
        status = "pending"

        def done(self):
            return False

    class Client:
        cancelled = looks = 0

        def wait_for_workers(self, n, timeout):
            """It has one."""

        def scheduler_info(self, **_):
            self.looks += 1
            return {"workers": {"tcp://a": {}} if self.looks < 3 else {}}

        def submit(self, *_, **__):
            return Lost()

        def cancel(self, futures):
            self.cancelled = len(futures)

    monkeypatch.setattr(workers, "WAIT", 0.2)
    monkeypatch.setattr(workers, "LOOKED", 0.01)
    client = Client()
    with pytest.raises(EmotraceError, match=r"has had no worker for 0\.2 seconds\. What was made is kept"):
        et.ranks.on_workers(client, sorted, [])
    assert client.cancelled == 1


def test_what_cannot_be_sent_is_refused():
    class Client:
        def scheduler_info(self, **_):
            return {"workers": {}}

    with pytest.raises(EmotraceError, match=r"stream_directions\(client=…\): an argument cannot be sent to workers"):
        et.ranks.on_workers(Client(), et.stream_directions, loaded(), [], out=(i for i in ()))  # type: ignore[arg-type]


def test_what_is_no_client_is_refused_and_ranks_need_a_place(tmp_path):
    with pytest.raises(EmotraceError, match=r"dask\.distributed Client"):
        et.capture(loaded(), IDS, out=tmp_path / "a.zarr", client=object(), **OPTIONS)
    with pytest.raises(EmotraceError, match="out="):
        et.capture(loaded(), IDS, client=object(), **OPTIONS)
    assert not list(tmp_path.iterdir())
