import shutil
import warnings

import numpy as np
import pytest
import zarr

from emotrace import disk, store
from emotrace.labels import EmotraceError
from emotrace.store import checks, layout

CHUNK = "residual/residual/c.1.1.2.0"


def flip(file, at=17):
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 4
    file.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "missing": lambda f: f.unlink(),
    "longer": lambda f: f.write_bytes(f.read_bytes() + b"\0"),
}


def read(path, **labels):
    return store.open_activations(path).sel("residual", **labels).values


def resume(make, path, plan, whole):
    """The groups that a repeated run writes, and what it says."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with store.create_or_resume(path, plan) as writer:
            pending = [g.index for g in writer.pending()]
            for group in writer.pending():
                writer.commit(group, make.part(plan, whole, group))
    return pending, " ".join(str(w.message) for w in told)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunk_is_refused_by_every_read_that_needs_it_and_repaired_to_the_bit(make, stored, damage):
    path, plan, whole = stored
    before = make.files(path)
    rows = plan.groups[2].rows
    warm = store.open_activations(path)
    assert warm.sel("residual").isel(token=[rows.start]).shape[2] == 1  # known to be sound before it is damaged
    warm.sel("residual").values  # noqa: B018
    DAMAGES[damage](path / CHUNK)
    for acts in (warm, store.open_activations(path)):
        x = acts.sel("residual", layer=1, sublayer="resid_post")
        for part in (
            x,
            x.isel(token=[rows.start]),
            x.isel(token=slice(rows.start, rows.start + 1)),
            x.isel(dim=[1, 5]),
        ):
            with pytest.raises(
                EmotraceError, match=r"residual, layer 1, sublayer resid_post, row group 2.*emotrace repair"
            ):
                part.values  # noqa: B018
        with pytest.raises(EmotraceError, match="row group 2"):
            acts.to_dataframe("residual")
        with pytest.raises(EmotraceError, match="row group 2"):
            acts.dataset("residual").load()
        assert np.isfinite(acts.sel("residual", layer=0).values).all()  # other chunks are read
    assert [(d.path, d.group) for d in store.repair(path)] == [(CHUNK, 2)]
    assert store.verify(path) == []
    assert not store.open_activations(path).complete
    assert resume(make, path, plan, whole) == ([2], "")
    assert make.files(path) == before


def test_a_resume_captures_damaged_groups_again_and_says_so(make, stored):
    path, plan, whole = stored
    before = make.files(path)
    flip(path / CHUNK)
    (path / layout.commit_record(4)).write_text("{}")
    pending, told = resume(make, path, plan, whole)
    assert pending == [2, 4]
    assert "was damaged" in told
    assert "row groups 2, 4 are captured again" in told
    assert make.files(path) == before
    assert resume(make, path, plan, whole) == ([], "")


def test_every_codec_is_checked_before_it_is_decoded(make, tmp_path):
    plan = store.Plan.make(make.rows((3, 5)), [make.residual(codec="zstd")], {})
    with store.create_or_resume(tmp_path / "z", plan) as writer:
        for group in plan.groups:
            shape = plan.variables[0].shape(len(group))
            writer.commit(group, {"residual": np.arange(np.prod(shape), dtype="<f4").reshape(shape)})
    chunk = sorted((tmp_path / "z/residual/residual").glob("c.*"))[0]
    flip(chunk, -1)
    with pytest.raises(EmotraceError, match="checksum differs"):
        read(tmp_path / "z")


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        ("flipped", "prompts/labels/emotion/c/0"), ("missing", "prompts/labels/emotion/zarr.json"), ("cut", "zarr.json"),
        ("flipped", "residual/zarr.json"),
        ("missing", layout.TABLE_RECORD), ("cut", layout.TABLE_RECORD),
    ],
)  # fmt: skip
def test_damaged_metadata_is_refused_or_unused_and_written_again(make, stored, file, damage):
    path, plan, whole = stored
    before = make.files(path)
    DAMAGES[damage](path / file)
    if file != "residual/zarr.json":  # which only zarr itself reads
        with pytest.raises(EmotraceError, match=r"is damaged.*emotrace repair"):
            store.open_activations(path).tokens  # noqa: B018
    assert [d.path for d in store.verify(path)] == [file]
    copy = path.with_name("copy.zarr")
    shutil.copytree(path, copy)
    pending, told = resume(make, path, plan, whole)
    assert (pending, "token table are written again" in told) == ([], True)
    assert make.files(path) == before
    store.repair(copy)  # no plan here: from the store's own table, where that is whole
    if file != "prompts/labels/emotion/c/0" and file != "prompts/labels/emotion/zarr.json":
        assert make.files(copy) == before
    else:
        assert [d.path for d in store.verify(copy)] == [file]


def test_a_store_without_its_record_of_attributes_is_as_before(make, stored):
    """The version before wrote no copy of the attributes."""
    path, plan, whole = stored
    record = {"files": checks.of_table(path)}
    disk.replace_file(path / layout.TABLE_RECORD, layout.dump(record))
    assert read(path).shape == (3, 2, 21, 8)
    assert store.verify(path) == []
    assert resume(make, path, plan, whole) == ([], "")
    flip(path / "zarr.json", 0)
    for use in (store.repair, store.verify, lambda p: store.create_or_resume(p, plan)):
        with pytest.raises(EmotraceError, match=r"cannot be repaired.*older versions"):
            use(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"row_group": 4', '"row_group": 0'),
        ('"variables"', '"variable"'),
        ('"rows": 21', '"rows": "x"'),
        ('"format": 2', '"format": "2"'),
    ],
)
def test_a_description_that_cannot_be_is_one_error(stored, old, new):
    path, _plan, _ = stored
    text = (path / "zarr.json").read_text()
    assert old in text
    (path / "zarr.json").write_text(text.replace(old, new))
    for use in (store.open_activations, store.info, store.ls):
        with pytest.raises(EmotraceError, match=r"is damaged|has store format"):
            use(path)


def test_repair_waits_for_no_writer_and_takes_no_other_folder(make, stored, tmp_path):
    path, plan, _ = stored
    with store.create_or_resume(path, plan), pytest.raises(EmotraceError, match="another process is writing"):
        store.repair(path)
    zarr.create_group(tmp_path / "other.zarr")
    before = make.files(tmp_path / "other.zarr")
    with pytest.raises(EmotraceError, match="not an activation store"):
        store.repair(tmp_path / "other.zarr")
    assert make.files(tmp_path / "other.zarr") == before


def test_a_commit_record_of_a_group_that_does_not_exist_goes(make, stored):
    path, _plan, _whole = stored
    before = make.files(path)
    shutil.copy(path / layout.commit_record(0), path / layout.commit_record(99))
    assert [d.group for d in store.verify(path)] == [99]
    assert store.open_activations(path).complete
    store.repair(path)
    assert make.files(path) == before
