"""Groups of flags: one parameter of a command, one flag for each field on its command line."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from emotrace.cli.groups import Answering, Decoding, grouped
from emotrace.labels import EmotraceError


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where to cut, and how often."""

    at: Annotated[int, typer.Option(min=1, help="where")]
    times: Annotated[int, typer.Option("--often")] = 2


OFTEN = Cut(at=5, times=7)


@grouped
def command(*, name: Annotated[str, typer.Argument()], cut: Cut, loud: bool = False) -> str:
    return f"{name} {cut.at} {cut.times} {loud}"


@grouped
def defaulted(*, cut: Cut = OFTEN) -> str:
    return f"{cut.at} {cut.times}"


def run(function, *args):
    app = typer.Typer()
    app.command()(lambda: None)
    app.command("it")(function)
    return CliRunner().invoke(app, ["it", *args], standalone_mode=False)


def test_fields_are_flags_in_place_of_their_group():
    assert [*inspect.signature(command).parameters] == ["name", "at", "times", "loud"]
    assert run(command, "a", "--at", "3", "--often", "4", "--loud").return_value == "a 3 4 True"
    assert run(command, "a", "--at", "3").return_value == "a 3 2 False"
    assert "Missing parameter: at" in str(run(command, "a").exception)
    assert "greater than or equal to 1" in str(run(command, "a", "--at", "0").exception)


def test_a_group_with_a_default_gives_its_flags_their_defaults():
    assert run(defaulted).return_value == "5 7"
    assert run(defaulted, "--at", "1").return_value == "1 7"


def test_the_function_is_called_by_its_flags():
    assert command(name="a", at=1) == "a 1 2 False"
    with pytest.raises(TypeError, match="'at'"):
        command(name="a")
    with pytest.raises(TypeError, match="'wrong'"):
        command(name="a", at=1, wrong=2)


def test_two_flags_of_one_name_are_refused():
    def twice(*, cut: Cut, at: int = 1) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'at'"):
        grouped(twice)


def test_decoding_gives_what_sampling_needs_and_nothing_else():
    assert Decoding().options == {"max_new_tokens": 60, "do_sample": False}
    drawn = Decoding(sample=True, temperature=0.5, top_k=3).options
    assert drawn == {"max_new_tokens": 60, "do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": 3}
    for wrong, said in (({"top_k": 3}, "need --sample"), ({"sample": True, "temperature": 0.0}, "--temperature 0.0"),
                        ({"temperature": float("nan")}, "--temperature nan")):  # fmt: skip
        with pytest.raises(EmotraceError, match=said):
            _ = Decoding(**wrong).options


@grouped
def answered(*, answering: Answering) -> str:
    return f"{answering.batch_size!r}"


def test_a_batch_has_so_many_rows_or_what_fits():
    found = [run(answered, *args).return_value for args in ([], ["--batch-size", "4"], ["--batch-size", "auto"])]
    assert found == ["32", "4", "'auto'"]
    for wrong in ("0", "all", "2.5"):
        assert "--batch-size" in str(run(answered, "--batch-size", wrong).exception)
