"""What a planned function says before it works, and that it is a function like any other."""

from __future__ import annotations

import inspect
import pickle
import pydoc
import typing
from dataclasses import replace
from pathlib import Path

import pytest

import emotrace as et
from emotrace import arguments
from emotrace.labels import EmotraceError
from emotrace.planned import DryRows, Steps, planned
from emotrace.signatures import typed
from tests.helpers import loaded

LOG: list[str] = []
IDS = [[11, 12, 13]]
PUBLIC = {
    "capture": ("DryRows", "Activations"),
    "generate": ("DryReplies", "list[Row]"),
    "discovery.scores": ("DryScores", "xr.Dataset"),
    "attribution.neuron_contributions": ("DryRows", "xr.Dataset"),
    "attribution.head_contributions": ("DryRows", "xr.Dataset"),
    "attribution.sublayer_influence": ("DryPasses", "xr.Dataset"),
    "attribution.ablation_curve": ("DryReruns", "xr.Dataset"),
    "attribution.enhancement_curve": ("DryReruns", "xr.Dataset"),
    "circuits.difference_vectors": ("DryRows", "xr.Dataset"),
    "circuits.discover": ("DryRows", "Circuit"),
    "extraction.answer_vectors": ("DryRows", "xr.DataArray"),
    "extraction.text_vectors": ("DryRows", "TextVectors"),
    "prompt_tuning.tune_all": ("pd.DataFrame", "pd.DataFrame"),
}


@planned
@typed
def doubled(n: int, *, factor: float = 2.0) -> Steps[str, float]:
    """So many times the factor."""
    arguments.whole("n", n, 1)
    LOG.append("checked")
    try:
        yield lambda: f"{n} × {factor}"
        LOG.append("worked")
        return n * factor
    finally:
        LOG.append("closed")


@pytest.fixture(autouse=True)
def _empty() -> None:
    LOG.clear()


def test_a_call_works_and_a_plan_says_what_it_would_do():
    assert doubled(3) == 6.0
    assert LOG == ["checked", "worked", "closed"]
    LOG.clear()
    assert doubled.plan(3, factor=1.5) == "3 × 1.5"
    assert LOG == ["checked", "closed"]


def test_a_run_does_not_pay_for_what_only_a_plan_says():
    @planned
    def costly() -> Steps[int, str]:
        yield lambda: 1 // 0
        return "done"

    assert costly() == "done"
    with pytest.raises(ZeroDivisionError):
        costly.plan()


@pytest.mark.parametrize("call", [doubled, doubled.plan], ids=["run", "plan"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n": 1.5}, r"^doubled\(n=1.5\): a whole number is due"),
        ({"n": 0}, "^n=0: at least 1"),
        ({"n": 1, "factor": "a"}, r"^doubled\(factor='a'\)"),
    ],
)
def test_arguments_are_checked_before_anything_else_for_both(call, given, words):
    with pytest.raises(EmotraceError, match=words):
        call(**given)
    assert LOG == []


@pytest.mark.parametrize("call", [doubled, doubled.plan], ids=["run", "plan"])
def test_an_unknown_argument_is_pythons_own_error(call):
    with pytest.raises(TypeError, match="'factors'"):
        call(1, factors=2)


def test_the_flag_of_old_scripts_is_answered_with_a_warning():
    old = typing.cast("typing.Any", doubled)
    with pytest.warns(FutureWarning, match=r"doubled\(dry_run=True\) is now doubled.plan") as caught:
        assert old(3, dry_run=True) == "3 × 2.0"
    assert caught[0].filename == __file__
    with pytest.warns(FutureWarning, match="doubled.plan"):
        assert old(3, dry_run=False) == 6.0
    with pytest.raises(EmotraceError, match="dry_run='no': True or False is due"):
        old(3, dry_run="no")


def test_what_a_body_raises_is_what_a_caller_gets():
    @planned
    def broken() -> Steps[str, str]:
        yield lambda: "said"
        raise KeyError("after")

    assert broken.plan() == "said"
    with pytest.raises(KeyError, match="after"):
        broken()


def test_a_body_that_says_twice_is_a_mistake_in_the_code():
    @planned
    def twice() -> Steps[str, str]:
        yield lambda: "a"
        yield lambda: "b"
        return "c"

    with pytest.raises(AssertionError, match="twice"):
        twice()


def test_it_goes_by_name_to_other_processes():
    assert pickle.loads(pickle.dumps(doubled)) is doubled
    assert pickle.loads(pickle.dumps(doubled.plan)) is doubled.plan
    assert pickle.loads(pickle.dumps(et.capture)) is et.capture


def test_signature_help_and_hints_name_what_comes_back():
    assert str(inspect.signature(doubled)) == "(n: 'int', *, factor: 'float' = 2.0) -> 'float'"
    assert str(inspect.signature(doubled.plan)).endswith("-> 'str'")
    assert typing.get_type_hints(doubled)["return"] is float
    assert typing.get_type_hints(doubled.plan)["return"] is str
    assert "So many times the factor." in pydoc.render_doc(doubled)
    assert "`doubled` would do" in pydoc.render_doc(doubled.plan)
    assert (doubled.plan.__name__, doubled.plan.__module__) == ("plan", __name__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_function_with_a_plan_says_both_types_and_tells_of_the_plan(name):
    room, _, function = name.rpartition(".")
    found = getattr(getattr(et, room) if room else et, function)
    assert (inspect.signature(found.plan).return_annotation, inspect.signature(found).return_annotation) == PUBLIC[name]
    assert f"{function}.plan(…)" in found.__doc__
    assert "dry_run" not in inspect.signature(found).parameters


def test_no_public_function_has_the_flag():
    source = "".join(
        p.read_text(encoding="utf-8") for p in Path(et.__file__).parent.rglob("*.py") if p.parent.name != "cli"
    )
    assert "dry_run: bool" not in source


def test_capture_under_its_old_flag_makes_no_file(tmp_path):
    with pytest.warns(FutureWarning, match="capture.plan"):
        dry = et.capture(loaded(), IDS, "resid_post", out=tmp_path / "a.zarr", dry_run=True)  # pyright: ignore[reportCallIssue]
    plan = et.capture.plan(loaded(), IDS, "resid_post", out=tmp_path / "a.zarr")
    assert isinstance(dry, DryRows)
    assert replace(dry, free_disk=0) == replace(plan, free_disk=0)  # others write on that disk
    assert (dry.rows, dry.prompts, dry.tokens) == (1, 1, 3)
    assert not any(tmp_path.iterdir())
