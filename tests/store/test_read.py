import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emotrace import store
from emotrace.labels import EmotraceError, positions_in

OPENED = None


def _note(event, args):
    if OPENED is not None and event == "open" and isinstance(args[0], str):
        OPENED.append(args[0])


sys.addaudithook(_note)

VALUES = {
    "emotion": st.sampled_from(["anger", ["fear"], ["fear", "anger"], "fear"]),
    "n": st.sampled_from([0, [0, 2], slice(1, 2), slice(None, 1), np.array([1, 2])]),
    "position": st.sampled_from(["last", "generated", "steer", "prompt", "all", (1, 3), 2, [0, 2], slice(1, 3)]),
    "position_from_end": st.sampled_from([-1, [0, -1], slice(-2, 0)]),
    "prompt_length": st.sampled_from([slice(2, 4), 4]),
}
DIMS = {
    "layer": st.sampled_from([0, 3, [0, 3], [3, 0], slice(1, 3), slice(0, 2)]),
    "sublayer": st.sampled_from(["resid_post", ["resid_mid"], ["resid_mid", "resid_post"]]),
    "dim": st.sampled_from([5, [1, 6], slice(2, 4)]),
}


def _naive_rows(table, wanted):
    def fits(row):
        for name, value in wanted.items():
            if name == "position" and isinstance(value, (str, tuple)):
                if row.position not in positions_in(value, row.prompt_length, 99):
                    return False
            elif isinstance(value, slice):
                if not (value.start is None or row[name] >= value.start) or not (
                    value.stop is None or row[name] <= value.stop
                ):
                    return False
            elif row[name] not in (list(value) if isinstance(value, (list, np.ndarray)) else [value]):
                return False
        return True

    return [i for i, row in table.iterrows() if fits(row)]


def _naive_index(values, wanted):
    if isinstance(wanted, slice):
        return [i for i, v in enumerate(values) if wanted.start <= v <= wanted.stop]
    return [values.index(w) for w in wanted] if isinstance(wanted, list) else values.index(wanted)


@pytest.fixture(scope="module")
def shared(make, tmp_path_factory):
    plan = make.plan()
    whole = make.arrays(plan)
    path = tmp_path_factory.mktemp("store") / "a"
    make.write(path, plan, whole)
    return path, whole


@settings(max_examples=2 * settings.default.max_examples)
@given(
    wanted=st.fixed_dictionaries({}, optional=VALUES),
    dims=st.fixed_dictionaries({}, optional=DIMS),
)
def test_sel_agrees_with_a_naive_filter(shared, wanted, dims):
    path, whole = shared
    acts = store.open_activations(path)
    rows = _naive_rows(acts.tokens, wanted)
    if not rows:
        with pytest.raises(EmotraceError, match="the selection is empty"):
            acts.sel(**wanted, **dims)
        return
    x = acts.sel(**wanted, **dims)
    expected = whole["residual"].take(rows, axis=2)
    for axis, (name, values) in reversed(
        [
            *enumerate(
                {"layer": [0, 1, 3], "sublayer": ["resid_mid", "resid_post"], "token": None, "dim": [*range(8)]}.items()
            )
        ]
    ):
        if name in dims:
            expected = expected.take(_naive_index(values, dims[name]), axis=axis)
    assert not x.variable._in_memory
    assert x.values.tobytes() == expected.tobytes()
    assert x.shape == expected.shape
    assert x.key.values.tolist() == acts.tokens.key.iloc[rows].tolist()
    assert x.position.dims == ("token",)


def test_reading_one_layer_and_sublayer_of_one_group_opens_one_chunk(make, stored):
    global OPENED
    path, plan, whole = stored
    acts = store.open_activations(path)
    group = plan.groups[2]
    row = group.prompts[0].start
    x = acts.sel(layer=1, sublayer="resid_post", key=plan.rows.key[row], position=int(plan.rows.position[row]))
    y = acts.sel(layer=[0, 3], sublayer="resid_mid")
    assert len(acts.tokens) == plan.n_rows  # the labels are read before chunks are counted
    counts = []
    for array in (x, y):
        OPENED = []
        array.values  # noqa: B018
        counts.append([p for p in OPENED if str(path) in p and "/commit/" not in p])  # records are read once a group
        OPENED = None
    assert [p.split("/")[-1] for p in counts[0]] == ["c.1.1.2.0"]
    assert len(counts[1]) == 2 * plan.n_groups
    assert x.values.tobytes() == whole["residual"][1, 1, row].tobytes()


def test_other_chunks_may_be_gone(make, stored):
    path, _, whole = stored
    for file in (path / "residual/residual").glob("c.*"):
        if not file.name.startswith("c.2.0."):
            file.unlink()
    acts = store.open_activations(path)
    assert acts.sel(layer=3, sublayer="resid_mid").values.tobytes() == whole["residual"][2, 0].tobytes()
    with pytest.raises(EmotraceError, match=r"cannot read .*c\.0\.0\.0\.0.*emotrace verify"):
        acts.sel(layer=0, sublayer="resid_mid").values  # noqa: B018


def test_lazy_arrays_index_like_numpy(make, stored):
    path, _, whole = stored
    x = store.open_activations(path).residual
    for key in [np.s_[::-1, :, ::-2], np.s_[0, 1, [7, 2, 2, 19]], np.s_[:, 0, -1, ::3], np.s_[:, :, 3:9, [4, 1]]]:
        assert x[key].values.tobytes() == np.ascontiguousarray(whole["residual"][key]).tobytes()
    for outside in ({"dim": 8}, {"dim": [1, 9]}):  # a dim without labels, which nothing else looks at
        with pytest.raises(IndexError):
            x.isel(outside).values  # noqa: B018
    assert not x.variable._in_memory
    changed = x[0].load()
    changed.values[...] = 0
    assert store.open_activations(path).residual.values.tobytes() == whole["residual"].tobytes()


def test_cells_that_do_not_exist_are_refused(make, tmp_path):
    plan = make.plan(variables=[make.residual(absent=((1, "resid_mid"),))])
    whole = make.arrays(plan)
    make.write(tmp_path / "a", plan, whole)
    acts = store.open_activations(tmp_path / "a")
    message = "no layer=1, sublayer='resid_mid'.*resid_mid in layers \\[0, 3\\]"
    for labels in (
        {"sublayer": "resid_mid"},
        {"layer": 1},
        {"layer": slice(0, 3)},
        {"layer": [0, 1], "sublayer": "resid_mid"},
    ):
        with pytest.raises(EmotraceError, match=message):
            acts.sel(**labels)
    with pytest.raises(EmotraceError, match=message):
        acts.residual.values  # noqa: B018
    assert acts.sel(layer=1, sublayer="resid_post").values.tobytes() == whole["residual"][1, 1].tobytes()
    assert acts.sel(layer=[0, 3], sublayer="resid_mid").values.tobytes() == whole["residual"][[0, 2], 0].tobytes()
    assert not list((tmp_path / "a/residual/residual").glob("c.1.0.*"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"emotion": "angr"}, "unknown emotion 'angr'.*Did you mean 'anger'"),
        ({"emotion": ["anger", "joy"]}, "unknown emotion 'joy'.*anger, fear"),
        ({"emotoin": "anger"}, "unknown label 'emotoin'.*Did you mean 'emotion'"),
        ({"layer": 2}, "unknown layer 2.*0, 1, 3"),
        ({"layer": -1}, "unknown layer -1"),
        ({"layer": "1"}, "unknown layer '1'"),
        ({"layer": slice(7, 9)}, "no layer is in"),
        ({"layer": []}, "no layer is in"),
        ({"sublayer": "resid_pots"}, "Did you mean 'resid_post'"),
        ({"sublayer": slice("a", "z")}, "no order"),
        ({"emotion": slice("a", "z")}, "no order"),
        ({"n": slice(0, 2, 2)}, "without a step"),
        ({"position": "lst"}, "unknown position policy 'lst'"),
        ({"position": (3, 1)}, "0 <= start < stop"),
        ({"position": 99}, "unknown position 99"),
        ({"n": "1"}, "unknown n '1'"),
        ({"position": True}, "unknown position True"),
        ({"n": 0, "key": "prompt_1"}, "the selection is empty: no row has n=0, key='prompt_1'"),
        ({"variable": "residul"}, "unknown variable 'residul'.*'residual'"),
        ({"variable": "z", "sublayer": "resid_mid"}, "unknown label 'sublayer'"),
    ],
)
def test_bad_selections_say_what_would_be_right(shared, labels, message):
    with pytest.raises(EmotraceError, match=message):
        store.open_activations(shared[0]).sel(**labels)


def test_tables_and_datasets(make, shared):
    path, whole = shared
    acts = store.open_activations(path)
    frame = acts.to_dataframe("z", layer=1, head=[0, 1], key="prompt_2")
    rows = np.flatnonzero(acts.tokens.key == "prompt_2")
    assert frame["z"].tolist() == whole["z"][1, rows].ravel().tolist()
    assert frame.iloc[5][["head", "head_dim", "emotion", "layer"]].tolist() == [1, 1, "anger", 1]
    with pytest.raises(EmotraceError, match="the table would have"):
        acts.to_dataframe(max_rows=10)
    with pytest.raises(EmotraceError, match="different layers"):
        acts.dataset()
    assert acts.dataset("z").z.values.tobytes() == whole["z"].tobytes()
    assert acts.z.sel(head=slice(0, 0), layer=1).shape == (len(acts), 1, 4)
    with pytest.raises(AttributeError, match="it has residual, z"):
        acts.neuron  # noqa: B018


def test_repr_shows_sites_labels_and_progress(make, tmp_path):
    plan = make.plan()
    make.write(tmp_path / "a", plan, make.arrays(plan), groups={1})
    text = repr(store.open_activations(tmp_path / "a"))
    for part in ("tiny", "4 of 21 rows committed", "residual [layer: 3, sublayer: 2, token: 4, dim: 8]", "fear"):
        assert part in text
    store.create_or_resume(tmp_path / "b", plan).close()
    empty = store.open_activations(tmp_path / "b")
    assert "0 of 21 rows" in repr(empty)
    assert empty.residual.shape == (3, 2, 0, 8)
    with pytest.raises(EmotraceError, match="no committed rows yet"):
        empty.sel(layer=1)


def test_many_tokens_keep_their_labels_lazy(make, tmp_path):
    n = 30_000
    plan = store.Plan.make(make.rows([n, 5]), [store.Variable("x", ("dim",), sizes={"dim": 2})], {}, max_rows=4096)
    whole = make.arrays(plan)
    make.write(tmp_path / "a", plan, whole)
    acts = store.open_activations(tmp_path / "a")
    x = acts.sel("x", emotion="fear")
    assert not x.key.variable._in_memory
    assert x.key.values.tolist() == ["prompt_1"] * 5
    assert x.values.tobytes() == whole["x"][n:].tobytes()


def test_store_does_not_import_torch():
    import subprocess

    code = "import sys, emotrace.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
