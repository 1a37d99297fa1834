"""A store in S3, of a server on loopback that fails in some requests, has the bytes of a store on disk."""

import pytest

import emotrace as et
from emotrace import store
from emotrace.disk import Bucket, buckets
from emotrace.labels import EmotraceError
from emotrace.testing import s3_server

pytest.importorskip("obstore", reason="needs the extra 'cloud'")


@pytest.fixture
def served(monkeypatch):
    """A server that fails in 5 % of requests."""
    with s3_server.serve(failing=0.05, seed=4) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(buckets, "FIRST_WAIT", 0.001)
        yield server


def test_objects_are_put_once_whatever_fails(served):
    bucket = Bucket("s3://here/some folder")
    for i in range(150):
        assert bucket.put_new(f"a/{i:03d}", bytes([i]))
    assert not bucket.put_new("a/000", b"other")
    assert served.failed > 3
    assert bucket.names("a") == [f"{i:03d}" for i in range(150)]
    assert bucket.names("") == bucket.names("b") == []
    bucket.put("a/000", b"0123456789")
    assert bucket.read("a/000") == b"0123456789"
    assert bucket.read_part("a/000", 2, 5) == b"234"
    assert (bucket.size("a/000"), bucket.size("c")) == (10, None)
    bucket.delete("a/000")
    bucket.delete("a/000")
    with pytest.raises(FileNotFoundError):
        bucket.read("a/000")


def test_two_ranks_and_readers_of_a_store_in_s3(served, make, tmp_path):
    plan = make.plan([5] * 60, max_rows=50)
    whole = make.arrays(plan)
    make.write(tmp_path / "a", plan, whole)
    url = "s3://here/runs/a.zarr"
    from emotrace.ranks import Rank
    from emotrace.store.opening import create_or_resume

    with create_or_resume(url, plan, rank=Rank(0, 2)) as first, create_or_resume(url, plan, rank=Rank(1, 2)) as second:
        with pytest.raises(EmotraceError, match=r"another process is writing to s3://here/runs/a.zarr as rank 1 of 2"):
            create_or_resume(url, plan, rank=Rank(1, 2))
        claims = first.claimed(), second.claimed()
        taken = [[], []]
        for turn in range(8):
            group = next(claims[turn % 2], None)
            if group is not None:
                writer = (first, second)[turn % 2]
                writer.commit(group, make.part(plan, whole, group))
                taken[turn % 2].append(group.index)
        assert taken == [[0, 2, 4], [1, 3, 5]]
        assert not first.more()
    local = {name: data for name, data in make.files(tmp_path / "a").items() if not name.endswith(".lock")}
    assert served.tree("here/runs/a.zarr") == local
    assert served.failed > 3
    acts = et.open_activations(url)
    assert acts.complete
    assert acts.residual.values.tobytes() == whole["residual"].tobytes()
    assert acts.sel(emotion="fear", position="last").values.tobytes() == (
        et.open_activations(tmp_path / "a").sel(emotion="fear", position="last").values.tobytes()
    )
    assert store.verify(url) == []


def test_a_bucket_that_does_not_answer_is_named(served, monkeypatch):
    monkeypatch.setattr(buckets, "TRIES", 2)
    served.failing = 1.0
    with pytest.raises(EmotraceError, match=r"s3://here/x/a cannot be read \(tried 2 times\)"):
        _impatient("s3://here/x").read("a")


def _impatient(url):
    from obstore.store import from_url

    bucket = Bucket(url)
    bucket._raw._store = from_url(url, retry_config={"max_retries": 0})
    return bucket
