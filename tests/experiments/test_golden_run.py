"""Two golden runs are equal only to the bit: one planted bit in each kind of file is found, and where it is."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from matplotlib.image import imsave
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
VALUE = 0.1
NEXT = float(np.nextafter(VALUE, 1))
"""One bit away."""


@pytest.fixture(scope="module")
def golden():
    """The module of the comparison."""
    spec = importlib.util.spec_from_file_location("golden_compare", ROOT / "experiments" / "golden_compare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden_compare"] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("golden_compare")


def store(path, value, label="fear", **options):
    """A store with an array and its labels."""
    group = zarr.open_group(path, mode="w", attributes={"started": label})
    group.create_array("x", data=np.array([1.0, value]), dimension_names=["token"], **options)
    group.create_array("emotion", shape=(2,), dtype="string", dimension_names=["token"])[:] = np.array(["joy", label])


WRITE = {
    "a.json": lambda p, v: p.write_text(json.dumps({"about": {"rows": [1, v]}, "seconds": v})),
    "a.jsonl": lambda p, v: p.write_text(f'{{"key": "a"}}\n{json.dumps({"key": "b", "p": [v]})}\n'),
    "a.csv": lambda p, v: p.write_text(f"name,p,seconds\nx,1,2\ny,{v!r},{v!r}\n"),
    "a.npy": lambda p, v: np.save(p, np.array([[1.0, v]])),
    "a.safetensors": lambda p, v: save_file({"w": np.array([1.0, v])}, p),
    "a.zarr": store,
    "a.txt": lambda p, v: p.write_text(f"made 2026-01-01T10:00:00+0000\np = {v!r}\n"),
    "a.png": lambda p, v: imsave(p, np.full((2, 2), 0 if v == VALUE else 1), vmin=0, vmax=255, cmap="gray"),
    "a.gguf": lambda p, v: p.write_bytes(np.array(v).tobytes()),
}
PLACES = {
    "a.json": "/about/rows/1", "a.jsonl": "line 2/p/0", "a.csv": "line 3, p", "a.npy": "array[0,1]",
    "a.safetensors": "w (F64)[1]", "a.zarr": "x[1]", "a.txt": "line 2", "a.png": "picture", "a.gguf": "bytes",
}  # fmt: skip


@pytest.fixture
def pair(tmp_path):
    before = tmp_path / "before" / "part"
    before.mkdir(parents=True)
    for name, write in WRITE.items():
        write(before / name, VALUE)
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    return tmp_path / "before", tmp_path / "after"


def test_equal_trees_differ_nowhere(golden, pair):
    found = golden.trees(*pair)
    assert (found.differences, found.renamed, found.files) == ([], [], len(WRITE))
    assert found.values > 2 * len(WRITE)


@pytest.mark.parametrize("name", WRITE)
def test_one_bit_is_found_in_every_kind_of_file(golden, pair, name):
    WRITE[name](pair[1] / "part" / name, NEXT)
    (one,) = golden.trees(*pair).differences
    assert (one.file, one.place) == (f"part/{name}", PLACES[name])
    if name in ("a.json", "a.jsonl", "a.csv"):
        assert (one.before, one.after) == (repr(VALUE), repr(NEXT))
    assert one.place in golden.table(golden.trees(*pair), 5)


def test_a_label_and_a_kind_of_number_count_and_a_compression_does_not(golden, pair):
    path = pair[1] / "part" / "a.zarr"
    shutil.rmtree(path)
    store(path, VALUE, compressors=zarr.codecs.GzipCodec(), chunks=(1,))
    assert golden.trees(*pair).differences == []
    shutil.rmtree(path)
    store(path, VALUE, "anger")
    (one,) = golden.trees(*pair).differences
    assert one.place == "emotion[1]"
    assert "fear" in one.before
    shutil.rmtree(path)
    store(path, VALUE)
    np.save(pair[1] / "part" / "a.npy", np.array([[1.0, VALUE]], "float32"))
    (one,) = golden.trees(*pair).differences
    assert (one.before, one.after) == ("float64[1, 2]", "float32[1, 2]")


@pytest.mark.parametrize(
    ("before", "after", "same"), [(0.0, -0.0, False), (1, 1.0, False), (float("nan"),) * 2 + (True,)]
)
def test_numbers_are_equal_to_the_bit(golden, tmp_path, before, after, same):
    for folder, value in (("before", before), ("after", after)):
        for name in ("a.json", "a.npy"):
            (tmp_path / folder).mkdir(exist_ok=True)
            WRITE[name](tmp_path / folder / name, value)
    assert (not golden.trees(tmp_path / "before", tmp_path / "after").differences) == same


def test_times_may_differ_and_digests_may_not(golden, pair):
    for folder, sha, when in (*zip(pair, "ab", "12", strict=True),):
        about = {"versions": {"torch": when}, "started": when, "sha256": sha}
        (folder / "manifest.json").write_text(json.dumps(about))
        (folder / "a.txt").write_text(f"made 2026-01-01T10:0{when}:00+0000\n")
    (one,) = golden.trees(*pair).differences
    assert (one.file, one.place) == ("manifest.json", "/sha256")


def test_files_with_other_names_are_listed_and_lost_ones_are_differences(golden, pair):
    (pair[1] / "part" / "a.npy").rename(pair[1] / "b.npy")
    found = golden.trees(*pair)
    assert (found.differences, found.renamed) == ([], [("part/a.npy", "b.npy")])
    (pair[1] / "b.npy").unlink()
    (pair[1] / "new.csv").write_text("a\n1\n")
    assert {(d.file, d.place) for d in golden.trees(*pair).differences} == {("part/a.npy", "file"), ("new.csv", "file")}


@pytest.mark.parametrize(("off", "same"), [(1e-7, True), (1e-4, False)])
@pytest.mark.parametrize("name", sorted({"a.json", "a.npy", "a.csv"} & set(WRITE)))
def test_with_digits_a_rounding_is_no_difference(golden, tmp_path, name, off, same):
    for folder, value in (("before", 1.5), ("after", 1.5 + off)):
        (tmp_path / folder).mkdir()
        WRITE[name](tmp_path / folder / name, value)
    assert golden.trees(tmp_path / "before", tmp_path / "after").differences
    assert (not golden.trees(tmp_path / "before", tmp_path / "after", digits=5).differences) == same
