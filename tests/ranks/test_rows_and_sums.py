"""Replies, verdicts and sums of ranks, also of ones that are killed, are those of one process, to the byte."""

import json
import os
import signal
import sys

import numpy as np
import pytest

import emotrace as et
from emotrace.datasets import Prompt, Prompts
from emotrace.forwards import sums as sums_
from emotrace.judges import rows as rows_
from emotrace.labels import EmotraceError
from emotrace.ranks import taking
from emotrace.runlog import Log
from tests.helpers import loaded

IDS = [tuple(10 + (i * 7 + j) % 140 for j in range(4 + i % 5)) for i in range(70)]
MANY = Prompts(
    Prompt(f"p{i}", token_ids=ids, labels={"emotion": ("anger", "fear", "disgust")[i % 3]}) for i, ids in enumerate(IDS)
)
PROMPTS = MANY[:26]


def files(path):
    return {p.relative_to(path).as_posix(): p.is_file() and p.read_bytes() for p in path.rglob("*")}


def ranks(work, of=3, dies=None):
    """Exit codes of processes that do ``work(i)``; one of them is killed when it is about to write its second piece.

    It begins first, so that the others have not taken its pieces.
    """
    ended = {}
    if dies is not None:
        ended[dies] = end(begin(work, dies, of, dying))
    children = {index: begin(work, index, of) for index in range(of) if index != dies}
    ended |= {index: end(child) for index, child in children.items()}
    return [ended[index] for index in range(of)]


def begin(work, index, of, before=lambda: None):
    child = os.fork()
    if not child:
        try:
            before()
            with taking(index, of):
                work(index)
        except BaseException as error:
            print(type(error), error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child


def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dying():
    from emotrace.disk import Folder

    put, pieces = Folder.put_new, [0]

    def killed(self, name, data):
        pieces[0] += name[0].isdigit() and "/" not in name
        if pieces[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return put(self, name, data)

    Folder.put_new = killed


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3}])
def test_replies(tmp_path, options):
    model = loaded()

    def replies(out):
        return et.generate(model, PROMPTS, max_new_tokens=4, batch_size=3, out=out, progress=False, **options)

    rows = replies(tmp_path / "one.jsonl")
    out = tmp_path / "shared" / "rows.jsonl"
    assert ranks(lambda _: replies(out) == rows or os._exit(3), dies=1) == [0, -signal.SIGKILL, 0]
    assert files(out.parent) == {"rows.jsonl": (tmp_path / "one.jsonl").read_bytes()}
    assert ranks(lambda _: replies(out) == rows or os._exit(3), of=2) == [0, 0]  # nothing is left to do
    assert files(out.parent) == {"rows.jsonl": (tmp_path / "one.jsonl").read_bytes()}
    with taking(0, 2), pytest.raises(EmotraceError, match="max_new_tokens"):
        et.generate(model, PROMPTS, max_new_tokens=5, batch_size=3, out=out, progress=False, **options)


def test_verdicts(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_, "PIECE", 3)
    judge = et.judges.make("lexicon")
    texts = ("I am furious", "I am so afraid", "The bus came")
    rows = [{"key": str(i), "method": "none", "gen_text": texts[i % 3], "emotion": "anger"} for i in range(22)]

    def verdicts(path):
        with Log(path) as log:
            return et.judges.judge_rows(rows, judge, log=log, progress=False)

    judged = verdicts(tmp_path / "one")
    out = tmp_path / "shared" / "rows"
    assert ranks(lambda _: verdicts(out) == judged or os._exit(3), dies=2) == [0, 0, -signal.SIGKILL]
    assert files(out.parent) == {"rows": (tmp_path / "one").read_bytes()}


def test_sums(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 2, 5)) * 10.0 ** np.arange(40)[:, None, None] % 7
    pieces = [range(at, min(at + 3, 40)) for at in range(0, 40, 3)]

    def summed(out):
        sums = sums_.Sums(out, {"of": "values"})
        for rows in sums.left(pieces):
            for row in rows:  # several times in a piece
                sums.add("first", values[row, 0])
                sums.add("second", values[row, 1])
            sums.commit(rows.stop)
        return sums.totals

    one = summed(tmp_path / "one")
    out = tmp_path / "shared"

    def same(_):
        found = summed(out)
        return all(found[name].tobytes() == one[name].tobytes() for name in one) or os._exit(3)

    assert ranks(same, dies=0) == [-signal.SIGKILL, 0, 0]
    assert files(out) == files(tmp_path / "one")
    assert ranks(same, of=1) == [0]


def test_scores_of_heads(tmp_path):
    from tests.attribution.test_heads import random_directions

    model = loaded()
    directions = random_directions(model)

    def scores(out):
        return et.attribution.head_contributions(model, MANY, directions, out=out, progress=False)

    from emotrace.forwards import streams

    streams.CHUNK_BYTES, before = 1, streams.CHUNK_BYTES  # pieces of 32 prompts
    try:
        scores(tmp_path / "one")
        assert ranks(lambda _: scores(tmp_path / "shared"), of=2) == [0, 0]
    finally:
        streams.CHUNK_BYTES = before
    one, shared = files(tmp_path / "one"), files(tmp_path / "shared")
    assert one.keys() == shared.keys()
    assert all(one[name] == shared[name] for name in one if name.endswith("safetensors"))
    assert json.loads(one["sums.json"]) == json.loads(shared["sums.json"])
