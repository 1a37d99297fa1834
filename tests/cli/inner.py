"""What the tests of the commands share."""

import emotrace as et
from emotrace.datasets import read_jsonl, sev
from tests.test_cli import called

QUICK = ("--ks", "1,2", "--draws", 2)


def refused(monkeypatch, capsys, *args):
    """The one line that a command ends with where it refuses; transformers may have shown a bar before."""
    status, said, error = called(monkeypatch, capsys, *args)
    *before, line = error.splitlines()
    assert (status, said) == (2, "")
    assert line.startswith("error: ")
    assert not [other for other in before if other.strip() and "it/s]" not in other]
    return line


def accepted(folder):
    return [row["key"] for _, row in read_jsonl(folder / "judged.jsonl") if row["verdict"]["match"]]


def python(folder):
    """Model, prompts, directions and accepted keys, as the commands read them."""
    lm = et.load(folder / "model")
    return lm, sev(folder / "sev.jsonl", limit=2), et.directions.load(folder / "dirs"), accepted(folder)


def refused_with(place, monkeypatch, capsys, args):
    """The one line for arguments, ``@model`` and ``@common`` being flags and ``@/`` the folder; no ``@/x`` is left."""
    folder, common = place[:2]
    words = {"@model": ("--model", folder / "model"), "@common": common}
    given = [w for a in args for w in words.get(a, (str(a).replace("@", str(folder), 1),))]
    line = refused(monkeypatch, capsys, *given)
    assert not (folder / "x").exists()
    return line
