"""The source of a function is looked up once, and what a request ships is what nnsight ships without that."""

import functools
import inspect
import linecache

import pytest
from nnsight.intervention import serialization

import emotrace.model  # noqa: F401  # since then functions of `emotrace.traced` ship as their source
from emotrace.remote import sources
from emotrace.traced import kept, runs

BODY = "def added(x, by={by}):\n    return x + by  # {by}\n"


@pytest.fixture
def asked(monkeypatch):
    """Of which functions the source was looked up, and nnsight without memory."""
    found, real = [], inspect.getsourcelines

    def getsourcelines(function):
        found.append(function.__name__)
        return real(function)

    monkeypatch.setattr(inspect, "getsourcelines", getsourcelines)
    monkeypatch.setattr(serialization, "inspect", sources.Remembering())
    return found


@pytest.fixture
def literal(monkeypatch):
    """Bytes as nnsight itself makes them."""

    def packed(function):
        with monkeypatch.context() as patch:
            patch.setattr(serialization, "inspect", inspect)
            patch.setattr(
                serialization,
                "_function_referenced_names",
                serialization._function_referenced_names.__wrapped__,  # type: ignore[attr-defined]
            )
            return serialization.dumps(function)

    return packed


@pytest.mark.parametrize("function", [runs.capture, runs.generate, kept.generate])
def test_a_function_is_looked_up_once_and_ships_as_before(asked, literal, function):
    first = serialization.dumps(function)
    assert function.__name__ in asked
    asked.clear()
    assert serialization.dumps(function) == first
    assert asked == []
    assert literal(function) == first
    assert asked


def made(file, by):
    """A function of a file that holds it alone."""
    text = BODY.format(by=by)
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    scope = {"__name__": "__main__"}
    exec(compile(text, file, "exec"), scope)
    return scope["added"]


def test_equal_code_of_another_file_ships_as_it_stands_there(asked, literal):
    one, other = (made(f"<cell {by}>", by) for by in (1, 2))
    assert one.__code__ == other.__code__
    for function, by in ((one, 1), (other, 2)):
        blob = serialization.dumps(function)
        assert blob == literal(function)
        assert f"# {by}".encode() in blob
        assert serialization.loads(blob)(1) == 1 + by


def test_lambdas_and_wrapped_functions(asked, literal):
    pair = lambda x: x + 1, lambda x: x + 2
    wrapped = functools.wraps(pair[0])(lambda x: 2 * x)
    for function in (*pair, wrapped):
        assert serialization.dumps(function) == literal(function)
    assert [serialization.loads(serialization.dumps(f))(1) for f in pair] == [2, 3]
