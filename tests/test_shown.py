"""What terminals and notebooks print: sizes and names, no vectors, no whole sentences; bars; errors of one line."""

import importlib
import pkgutil
from dataclasses import dataclass

import numpy as np
import pytest
import xarray as xr

import emotrace as et
from emotrace import judges, shown
from emotrace.discovery import Projection
from emotrace.edits import edits_label
from emotrace.labels import EmotraceError

VECTORS = xr.DataArray(np.full((2, 64), 0.123), dims=("emotion", "dim"), coords={"emotion": ["fear", "joy"]})


def test_progress_goes_to_stderr_or_nowhere(capsys):
    assert list(shown.progress([1, 2], desc="capture", unit="row")) == [1, 2]
    assert list(shown.progress([1, 2], enabled=False)) == [1, 2]
    out, err = capsys.readouterr()
    assert "capture" in err
    assert not out


def test_where_there_is_nothing_to_do_there_is_no_bar(capsys):
    with shown.progress(total=0, desc="circuit", unit="reply"):
        pass
    assert list(shown.progress([], desc="circuit")) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (et.Add("resid_post", range(2, 5), vector=VECTORS, strength=1.5, scale="rms"),
         "Add('resid_post', layers=(2, 3, 4), vector=[emotion 2, dim 64] float64, strength=1.5, scale='rms')"),
        (et.Add("resid_post", range(30), vector=np.zeros(64, np.float32)),
         "Add('resid_post', layers=[0…29], vector=[64] float32)"),
        (et.Ablate("z", [1], heads=[0], positions="last"), "Ablate('z', layers=(1,), positions='last', heads=(0,))"),
        (Projection(VECTORS, layer=4, emotion="fear"),
         "Projection(directions=[emotion 2, dim 64] float64, layer=4, site='resid_post', emotion='fear', label='emotion')"),
    ],
)  # fmt: skip
def test_vectors_are_printed_as_their_sizes(value, said):
    assert repr(value) == said


def test_prompts_are_printed_without_their_sentences():
    sentence = "The train was cancelled, and nobody said a word about it until the evening."
    prompts = et.datasets.Prompts.of(
        [{"key": f"p{i}", "text": sentence, "emotion": "fear", "event": sentence} for i in range(9)]
    )
    assert repr(prompts[0]) == f"Prompt('p0'; text, emotion=fear, event={sentence[:31]}…)"
    assert "p0, p1, p2, p3, p4, p5, … (9 different)" in prompts._repr_html_()
    assert sentence not in prompts._repr_html_()
    assert "&lt;b&gt;" in shown.html("<b>", {"<b>": "<b>"})


def test_replies_are_labelled_by_their_edits():
    steps = [et.Add("resid_post", [i], vector=VECTORS, strength=0.5) for i in (2, 3, 4, 7)]
    assert edits_label(steps) == "add resid_post 2-4,7 x0.5"
    assert edits_label([*steps[:1], et.Ablate("neuron", [1])]) == "add resid_post 2 x0.5 + ablate neuron 1"
    assert edits_label([]) == "none"


def test_a_notebook_prints_an_error_in_one_line():
    error = EmotraceError("layer 9 is not there;\n layers are 0 to 5.")
    assert error._render_traceback_() == ["EmotraceError: layer 9 is not there; layers are 0 to 5."]


def test_dir_of_a_room_lists_its_public_names():
    for found in pkgutil.iter_modules(et.__path__, "emotrace."):
        room = importlib.import_module(found.name) if found.ispkg else None
        if room is None or not getattr(room, "__all__", None):
            continue
        names = {name for name in dir(room) if not name.startswith("_")}
        assert names == set(room.__all__), found.name


@dataclass(frozen=True)
class Held:
    name: str
    weights: np.ndarray
    card: dict
    choices: tuple

    __repr__ = shown.brief


def test_what_holds_arrays_and_mappings_prints_their_sizes_in_a_line():
    held = Held("x" * 99, np.zeros((3, 4)), {f"k{i}": list(range(999)) for i in range(9)}, tuple("abcdefg"))
    assert repr(held) == (
        f"Held(name='{'x' * 31}…', weights=[3, 4] float64, card={{k0, k1, k2, k3, … 9 in all}}, "
        "choices=('a', 'b', 'c', 'd', … 7 in all))"
    )


def test_a_fitted_judge_prints_no_weights():
    table = [{"text": f"{word} {i}", "mood": mood} for mood, word in (("A", "one"), ("B", "two")) for i in range(4)]
    judge = judges.fit(table, label="mood", name="short", least=1, folds=2)
    assert repr(judge).startswith("FittedJudge(name='fitted:short', choices=('A', 'B')")
    assert len(repr(judge)) < 500
    assert "\n" not in repr(judge)


def test_an_edit_is_a_table_in_a_notebook_without_its_vector():
    table = et.Add("resid_post", layers=range(9), vector=VECTORS.sel(emotion="fear"), strength=2.0)._repr_html_()
    assert "<p>Add</p>" in table
    assert "[dim 64] float64" in table
    assert "0.123" not in table
