import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emotrace import store
from emotrace.labels import EmotraceError, positions_in

TOKEN = {
    "emotion": st.sampled_from(["anger", ["fear"], ["fear", "anger"]]),
    "n": st.sampled_from([0, [0, 2], slice(1, 2)]),
    "position": st.sampled_from(["last", "steer", "all", (0, 3), [0, 2], slice(1, 3)]),
}
DIMS = {
    "layer": st.sampled_from([0, 1, [3, 0], slice(1, 3), [0, 1]]),
    "sublayer": st.sampled_from(["resid_post", ["resid_post", "resid_mid"]]),
    "head": st.sampled_from([1, [1, 0]]),
    "dim": st.sampled_from([6, [6, 2, 1], slice(2, 4)]),
}
AXES = {
    "residual": {"layer": [0, 1, 3], "sublayer": ["resid_mid", "resid_post"], "token": None, "dim": list(range(8))},
    "z": {"layer": [0, 1], "token": None, "head": [0, 1], "head_dim": list(range(4))},
}


def inside(value, wanted, name, row=None):
    if name == "position" and isinstance(wanted, (str, tuple)):
        return row is not None and value in positions_in(wanted, row.prompt_length, 99)
    if isinstance(wanted, slice):
        return wanted.start <= value <= wanted.stop
    return value in (wanted if isinstance(wanted, list) else [wanted])


def literal(acts, whole, chain):
    """What a chain of selections leaves, one label after another: (rows of the table, arrays)."""
    table, rows, axes = acts.tokens, list(range(len(acts))), {v: dict(a) for v, a in AXES.items()}
    for wanted in chain:
        for name, value in wanted.items():
            if name in table:
                rows = [i for i in rows if inside(table[name][i], value, name, table.loc[i])]
            else:
                for axis in axes.values():
                    if name in axis:
                        axis[name] = [x for x in axis[name] if inside(x, value, name)]
    out = {}
    for v, axis in axes.items():
        if all(x is None or x for x in axis.values()):
            index = [rows if axis[d] is None else [AXES[v][d].index(x) for x in axis[d]] for d in axis]
            out[v] = whole[v][np.ix_(*index)]
    return rows, out, axes


@pytest.fixture(scope="module")
def both(make, tmp_path_factory):
    plan = make.plan()
    whole = make.arrays(plan)
    path = tmp_path_factory.mktemp("store") / "a"
    make.write(path, plan, whole)
    return store.open_activations(path), store.Activations.in_memory(plan, whole), whole


def known_in(left, acts, wanted):
    """Whether every value that is named is there before anything is taken away."""
    rows, arrays, axes = left
    for name, value in wanted.items():
        if isinstance(value, tuple) or value in ("last", "steer", "all"):
            continue
        axis = {x for v in arrays for x in axes[v].get(name, ())}
        found = set(acts.tokens[name].iloc[rows]) if name in acts.columns else axis
        if isinstance(value, slice):
            if not any(value.start <= x <= value.stop for x in found):
                return False
            continue
        if not set(value if isinstance(value, list) else [value]) <= found:
            return False
    return True


def asked(chain):
    return [wanted for wanted in chain if wanted]


SELECTION = st.fixed_dictionaries({}, optional={**TOKEN, **DIMS})


@settings(max_examples=2 * settings.default.max_examples)
@given(chain=st.lists(SELECTION, max_size=3))
def test_views_agree_with_a_naive_filter(both, chain):
    stored, memory, whole = both
    for acts in (stored, memory):
        view, done = acts, 0
        for wanted in asked(chain):
            known = known_in(literal(stored, whole, asked(chain)[:done]), stored, wanted)
            there = literal(stored, whole, asked(chain)[: done + 1])
            if not (known and there[0] and there[1]):
                with pytest.raises(EmotraceError, match=r"unknown|selection is empty"):
                    view.where(**wanted)
                break
            view, done = view.where(**wanted), done + 1
        rows, left, _ = literal(stored, whole, asked(chain)[:done])
        assert len(json.loads(view.selection)) == done
        assert view.tokens.to_dict("list") == stored.tokens.iloc[rows].to_dict("list")
        assert set(view.variables) == set(left)
        for name, values in left.items():
            x = view.sel(name)
            assert x.shape == values.shape
            assert x.values.tobytes() == np.ascontiguousarray(values).tobytes()


def test_a_view_selects_further_by_what_its_labels_were(both):
    stored, _, whole = both
    view = stored.where(dim=[1, 6], head=1, emotion="fear").where(position="last")
    rows = np.flatnonzero((stored.tokens.emotion == "fear") & (stored.tokens.position_from_end == -1))
    assert view.sel(layer=3, sublayer="resid_post", dim=6).values.tolist() == whole["residual"][2, 1, rows, 6].tolist()
    assert view.sel("z", layer=1, head=1).values.tolist() == whole["z"][1, rows, 1].tolist()
    assert view.z["head"].values.tolist() == [1]
    assert view.residual["dim"].values.tolist() == [1, 6]
    with pytest.raises(EmotraceError, match="unknown head 0"):
        view.sel("z", head=0)
    with pytest.raises(EmotraceError, match="unknown emotion 'anger'"):
        view.where(emotion="anger")
    assert len(stored) == 21  # what it was made of stays as it was
    assert stored.z["head"].values.tolist() == [0, 1]


def test_a_variable_without_the_value_is_left_out(both):
    stored, _, _ = both
    assert stored.where(layer=3).variables == ("residual",)
    assert stored.where(layer=[1, 3]).z["layer"].values.tolist() == [1]
    assert stored.where(sublayer="resid_mid").variables == ("residual", "z")
    assert stored.where(layer=0).dataset("z").sizes["layer"] == 1


def test_what_nothing_has_is_refused(both):
    stored, _, _ = both
    for labels, message in [
        ({"layer": 2}, "unknown layer 2.*0, 1, 3"),
        ({"emotoin": "fear"}, "unknown label 'emotoin'.*Did you mean 'emotion'"),
        ({"sublayer": "resid_pots"}, "Did you mean 'resid_post'"),
        ({"unit": 3}, "unknown label 'unit'"),
        ({"n": 0, "key": "prompt_1"}, "the selection is empty: no row has n=0, key='prompt_1'"),
        ({"layer": 3, "head": 0, "sublayer": []}, "no sublayer is in"),
    ]:
        with pytest.raises(EmotraceError, match=message):
            stored.where(**labels)


def test_a_view_says_what_it_was_narrowed_to(both):
    stored, memory, _ = both
    keys = ["prompt_3", "prompt_1"]
    view = stored.where(emotion=["fear"], layer=slice(0, 1)).where(position=(0, 3), key=np.array(keys))
    assert json.loads(view.attrs["selection"]) == [
        {"emotion": ["fear"], "layer": {"slice": [0, 1]}},
        {"position": {"span": [0, 3]}, "key": keys},
    ]
    x = view.sel(sublayer="resid_mid")
    assert json.loads(x.attrs["selection"])[2:] == [{"sublayer": "resid_mid"}]
    assert x.attrs["plan_digest"] == stored.attrs["plan_digest"]
    assert x.attrs["source"] == str(stored.path)
    assert "selection" not in stored.attrs
    assert stored.residual.attrs["selection"] == memory.residual.attrs["selection"] == "[]"
    assert f"of {len(stored)} in the store, where" in repr(view)
    assert "layer 0–1" not in repr(view)
    assert "residual [layer: 2" in repr(view)
    many = memory.where(position=list(range(3)) * 20)
    (said,) = json.loads(many.selection)
    assert said["position"]["values"] == 60


def test_values_are_those_asked_for_whatever_holds_them(both):
    for acts in both[:2]:
        for values, record in [
            (iter(["anger", "fear"]), ["anger", "fear"]),
            (("anger", "fear"), ["anger", "fear"]),
            (np.array("fear"), "fear"),
        ]:
            view = acts.where(emotion=values)
            assert view.tokens.emotion.isin(np.atleast_1d(record)).sum() == len(view) > 0
            assert json.loads(view.selection) == [{"emotion": record}]
        assert json.loads(acts.where(layer=iter((0, 1))).selection) == [{"layer": [0, 1]}]
        x = acts.sel(layer=(0, 1), position=(0, 3))
        assert json.loads(x.attrs["selection"]) == [{"layer": [0, 1], "position": {"span": [0, 3]}}]


def test_activations_go_to_other_processes(both):
    for acts in both[:2]:
        for there in (acts, acts.where(emotion="fear", layer=[0, 1])):
            again = pickle.loads(pickle.dumps(there))
            assert again.tokens.to_dict("list") == there.tokens.to_dict("list")
            assert again.z.values.tobytes() == there.z.values.tobytes()
            assert again.selection == there.selection


def test_cells_that_do_not_exist_stay_refused(make, tmp_path):
    plan = make.plan(variables=[make.residual(absent=((1, "resid_mid"),))])
    whole = make.arrays(plan)
    make.write(tmp_path / "a", plan, whole)
    acts = store.open_activations(tmp_path / "a")
    with pytest.raises(EmotraceError, match="no layer=1, sublayer='resid_mid'"):
        acts.where(layer=[0, 1]).residual.values  # noqa: B018
    with pytest.raises(EmotraceError, match="no layer=1, sublayer='resid_mid'"):
        acts.where(layer=[0, 1]).sel(sublayer="resid_mid")
    left = acts.where(layer=[0, 3]).residual
    assert left.values.tobytes() == whole["residual"][[0, 2]].tobytes()


def test_views_of_a_store_that_is_being_written(make, tmp_path):
    plan = make.plan()
    whole = make.arrays(plan)
    make.write(tmp_path / "a", plan, whole, groups={1, 3})
    acts = store.open_activations(tmp_path / "a")
    view = acts.where(emotion="fear", layer=1)
    rows = [r for g in (1, 3) for r in range(plan.groups[g].start, plan.groups[g].stop)]
    rows = [r for r in rows if plan.rows.labels["emotion"][r] == "fear"]
    assert view.z.values.tobytes() == whole["z"][1:2, rows].tobytes()
    store.create_or_resume(tmp_path / "b", plan).close()
    with pytest.raises(EmotraceError, match="no committed rows yet"):
        store.open_activations(tmp_path / "b").where(layer=1)
