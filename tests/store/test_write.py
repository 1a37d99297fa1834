import fcntl
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from emotrace import store
from emotrace.labels import EmotraceError
from emotrace.store import layout


def test_plain_zarr_and_xarray_read_back_the_same_bits(make, stored):
    path, plan, whole = stored
    for name, values in whole.items():
        ds = xr.open_zarr(path, group=name)
        assert ds[name].dims == next(v for v in plan.variables if v.name == name).full_dims
        assert ds[name].values.tobytes() == values.tobytes()
    assert ds.layer.values.tolist() == [0, 1]
    table, prompts, labels = (xr.open_zarr(path, group=group) for group in ("", "prompts", "prompts/labels"))
    for name in ("prompt", "position", "token_id"):
        assert table[name].dims == ("token",)
        assert table[name].values.tolist() == plan.rows.columns[name].tolist()
    of = table.prompt.values  # every prompt has rows here, so its row of the prompts' table is its number
    for name, group in (("key", prompts), ("prompt_length", prompts), ("emotion", labels), ("n", labels)):
        assert group[name].dims == ("prompt",)
        assert group[name].values[of].tolist() == plan.rows.columns[name].tolist()
    assert {n for n, _ in zarr.open_group(path, mode="r", use_consolidated=False).members()} >= {"residual", "prompts"}
    assert xr.open_datatree(path, engine="zarr")["residual"].residual.shape == whole["residual"].shape


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("source", ["bfloat16", "float16", "float32"])
def test_every_dtype_and_codec_is_lossless(make, tmp_path, source, codec):
    v = store.Variable("x", ("dim",), sizes={"dim": 16}, source_dtype=source, codec=codec)
    plan = make.plan([9], [v])
    bits = np.random.default_rng(0).integers(0, 1 << 16, (9, 16), dtype=np.uint16)
    bits[0, :6] = [0x7F80, 0xFF80, 0x8000, 0x0001, 0x8001, 0x0000]  # ±inf, -0.0, ±smallest subnormal, 0.0 (as bfloat16)
    as_float32 = (bits.astype(np.uint32) << 16).view(np.float32)
    values = bits.view(np.float16) if source == "float16" else as_float32
    make.write(tmp_path / "a", plan, {"x": values})
    acts = store.open_activations(tmp_path / "a")
    assert acts.x.values.tobytes() == values.tobytes()
    assert xr.open_zarr(tmp_path / "a", group="x").x.values.tobytes() == values.tobytes()
    assert acts.x.attrs["source_dtype"] == source
    assert acts.x[3:5, 2:4].values.tobytes() == values[3:5, 2:4].tobytes()


def test_bfloat16_takes_little_more_than_half(make, tmp_path):
    v = store.Variable("x", ("dim",), sizes={"dim": 512}, source_dtype="bfloat16")
    values = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    make.write(tmp_path / "a", make.plan([64], [v], max_rows=64), {"x": values})
    assert (tmp_path / "a/x/x/c.0.0").stat().st_size < 0.56 * values.nbytes


def test_resume_writes_only_what_is_missing_and_ends_bit_identical(make, tmp_path, stored):
    path, plan, whole = stored
    make.write(tmp_path / "b", plan, whole, groups={0, 3})
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("c.*")}
    acts = store.open_activations(tmp_path / "b")
    assert not acts.complete
    assert acts.tokens.equals(
        store.open_activations(path).tokens.iloc[[0, 1, 2, 3, 12, 13, 14, 15]].reset_index(drop=True)
    )
    kept = [0, 1, 2, 3, 12, 13, 14, 15]
    assert acts.residual.values.tobytes() == whole["residual"][:, :, kept].tobytes()
    again = make.plan(attrs={"model_id": "tiny", "command": "other", "versions": {"x": "2"}})
    make.write(tmp_path / "b", again, whole)
    assert make.files(tmp_path / "b") == make.files(path)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


def test_killed_at_random_moments_the_store_ends_bit_identical(tmp_path):
    program = Path(__file__).with_name("killed_writer.py")
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["kills"] >= 50
    assert seen["before_creation"]
    assert seen["part_written"]


def test_other_settings_are_refused_with_both_values(make, stored):
    path, _, whole = stored
    before = make.files(path)
    with pytest.raises(EmotraceError, match="model_id: 'tiny' there, 'large' now"):
        make.write(path, make.plan(attrs={"model_id": "large"}), whole)
    with pytest.raises(EmotraceError, match=r"dtype: '\(nothing\)' there, 'float16' now"):
        make.write(path, make.plan(attrs={"model_id": "tiny", "dtype": "float16"}), whole)
    with pytest.raises(EmotraceError, match=r"plan_digest: .* there"):
        make.write(path, make.plan(max_rows=5), whole)
    assert make.files(path) == before


def test_what_is_not_a_store_is_refused_and_kept(make, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    (tmp_path / "file").write_text("mine")
    for name in ("notes", "other.zarr", "file"):
        with pytest.raises(EmotraceError, match="not an activation store"):
            store.create_or_resume(tmp_path / name, make.plan())
        with pytest.raises(EmotraceError, match="not an activation store"):
            store.open_activations(tmp_path / name)
    assert (tmp_path / "notes/a.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    with pytest.raises(EmotraceError, match="no activation store at"):
        store.open_activations(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    store.create_or_resume(tmp_path / "empty", make.plan()).close()


def test_two_writers_at_once_are_refused(make, tmp_path):
    with store.create_or_resume(tmp_path / "a", make.plan()), pytest.raises(EmotraceError, match="another process"):
        store.create_or_resume(tmp_path / "a", make.plan())
    store.create_or_resume(tmp_path / "a", make.plan()).close()
    (tmp_path / ".b.partial" / layout.COMMITS).mkdir(parents=True)
    with open(tmp_path / ".b.partial" / layout.LOCK, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EmotraceError, match="another process"):
            store.create_or_resume(tmp_path / "b", make.plan())


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_says_so_and_leaves_a_store_that_continues(make, tmp_path, background):
    plan = make.plan([8], [make.residual(dim=30_000)])
    whole = make.arrays(plan)
    store.create_or_resume(tmp_path / "a", plan).close()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with store.create_or_resume(tmp_path / "a", plan) as writer:
                group = writer.pending()[0]
                (writer.submit if background else writer.commit)(group, make.part(plan, whole, group))
        except EmotraceError as error:
            ok = "repeat the same command" in str(error)
            os._exit(0 if ok else 1)
        os._exit(2)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 0
    assert not list((tmp_path / "a").rglob("*.partial"))
    make.write(tmp_path / "a", plan, whole)
    assert store.open_activations(tmp_path / "a").residual.values.tobytes() == whole["residual"].tobytes()


def test_wrong_arrays_are_refused(make, tmp_path):
    plan = make.plan()
    whole = make.arrays(plan)
    with store.create_or_resume(tmp_path / "a", plan) as writer:
        group = writer.pending()[0]
        good = make.part(plan, whole, group)
        with pytest.raises(EmotraceError, match=r"needs the variables \['residual', 'z'\]"):
            writer.commit(group, {"z": good["z"]})
        with pytest.raises(EmotraceError, match=r"'z' is float32\[2, 3, 2, 4\]"):
            writer.commit(group, {**good, "z": good["z"][:, :3]})
        with pytest.raises(EmotraceError, match="float64"):
            writer.commit(group, {**good, "z": good["z"].astype(np.float64)})
        writer.commit(group, good)
        with pytest.raises(EmotraceError, match="committed already"):
            writer.commit(group, good)
    with pytest.raises(EmotraceError, match="closed"):
        writer.commit(group, good)


def test_buffers_are_two_sets_however_many_groups(make, tmp_path):
    plan = make.plan([5] * 40)
    seen = set()
    with store.create_or_resume(tmp_path / "a", plan) as writer:
        for group in writer.pending():
            buffers = writer.buffers(group)
            seen.add(buffers["residual"].__array_interface__["data"][0])
            for array in buffers.values():
                array[...] = group.index
            writer.submit(group, buffers)
    assert len(seen) <= 2
    stored = store.open_activations(tmp_path / "a").residual.values
    assert (stored == (np.arange(200) // plan.row_group)[:, None]).all()
