"""Ranks handed to the workers of a Dask cluster."""

import pytest

import emotrace as et
from emotrace.labels import EmotraceError
from tests.helpers import loaded

IDS = [[10 + (i * 7 + j) % 140 for j in range(3 + i % 9)] for i in range(24)]
OPTIONS = {"sites": "resid_post", "batch_size": 2, "row_group_bytes": 4_000, "progress": False}


def files(path):
    return {p.relative_to(path).as_posix(): p.is_file() and p.read_bytes() for p in path.rglob("*")}


@pytest.mark.filterwarnings("ignore")
def test_a_store_and_replies_of_workers_are_those_of_one_process(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra 'dask'")
    model = loaded()
    et.capture(model, IDS, out=tmp_path / "one.zarr", **OPTIONS)
    rows = et.generate(model, IDS, max_new_tokens=3, batch_size=4, out=tmp_path / "one.jsonl", progress=False)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        acts = et.capture(model, IDS, out=tmp_path / "a.zarr", client=client, **OPTIONS)
        made = et.generate(
            model, IDS, max_new_tokens=3, batch_size=4, out=tmp_path / "rows.jsonl", client=client, progress=False
        )
    assert acts.complete
    assert files(tmp_path / "a.zarr") == files(tmp_path / "one.zarr")
    assert made == rows
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_what_is_no_client_is_refused_and_ranks_need_a_place(tmp_path):
    with pytest.raises(EmotraceError, match=r"dask\.distributed Client"):
        et.capture(loaded(), IDS, out=tmp_path / "a.zarr", client=object(), **OPTIONS)
    with pytest.raises(EmotraceError, match="out="):
        et.capture(loaded(), IDS, client=object(), **OPTIONS)
    assert not list(tmp_path.iterdir())
