"""Digests and settings: equal values alike, every difference named."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from emotrace import disk
from emotrace.labels import EmotraceError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(JSON, JSON)
def test_digests_differ_where_the_json_does(a, b):
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (disk.digest(a) == disk.digest(b)) == same
    assert disk.digest(json.loads(json.dumps(a))) == disk.digest(a)


def test_a_digest_does_not_see_in_what_a_value_is_kept():
    assert disk.digest({"b": (1, 2), "a": np.float64(0.5)}) == disk.digest({"a": 0.5, "b": [1, 2]})
    assert disk.digest(range(2)) == disk.digest([0, np.int64(1)])
    assert disk.digest("\ud800") != disk.digest("\ud801")  # a lone surrogate is a text like any other


def test_arrays_are_told_apart_by_numbers_shape_type_and_labels():
    x = np.arange(6.0).reshape(2, 3)
    labelled = xr.DataArray(x, dims=("emotion", "dim"), coords={"emotion": ["anger", "fear"]})
    others = [x.T.copy().reshape(2, 3), x.reshape(3, 2), x.astype("float32"), labelled]
    others += [labelled.assign_coords(emotion=["fear", "anger"]), labelled.rename(dim="unit")]
    assert len({disk.digest(v) for v in [x, *others]}) == 7
    assert disk.digest(labelled.assign_attrs(n=1)) == disk.digest(labelled)
    assert disk.digest(np.asfortranarray(x)) == disk.digest(x)


def test_what_has_no_canonical_form_is_refused():
    with pytest.raises(EmotraceError, match="set"):
        disk.digest({"a": {1, 2}})


def test_every_difference_is_named_with_both_values():
    was = {"seed": 0, "decoding": {"n": 1, "t": 2.0}, "command": "a", "gone": 1}
    now = {"seed": 1, "decoding": {"n": 1, "t": 3.0}, "command": "b"}
    assert disk.differences(was, now, ["command"]) == [
        "decoding.t: 2.0 there, 3.0 now",
        "gone: 1 there, '(nothing)' now",
        "seed: 0 there, 1 now",
    ]
    assert disk.differences({"x": [1, 2], "y": float("nan")}, {"x": (1, 2), "y": float("nan")}) == []
    with pytest.raises(EmotraceError, match=r"a/b: row 'k' was made with other settings \(.*seed: 0 there, 1 now\)"):
        disk.settle("a/b", was, now, what="row 'k'")
    with pytest.raises(EmotraceError, match=r"rows: row 'k' was written by an earlier version: there is no record"):
        disk.same_row("rows", {"key": "k", "meta": {"seed": 0}}, {"seed": 0}, "row 'k'")


def test_what_an_earlier_version_began_is_refused_with_what_helps():
    now = {"seed": 0, "template": {"bos": None, "digest": "a"}, "tokens_digest": "b"}
    early = [{"seed": 0, "template": now["template"]}, {**now, "template": {"digest": "a"}}]
    for was in early:
        with pytest.raises(EmotraceError, match=r"a/b was made .*'\(nothing\)' there.* only another path helps\.$"):
            disk.settle("a/b", was, now)
    with pytest.raises(EmotraceError, match=r"give another path, or the settings it was begun with\.$"):
        disk.settle("a/b", {**now, "seed": 1}, now)


def test_a_file_of_settings_is_noted_once(tmp_path: Path):
    file = tmp_path / "x" / "settings.json"
    assert not disk.settle_file(file, {"a": (1, 2)})
    before = file.read_bytes()
    assert disk.settle_file(file, {"a": [1, 2]})
    assert file.read_bytes() == before
    with pytest.raises(EmotraceError, match=r"x was made with other settings \(a: \[1, 2\] there, \[2\] now\)"):
        disk.settle_file(file, {"a": [2]})
    file.write_text("{")
    with pytest.raises(EmotraceError, match=r"settings\.json is damaged"):
        disk.settle_file(file, {"a": [2]})
