"""Steered: what edits and opening a model cost in the work that a study spends its time in; questions of ``spine.py``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
import transformers

import emotrace as et
from emotrace.disk import cache
from emotrace.forwards import beginnings
from emotrace.traced import alike as by_hooks
from experiments.benchmarks import work
from experiments.benchmarks.setting import Answer, Setting
from experiments.benchmarks.timing import ratio


def _steered(setting: Setting, pair: work.Pair) -> tuple[Callable[[bool], list], Callable[[], Any], str]:
    """Generation through emotrace with and without edits, and transformers' own."""
    tokens, new = (12, 8) if setting.quick else (24, 32)
    ids = work.random_ids(32, tokens, seed=1)
    n_layers, width = pair.model.sites.n_layers, pair.model.sites.d_model
    layers = range(n_layers // 3, n_layers // 3 + min(4, n_layers - n_layers // 3))
    vector = torch.randn(width, generator=torch.Generator().manual_seed(2)).numpy()
    edits = [et.Add("resid_post", layers=layers, vector=vector, strength=0.1 * width**0.5, scale="rms")]
    inputs = work.padded(ids)

    def ours(steer: bool) -> list:
        return et.generate(
            pair.model, ids, edits if steer else (), max_new_tokens=new, min_new_tokens=new, progress=False
        )

    def theirs() -> Any:
        with torch.no_grad():
            return pair.twin.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)

    assert [row["token_ids"] for row in ours(False)] == theirs()[:, tokens:].tolist(), "plain generation differs"
    return ours, theirs, f"batch 32, {tokens} + {new} tokens, rms Add in {len(layers)} layers"


def steering(setting: Setting) -> list[Answer]:
    """Steered against plain generation: through emotrace, and against transformers' own."""
    found = []
    for name, pair in (("79 M", work.llama(setting.large)), ("shipped size", work.shipped())):
        ours, theirs, note = _steered(setting, pair)
        for against, other in (("plain", lambda ours=ours: ours(False)), ("hf.generate", theirs)):
            result = ratio(lambda ours=ours: ours(True), other, setting.repetitions)
            target = 1.10 if name == "79 M" else None
            found.append(Answer(f"steered generation / {against} ({name})", result, target, note))
    return found


def opening(setting: Setting) -> list[Answer]:
    """The shipped model opened again, its proofs kept, against the first time, and against transformers; CPU seconds."""
    with mock.patch.dict(os.environ, {cache.VARIABLE: str(setting.fresh("cache"))}):

        def first() -> object:
            setting.fresh("cache")
            beginnings._TWINS.clear()
            return et.load(work.SHIPPED)

        def bare() -> object:
            tokenizer = transformers.AutoTokenizer.from_pretrained(work.SHIPPED)
            return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(
                work.SHIPPED, dtype=torch.float32
            ).eval()

        found = []
        for name, other in (("for the first time", first), ("transformers, model and tokenizer", bare)):
            et.load(work.SHIPPED)
            result = ratio(lambda: et.load(work.SHIPPED), other, setting.repetitions, clock=time.process_time)
            found.append(Answer(f"et.load again / {name}", result, None, "shipped model; imports not counted"))
    return found


def alike(setting: Setting) -> list[Answer]:
    """Steered generation whose edits the modules carry out, against the same by a trace that waits at each place; CPU seconds."""
    pair = work.llama(work.QUICK if setting.quick else work.SMOL)
    n_layers, width = pair.model.sites.n_layers, pair.model.sites.d_model
    vector = torch.randn(width, generator=torch.Generator().manual_seed(2)).numpy()
    edits = [et.Add("resid_post", layers=range(n_layers), vector=vector, strength=0.02)]
    found, by_modules = [], by_hooks.whole

    def replies(n: int, whole: Callable[..., bool]) -> list:
        by_hooks.whole = whole
        try:
            ids, new = work.random_ids(n, 24, seed=1), 8 if setting.quick else 24
            rows = et.generate(pair.model, ids, edits, max_new_tokens=new, min_new_tokens=new, progress=False)
            return [row["token_ids"] for row in rows]
        finally:
            by_hooks.whole = by_modules

    for n in (1, 8):
        both = partial(replies, n, by_modules), partial(replies, n, lambda *_: False)
        assert both[0]() == both[1](), "the replies differ"
        result = ratio(*both, setting.repetitions, clock=time.process_time)
        note = f"{n} × (24 + 24 tokens), SmolLM2-135M's shape, Add in {n_layers} layers; same tokens"
        found.append(Answer(f"edits by the modules / by a trace (batch {n})", result, None, note))
    return found
