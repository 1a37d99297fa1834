"""Labels stand once per prompt; every selection gives what a table with all labels in every row gives."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emotrace import store
from emotrace.labels import EmotraceError
from emotrace.store import building
from emotrace.store import plan as plan_
from emotrace.store import table as table_
from emotrace.store.activations import Activations


@pytest.fixture
def old(monkeypatch):
    """Stores made in this context are laid out as before: every column in every row."""

    def use():
        monkeypatch.setattr(plan_, "FORMAT", 1)

    return use


LABELS = [
    {"emotion": "anger", "n": 1, "share": 0.5, "held": True}, {"emotion": "fear", "n": 2, "held": False},
    {"emotion": "fear", "n": 3, "share": 1.5, "held": True}, {"emotion": "joy", "n": 1, "share": -1.0, "held": True},
    {"emotion": "", "n": 7, "share": 2.0, "held": False}, {"emotion": "fear", "n": 2, "held": True},
]  # fmt: skip
LENGTHS = (3, 5, 1, 7, 4, 6)
POSITIONS = [range(3), range(1, 5), range(1), range(0), range(4), range(2, 6)]  # one prompt without a row


def planned(make, max_rows=4):
    rows = store.Rows.of(
        [f"k{i}" for i in range(6)], [[(7 * i + t) % 5 for t in range(n)] for i, n in enumerate(LENGTHS)], [2, 3, 1, 7, 2, 4],
        POSITIONS, lambda i: f"tök{i % 4}", LABELS,
    )  # fmt: skip
    return store.Plan.make(rows, [make.residual()], {"model_id": "tiny"}, max_rows=max_rows)


@pytest.fixture(scope="module")
def twins(make, tmp_path_factory):
    """The same store laid out both ways: whole, and with two row groups missing."""
    folder, plan = tmp_path_factory.mktemp("twins"), planned(make)
    whole = make.arrays(plan)
    with pytest.MonkeyPatch.context() as patched:
        for format in (2, 1):
            patched.setattr(plan_, "FORMAT", format)
            make.write(folder / f"whole{format}", plan, whole)
            make.write(folder / f"part{format}", plan, whole, groups={0, 2})
    assert store.info(folder / "whole1")["columns"] == store.info(folder / "whole2")["columns"]
    return folder


CHOICES = {
    "emotion": ["anger", "fear", "joy", "", "sad"], "key": ["k0", "k1", "k3", "k5", "x"], "n": [1, 2, 7, 9],
    "share": [0.5, 1.5, 3.0], "held": [True, False], "prompt": [0, 2, 3, 5], "prompt_length": [2, 7, 4],
    "position": [0, 1, 4, 6], "position_from_end": [-1, 0, 1, 5], "token_id": [0, 3, 4, 9], "token_text": ["tök0", "tök3", "?"],
}  # fmt: skip


def wanted(name):
    values = st.sampled_from(CHOICES[name])
    kinds = [values, st.lists(values, min_size=1, max_size=3)]
    if isinstance(CHOICES[name][0], (int, float)) and name != "held":
        kinds.append(st.builds(slice, values, st.none()))
    if name == "position":
        kinds.append(st.sampled_from(["last", "generated", "steer", "prompt", (1, 3)]))
    return st.one_of(kinds)


selections = st.lists(st.sampled_from(sorted(CHOICES)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: wanted(name) for name in names})
)


def answer(ask):
    try:
        return ask()
    except EmotraceError as error:
        return str(error)


@settings(max_examples=2 * settings.default.max_examples)
@given(labels=selections, narrow=st.one_of(st.just({}), selections), part=st.booleans(), eager=st.booleans())
def test_every_selection_is_that_of_all_labels_in_every_row(twins, labels, narrow, part, eager):
    found = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("emotrace.store.activations.EAGER_ROWS", 100 if eager else 0)
        for format in (2, 1):
            path = twins / f"{'part' if part else 'whole'}{format}"

            def ask(path=path):
                acts = store.open_activations(path)
                acts = acts.where(**narrow) if narrow else acts
                x = acts.sel(layer=1, sublayer="resid_post", **labels)
                return x.values.tolist(), {
                    n: (c.dtype.str, c.values.tolist()) for n, c in x.coords.items() if c.dims == ("token",)
                }

            got = answer(ask)
            found.append(got.replace(str(path), "") if isinstance(got, str) else repr(got))
    assert found[0] == found[1]


def test_tokens_columns_and_kinds_are_those_of_all_labels_in_every_row(twins):
    for name in ("whole", "part"):
        new, old = (store.open_activations(twins / f"{name}{format}") for format in (2, 1))
        assert new.tokens.equals(old.tokens)
        assert new.tokens.dtypes.equals(old.tokens.dtypes)
        assert repr(new).replace("2)", "1)") == repr(old)
        assert store.ls(twins / f"{name}2", by="emotion").equals(store.ls(twins / f"{name}1", by="emotion"))


def test_ten_rows_read_the_chunks_that_they_lie_in_and_no_other(make, tmp_path, monkeypatch):
    for module in (table_, building):
        monkeypatch.setattr(module, "CHUNK_ROWS", 8)
    monkeypatch.setattr("emotrace.store.activations.EAGER_ROWS", 0)
    plan = make.plan([5] * 20, max_rows=10)
    make.write(tmp_path / "a", plan, make.arrays(plan))
    assert len(list((tmp_path / "a/position/c").iterdir())) == 13
    for chunk in ("position/c/0", "token_id/c/12"):
        (tmp_path / "a" / chunk).unlink()
    acts = store.open_activations(tmp_path / "a")
    picked = [40, 12, 95, 13]
    x = acts.sel(layer=1, sublayer="resid_post").isel(token=picked)
    for name in ("key", "position", "token_id", "token_text", "position_from_end", "emotion", "prompt", "n"):
        assert x[name].values.tolist() == plan.rows.columns[name][picked].tolist(), name
    assert acts.sel(key="prompt_4").position.values.tolist() == [0, 1, 2, 3, 4]
    for row, name in ((3, "position"), (99, "token_id")):
        with pytest.raises(EmotraceError, match=f"{name}/c/.*missing"):
            acts.residual.isel(token=[row])[name].values  # noqa: B018


def test_a_store_laid_out_as_before_is_continued_verified_and_mended_as_it_is(make, tmp_path, old):
    plan = make.plan()
    whole = make.arrays(plan)
    old()
    make.write(tmp_path / "whole", plan, whole)
    make.write(tmp_path / "a", plan, whole, groups={1})
    assert (tmp_path / "a/emotion/c/0").is_file()
    plan_.FORMAT = 2
    make.write(tmp_path / "a", make.plan(), whole)
    assert make.files(tmp_path / "a") == make.files(tmp_path / "whole")
    (tmp_path / "a/residual/zarr.json").unlink()
    assert [d.path for d in store.repair(tmp_path / "a")] == ["residual/zarr.json"]
    assert make.files(tmp_path / "a") == make.files(tmp_path / "whole")
    (tmp_path / "a/emotion/c/0").unlink()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        make.write(tmp_path / "a", make.plan(), whole)
    assert make.files(tmp_path / "a") == make.files(tmp_path / "whole")
    assert store.open_activations(tmp_path / "a").sel(emotion="fear").emotion.values[0] == "fear"


def test_a_store_of_a_later_format_is_refused_by_name(make, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_, "FORMAT", 4)
    make.write(tmp_path / "a", plan := make.plan(), make.arrays(plan))
    with pytest.raises(EmotraceError, match="format 4; this emotrace reads formats 1 to 3"):
        store.open_activations(tmp_path / "a")


def test_labels_that_differ_inside_a_prompt_and_numbers_beyond_32_bits_are_refused(make, tmp_path):
    ids = {"prompt": [0, 0], "key": ["a", "a"], "position": [0, 1], "prompt_length": [2, 2], "token_text": ["x", "y"]}
    with pytest.raises(EmotraceError, match="emotion must be the same in all rows of a prompt"):
        store.Rows(token_id=[1, 2], labels={"emotion": ["fear", "joy"]}, **ids)
    store.Rows(token_id=[1, 2], labels={"share": [np.nan, np.nan]}, **ids)
    plan = store.Plan.make(store.Rows(token_id=[1, 1 << 31], **ids), [make.residual()], {})
    with pytest.raises(EmotraceError, match="token_id goes from 1 to 2147483648"):
        store.create_or_resume(tmp_path / "a", plan)


def test_activations_in_memory_of_any_length_have_all_labels(make, monkeypatch):
    monkeypatch.setattr("emotrace.store.activations.EAGER_ROWS", 0)
    plan = planned(make)
    acts = Activations.in_memory(plan, make.arrays(plan))
    assert acts.sel(emotion="fear").token_text.values.tolist() == acts.where(emotion="fear").tokens.token_text.tolist()
