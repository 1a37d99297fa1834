"""Family checks: what emotrace reads and changes in one model, against plain torch hooks, one prompt at a time."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from family_truth import NEW, Truth, hooked, prompts_of
from torch import Tensor

import emotrace as et
from emotrace import scoring
from emotrace.sites import LanguageModel
from emotrace.testing.hooks import replaced, watched

READ = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "z", "neuron")
CLOSE = 3e-4
"""Largest deviation that counts as rounding, relative to the largest value."""


@dataclass
class Found:
    """What was tried on a model, and how it went."""

    outcome: str = "proven"
    reason: str = ""
    sites: list[str] = field(default_factory=list)
    form: str = ""
    passed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)

    def compare(self, what: str, got: Any, want: Any, least: float = CLOSE) -> bool:
        """Whether two arrays are equal to rounding; what is not is kept."""
        got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
        if got.shape != want.shape:
            return self.say(what, f"shape {got.shape}, hooks say {want.shape}")
        if not np.isfinite(want).all() or not np.isfinite(got).all():
            return bool(np.array_equal(got, want, equal_nan=True)) or self.say(what, "not finite")
        largest = max(float(np.abs(want).max(initial=0)), 1e-30)
        off = float(np.abs(got - want).max(initial=0)) / largest
        return off <= least or self.say(what, f"off by {off:.1e} of the largest value {largest:.1e}")

    def say(self, what: str, how: str) -> bool:
        """Note something wrong, the first of its kind."""
        self.wrong.setdefault(what, how)
        return False


def plain_forward(module: Any) -> None:
    """Whether a model can be compared at all: finite logits for each token, the same twice, of attention that attends.

    Raises:
        ValueError: if not, with the reason.
        Exception: what the model says.
    """
    first, other = (torch.tensor([[start, *prompts_of()[0][1:]]]) for start in (10, 11))
    with torch.no_grad():
        one, again, moved = (
            module(input_ids=i, attention_mask=torch.ones_like(i)).logits for i in (first, first, other)
        )
    if one.shape[:2] != first.shape or not torch.isfinite(one).all():
        raise ValueError(f"its logits have shape {tuple(one.shape)}, or are not finite, for ids {tuple(first.shape)}")
    if not torch.allclose(one, again, rtol=1e-4, atol=1e-5):
        raise ValueError("two plain forwards of one prompt differ: it draws at random")
    if torch.allclose(one[:, 1:], moved[:, 1:], rtol=1e-6, atol=1e-7):
        raise ValueError("no token depends on another one: its attention needs kernels that are not here")


def check(module: Any, *, generates: bool = True) -> Found:
    """Everything on one transformers model.

    Returns:
        ``refused`` where `emotrace.load` says that it does not take the model, ``wrong`` where anything deviates from plain
        hooks or ends in another error, else ``proven``; what a function refuses by name is kept beside it.
    """
    found = Found()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = et.load(module)
        except et.EmotraceError as error:
            return Found("refused", _line(error))
        except Exception as error:  # whatever it is, a user would see a traceback
            return Found("wrong", wrong={"load": f"{type(error).__name__}: {_line(error)}"})
        found.sites, found.form = list(model.sites.names), model.sites.form
        truth = Truth(model)
        steps = [("values", _values), ("roles", _roles), ("edits", _edits)]
        if model.sites.encoder.causal and generates:
            steps += [("generation", _generation), ("perplexity", _perplexity)]
        for name, step in steps:
            before = len(found.wrong)
            with _kept(found, name):
                step(model, truth, found)
                if len(found.wrong) == before:
                    found.passed.append(name)
    found.outcome = "wrong" if found.wrong else "proven"
    return found


@contextlib.contextmanager
def _kept(found: Found, name: str) -> Iterator[None]:
    """An error becomes an entry: what emotrace refuses by name, or else something wrong."""
    try:
        yield
    except et.EmotraceError as error:
        found.refused[name] = _line(error)
    except Exception as error:  # whatever it is, a user would see a traceback
        found.say(name, f"{type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _values(model: LanguageModel, truth: Truth, found: Found) -> None:
    """Every site at every position, alone and in a padded batch, and at the last position with beginnings shared."""
    sites = model.sites
    alike: dict[tuple[int, ...], list[str]] = {}
    for site in filter(sites.has, READ):
        sizes: dict[tuple[Any, ...], list[int]] = {}
        with _kept(found, f"values of {site}"):
            for layer in sites.layers(site):
                sizes.setdefault(tuple(sites.size(site, layer).items()), []).append(layer)
        for layers in sizes.values():
            alike.setdefault(tuple(layers), []).append(site)
    want = [
        truth.values(ids, [(s, i) for layers, held in alike.items() for s in held for i in layers]) for ids in truth.ids
    ]
    for layers, held in alike.items():
        for how, size, positions in (("alone", 1, "all"), ("in a batch", 4, "all"), ("in a batch, last", 4, "last")):
            acts = et.capture(
                model, truth.ids, held, layers=layers, positions=positions, batch_size=size, progress=False
            )
            rows = slice(None) if positions == "all" else slice(-1, None)
            for site, layer in ((s, i) for s in held for i in layers):
                got = acts.sel(site) if site in ("z", "neuron") else acts.sel("residual", sublayer=site)
                one = got.sel(layer=layer).values
                right = np.concatenate([w[site, layer].numpy()[rows] for w in want])
                found.compare(f"{site} {how}", one.reshape(len(one), -1), right)


def _roles(model: LanguageModel, truth: Truth, found: Found) -> None:
    """Places are what they are called, by what only the model itself and the arithmetic of hooks say."""
    sites, ids = model.sites, truth.ids[0]
    layers = sites.layers("resid_post")
    names = [s for s in READ if sites.has(s)]
    value = truth.values(ids, [(s, i) for s in names for i in sites.layers(s)])
    states = None
    with contextlib.suppress(Exception):  # a model need not return them
        states = truth.forward(ids, output_hidden_states=True).hidden_states
    shape = (1, len(ids), sites.d_model)
    if (
        isinstance(states, (tuple, list))
        and len(states) == sites.n_layers + 1
        and all(tuple(s.shape) == shape for s in states)
    ):
        if np.allclose(states[0][0].numpy(), value["resid_post", layers[0]].numpy(), rtol=1e-4, atol=1e-5):
            states = (value["resid_pre", layers[0]][None], *states)  # a family that leaves out the embedding
        for layer in layers:
            found.compare("resid_pre is the model's own hidden state", value["resid_pre", layer], states[layer][0])
            if layer + 1 < sites.n_layers:
                found.compare(
                    "resid_post is the model's own hidden state", value["resid_post", layer], states[layer + 1][0]
                )
    for layer in layers:
        has = [n for n in names if sites.has(n, layer)]
        if {"attn_out", "mlp_out"} <= set(has):
            attn, mlp = value["attn_out", layer], value["mlp_out", layer]
            if torch.equal(attn, mlp):
                found.say("attn_out and mlp_out", f"are one tensor at layer {layer}")
            if sites.form in ("sequential", "parallel"):
                total = value["resid_pre", layer] + sites.scale * (attn + mlp)
                found.compare("the sum of a layer", total, value["resid_post", layer])
            _mixes(truth, found, layer, value)
        for site, whole in (("z", "attn_out"), ("neuron", "mlp_out")):
            if site in has and whole in has:
                _makes(truth, found, site, whole, layer, value)


def _mixes(truth: Truth, found: Found, layer: int, value: dict[Any, Tensor]) -> None:
    """What the first token's stream holds reaches later tokens through ``attn_out``, and through nothing else."""
    sites, ids = truth.sites, truth.ids[0]
    pre = sites.address("resid_pre", layer)
    new = value["resid_pre", layer].clone()
    new[0] += torch.randn(new.shape[1], generator=torch.Generator().manual_seed(2)) * new.std()
    with watched(truth.model, sites.address("attn_out", layer)) as seen, replaced(truth.model, pre, new):
        truth.forward(ids)
    moved = (seen[0].reshape(new.shape[0], -1) - value["attn_out", layer]).abs().amax(-1)
    if float(moved[1:].max()) <= CLOSE * float(value["attn_out", layer].abs().max()):
        found.say("attn_out", f"of layer {layer} takes nothing from other tokens")
    attn, mlp = sites.address("attn_out", layer), sites.address("mlp_out", layer)
    with (
        watched(truth.model, mlp) as seen,
        replaced(truth.model, pre, new),
        replaced(truth.model, attn, value["attn_out", layer]),
    ):
        truth.forward(ids)
    moved = (seen[0].reshape(new.shape[0], -1) - value["mlp_out", layer]).abs().amax(-1)
    if float(moved[1:].max()) > CLOSE * float(value["mlp_out", layer].abs().max()):
        found.say("mlp_out", f"of layer {layer} takes something from other tokens that attn_out does not hold")


def _makes(truth: Truth, found: Found, site: str, whole: str, layer: int, value: dict[Any, Tensor]) -> None:
    """With zeros at ``site`` nothing of a token is left in ``whole``: every token gets the same, the biases."""
    sites = truth.sites
    address, end = sites.address(site, layer), sites.address(whole, layer)
    with watched(truth.model, end) as seen, hooked(truth.module, address, torch.zeros_like):
        truth.forward(truth.ids[0])
    left = seen[0].reshape(value[whole, layer].shape)
    size = float(value[whole, layer].abs().max())
    if float((left - left[:1]).abs().max()) > CLOSE * size:
        found.say(f"{site} makes {whole}", f"layer {layer}: something of a token is left where {site} is zero")
    if float((left - value[whole, layer]).abs().max()) <= CLOSE * size:
        found.say(f"{site} makes {whole}", f"layer {layer}: nothing changes where {site} is zero")


def _edit(model: LanguageModel, truth: Truth) -> tuple[int, Tensor]:
    """A layer in the middle, and a vector as long as the stream there."""
    layers = model.sites.layers("resid_post")
    layer = layers[len(layers) // 2]
    stream = truth.values(truth.ids[0], [("resid_post", layer)])["resid_post", layer]
    vector = torch.randn(stream.shape[1], generator=torch.Generator().manual_seed(3))
    return layer, vector * stream.float().pow(2).mean().sqrt()


def _edits(model: LanguageModel, truth: Truth, found: Found) -> None:
    """Logits under an addition at ``resid_post``, at every token or the last one, in a padded batch."""
    layer, vector = _edit(model, truth)
    for positions in ("all", "last"):
        edit = et.Add("resid_post", layers=[layer], vector=vector.numpy(), positions=positions)
        acts = et.capture(model, truth.ids, "logits", positions="all", edits=[edit], batch_size=4, progress=False)
        got, right, plain = acts.sel("logits").values, [], []
        for ids in truth.ids:
            plain.append(truth.values(ids, [("logits", None)])["logits", None].numpy())
            with truth.added(layer, vector, 0 if positions == "all" else len(ids) - 1, None):
                right.append(truth.values(ids, [("logits", None)])["logits", None].numpy())
        found.compare(f"logits under an edit at {positions}", got, np.concatenate(right))
        if np.allclose(np.concatenate(right), np.concatenate(plain)):
            found.say("the hook's own edit", "changes no logits")


def _generation(model: LanguageModel, truth: Truth, found: Found) -> None:
    """Greedy tokens under an edit of the last prompt token or of all from it on, with a cache and without."""
    layer, vector = _edit(model, truth)
    for positions in ("last", "steer"):
        literal, theirs = [], {True: [], False: []}
        for ids in truth.ids:
            span = len(ids) - 1, len(ids) if positions == "last" else None
            with truth.added(layer, vector, *span):
                literal.append(truth.reply(ids))
            for cached, all_ in theirs.items():
                with truth.added(layer, vector, *span):
                    all_.append(truth.theirs(ids, cached))
        edit = et.Add("resid_post", layers=[layer], vector=vector.numpy(), positions=positions)
        for cached, size in ((True, 4), (True, 1), (False, 4)):
            what = f"tokens at {positions} {'with' if cached else 'without'} a cache{', batch' if size > 1 else ''}"
            with _kept(found, what):
                rows = et.generate(
                    model, truth.ids, [edit], max_new_tokens=NEW, use_cache=cached, batch_size=size, progress=False
                )
                for row, (whole, lead), own in zip(rows, literal, theirs[cached], strict=True):
                    if lead > 1e-3 and row["token_ids"] not in (whole, own):
                        found.say(what, f"{row['token_ids']}, hooks say {whole}, in transformers' generate {own}")


def _perplexity(model: LanguageModel, truth: Truth, found: Found) -> None:
    """Log-probabilities of given replies, alone and in a padded batch."""
    replies = [ids[::-1][: 2 + i] for i, ids in enumerate(truth.ids)]
    prompts = [
        {"key": str(i), "token_ids": ids, "reply_ids": r}
        for i, (ids, r) in enumerate(zip(truth.ids, replies, strict=True))
    ]
    right = []
    for ids, reply in zip(truth.ids, replies, strict=True):
        logs = truth.logits([*ids, *reply]).log_softmax(-1)
        right.append([float(logs[len(ids) - 1 + j, t]) for j, t in enumerate(reply)])
    for how, size in (("alone", 1), ("in a batch", 4)):
        got = scoring.reply_logprobs(model, prompts, batch_size=size)
        found.compare(f"log-probabilities {how}", np.concatenate(got), np.concatenate(right))
