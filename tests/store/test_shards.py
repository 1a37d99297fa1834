"""Row groups of many rows are shards, as zarr reads them, whose inner chunks are read, compared and refused by themselves."""

import numpy as np
import pytest
import xarray as xr
import zarr

from emotrace import store
from emotrace.disk import Bucket
from emotrace.labels import EmotraceError
from emotrace.store import plan as plan_
from emotrace.store import shards
from emotrace.store.plan import inner_rows

CODECS = [("float32", "none"), ("bfloat16", "lz4"), ("float32", "zstd")]


def test_the_most_rows_that_divide_a_row_group_are_an_inner_chunk():
    assert [inner_rows(n) for n in (1, 256, 257, 320, 512, 640, 1984, 2048, 2 * 997)] == [
        None, None, None, 160, 256, 160, 248, 256, None,
    ]  # fmt: skip


def planned(make, source="float32", codec="none", n=700, max_rows=320):
    plan = make.plan([7] * (n // 7), [make.residual(dim=4, source_dtype=source, codec=codec)], max_rows=1 << 20)
    return store.Plan(plan.rows, plan.variables, plan.attrs, max_rows)


def halved(plan, whole):
    """Numbers that bfloat16 holds."""
    return {name: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, a in whole.items()}


@pytest.mark.parametrize(("source", "codec"), CODECS)
def test_zarr_xarray_and_emotrace_read_the_same_bits_also_some_rows(make, tmp_path, source, codec):
    plan = planned(make, source, codec)
    whole = halved(plan, make.arrays(plan))
    make.write(tmp_path / "a", plan, whole)
    array = zarr.open_array(tmp_path / "a/residual/residual", mode="r")
    assert (array.shards, array.chunks) == ((1, 1, 320, 4), (1, 1, 160, 4))
    assert xr.open_zarr(tmp_path / "a", group="residual").residual.values.tobytes() == whole["residual"].tobytes()
    acts = store.open_activations(tmp_path / "a")
    assert acts.residual.values.tobytes() == whole["residual"].tobytes()
    for rows in ([3], [0, 159, 160, 319, 320, 699], np.arange(150, 170), [699, 5], slice(100, 500)):
        assert acts.residual[:, :, rows].values.tobytes() == whole["residual"][:, :, rows].tobytes()
    assert store.verify(tmp_path / "a") == []


@pytest.mark.parametrize(("source", "codec"), CODECS)
def test_a_store_in_a_bucket_has_the_same_bytes_and_only_inner_chunks_are_fetched(
    make, tmp_path, source, codec, monkeypatch
):
    plan = planned(make, source, codec)
    whole = halved(plan, make.arrays(plan))
    make.write(tmp_path / "a", plan, whole)
    url = f"memory://{tmp_path.name}/{source}{codec}"
    make.write(url, plan, whole, groups={1})
    assert len(store.open_activations(url)) == 320
    make.write(url, plan, whole)
    bucket = Bucket(url)
    for name, data in make.files(tmp_path / "a").items():
        if "lock" not in name:
            assert bucket.read(name) == data, name
    left = {f"{i:06d}.json" for i in range(3)} | {"table.json", "zarr.json"}
    assert set(bucket.names("row_groups/commit")) == left  # no lease
    acts, local = store.open_activations(url), store.open_activations(tmp_path / "a")
    assert acts.tokens.equals(local.tokens)
    assert acts.residual.values.tobytes() == whole["residual"].tobytes()
    fetched = []
    monkeypatch.setattr(
        Bucket, "read_part", lambda self, *a, read=Bucket.read_part: fetched.append(a) or read(self, *a)
    )
    some = acts.sel(layer=1, sublayer="resid_post").isel(token=[165, 170, 390])
    assert some.values.tobytes() == whole["residual"][1, 1, [165, 170, 390]].tobytes()
    inner = [a for a in fetched if a[2] - a[1] != shards.index_size(2)]
    assert len(inner) == 2
    assert {name.rpartition("/")[2] for name, *_ in fetched} == {"c.1.1.0.0", "c.1.1.1.0"}
    assert store.verify(url) == []


def test_a_damaged_inner_chunk_in_a_bucket_is_refused_and_mended(make, tmp_path):
    plan = planned(make)
    whole, url = make.arrays(plan), f"memory://{tmp_path.name}/damaged"
    make.write(url, plan, whole)
    bucket, name = Bucket(url), "residual/residual/c.1.1.0.0"
    data = bytearray(bucket.read(name))
    data[161 * 16] ^= 1
    bucket.put(name, bytes(data))
    acts = store.open_activations(url)
    one = acts.sel(layer=1, sublayer="resid_post")
    assert one.isel(token=[3]).values.tobytes() == whole["residual"][1, 1, [3]].tobytes()
    with pytest.raises(EmotraceError, match=r"layer 1, sublayer resid_post, row group 0 .*inner chunk 1: changed"):
        one.isel(token=[162]).values  # noqa: B018
    assert [d.path for d in store.verify(url)] == [name]
    with pytest.warns(UserWarning, match="row groups 0 are captured again"):
        make.write(url, plan, whole)
    assert store.open_activations(url).residual.values.tobytes() == whole["residual"].tobytes()


def test_a_store_of_whole_chunks_that_an_earlier_version_began_is_continued_so(make, tmp_path, monkeypatch):
    plan = planned(make)
    whole = make.arrays(plan)
    with monkeypatch.context() as before:
        before.setattr(plan_, "INNER_ROWS", 1 << 30)
        make.write(tmp_path / "a", planned(make), whole, groups={0})
        make.write(tmp_path / "whole", planned(make), whole)
    assert store.info(tmp_path / "a")["groups_committed"] == 1
    make.write(tmp_path / "a", plan, whole)
    assert make.files(tmp_path / "a") == make.files(tmp_path / "whole")
    assert store.open_activations(tmp_path / "a").residual.values.tobytes() == whole["residual"].tobytes()
    other = planned(make, max_rows=350)  # cut otherwise now: continued as it was begun
    assert len(other.groups) == 2
    make.write(tmp_path / "a", other, whole)
    assert make.files(tmp_path / "a") == make.files(tmp_path / "whole")


def test_dask_arrays_of_a_store_are_lazy(make, tmp_path):
    pytest.importorskip("dask", reason="needs the extra 'dask'")
    plan = planned(make)
    whole = make.arrays(plan)
    make.write(tmp_path / "a", plan, whole)
    (tmp_path / "a/residual/residual/c.0.0.2.0").unlink()
    found = store.open_activations(tmp_path / "a").dataset(chunks={})
    assert found.residual.chunksizes["token"] == (320, 320, 60)
    assert found.residual.chunksizes["layer"] == (1, 1, 1)
    np.testing.assert_allclose(found.residual[1:].mean("token"), whole["residual"][1:].mean(2), rtol=1e-4, atol=1e-6)
    with pytest.raises(EmotraceError, match="layer 0, sublayer resid_mid, row group 2"):
        found.residual[0, 0].sum().compute()
    with pytest.raises(EmotraceError, match="unknown dim"):
        store.open_activations(tmp_path / "a").dataset(chunks={"head": 1})
