"""Reading a stranger's pickle runs nothing, and what we pickle can be read by numpy 1 too."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from emotrace.interop import files
from emotrace.labels import EmotraceError

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


class Hostile:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_and_tensors_of_numbers_are_read(tmp_path, zipped, dtype):
    value = {"dirs": {"anger": ARRAY.astype(dtype)}, "t": torch.ones(2, dtype=torch.float16), "layers": 2}
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    got = files.load_pt(tmp_path / "a.pt")
    assert got["dirs"]["anger"].dtype == dtype
    np.testing.assert_array_equal(got["dirs"]["anger"], ARRAY)
    assert torch.equal(got["t"], value["t"])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: np.array([x], dtype=object)])
def test_another_global_is_refused_by_name_and_not_called(tmp_path, zipped, wrap):
    torch.save({"dirs": wrap(Hostile(tmp_path / "made"))}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(EmotraceError, match=r"mkdir|ObjectDType"):
        files.load_pt(tmp_path / "a.pt")
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()  # the file was hostile: plain pickle falls for it


def test_the_allow_list_ends_with_the_read(tmp_path):
    torch.save({"dirs": ARRAY}, tmp_path / "a.pt")
    files.load_pt(tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)


def test_written_pickles_name_what_numpy_1_has(tmp_path):
    files.save_pt({"dirs": {"anger": ARRAY}, "layers": 2}, tmp_path / "sub" / "a.pt")
    with zipfile.ZipFile(tmp_path / "sub" / "a.pt") as archive:
        (data,) = [archive.read(n) for n in archive.namelist() if n.endswith("data.pkl")]
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data
    assert b"numpy._core" not in data
    for weights_only in (True, False):
        with torch.serialization.safe_globals(files.ALLOWED):
            got = torch.load(tmp_path / "sub" / "a.pt", weights_only=weights_only)
        np.testing.assert_array_equal(got["dirs"]["anger"], ARRAY)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.pt"]


def test_damage_is_one_error(tmp_path):
    files.save_pt({"dirs": ARRAY}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    torch.save([1], tmp_path / "list.pt")
    for name, data in (("cut", whole[:300]), ("text", b"hello"), ("empty", b""), ("p4", pickle.dumps({"a": ARRAY}, 4))):
        (tmp_path / f"{name}.pt").write_bytes(data)
    for name, word in (("cut", "cannot be read"), ("text", "cannot"), ("empty", "cannot"), ("p4", "cannot")):
        with pytest.raises(EmotraceError, match=word) as caught:
            files.load_pt(tmp_path / f"{name}.pt")
        assert "weights_only` set to `False`" not in str(caught.value)
    with pytest.raises(EmotraceError, match="list, not a dict"):
        files.load_pt(tmp_path / "list.pt")
    with pytest.raises(EmotraceError, match="no such file"):
        files.load_pt(tmp_path / "absent.pt")


def test_npy_and_json(tmp_path):
    files.save_npy(ARRAY[:, ::2], tmp_path / "a.npy")
    np.testing.assert_array_equal(files.load_npy(tmp_path / "a.npy"), ARRAY[:, ::2])
    buffer = io.BytesIO()
    np.save(buffer, np.array([Hostile(tmp_path / "made")], dtype=object), allow_pickle=True)
    (tmp_path / "o.npy").write_bytes(buffer.getvalue())
    np.save(tmp_path / "s.npy", np.array(["a"]))
    for name, word in (("o", "no .npy file"), ("s", "no array of numbers"), ("x", "no such file")):
        with pytest.raises(EmotraceError, match=word):
            files.load_npy(tmp_path / f"{name}.npy")
    assert not (tmp_path / "made").exists()
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").write_text("{")
    for name, word in (("a", "not a JSON object"), ("b", "not JSON"), ("c", "no such file")):
        with pytest.raises(EmotraceError, match=word):
            files.load_json(tmp_path / f"{name}.json")
