"""Two traces in one session, ``tracer.stop()`` in the first: what a server makes of it (see ``nnsight-two-traces.md``)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nnsight
import torch
from nnsight import TransformersModel

from emotrace.testing import tiny
from emotrace.testing.ndif import loopback, mint

NAME = "org/tiny-llama"


def two_traces(model: Any, stop: bool, **where: Any) -> list[torch.Tensor]:
    """A value of each of two traces of one session."""
    with model.session(**where):
        with model.trace([[5, 6, 7]]) as tracer:
            first = nnsight.save(model.model.layers[0].output.clone())
            if stop:
                tracer.stop()
        with model.trace([[8, 9, 10, 11]]):
            second = nnsight.save(model.model.layers[1].output.clone())
    return [first, second]


def outcome(here: Any, there: Any, stop: bool) -> str:
    """What came of it on a server."""
    want = two_traces(here, stop)
    try:
        got = two_traces(there, stop, remote=True)
    except Exception as error:  # whatever words it is told in
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    same = len(got) == len(want) and all(map(torch.equal, got, want))
    return "equal to local" if same else "other values than local"


def main() -> None:
    """Print what came of it for both kinds of key."""
    with tempfile.TemporaryDirectory() as folder:
        directory = tiny.save("llama", Path(folder) / "llama")
        load = {"task": "text-generation", "tokenizer": tiny.tiny_tokenizer()}
        here, there = (TransformersModel(str(directory), dispatch=d, **load) for d in (True, False))
        mint({NAME: directory})
        nnsight.CONFIG.APP.REMOTE_LOGGING = False
        with loopback({NAME: directory}) as server:
            nnsight.CONFIG.API.HOST = server.url
            for kind, key in (("ordinary", server.key), ("trusted", server.trusted_key)):
                nnsight.CONFIG.API.APIKEY = key
                for stop, words in ((False, "no stop"), (True, "stop in the first trace")):
                    print(f"{kind} key, {words}: {outcome(here, there, stop)}")


if __name__ == "__main__":
    main()
