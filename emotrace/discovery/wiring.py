"""Wiring: what reads the residual stream in every layer, and which columns belong to which head; proven, not looked up.

Readers of a layer are the inputs of its queries (one per query head), keys and values (one per key-value head: under GQA
that is how many inputs there are) and of its MLP. Each sees ``norm(stream)``, so a reader can be given a stream of its own
by recomputing norm and projection for its columns alone. That needs a residual stream that only grows by
``c·(z W_O + b)`` and ``c·mlp_out`` (no norm after either), layers that read it one after the other, and projections of the
normed stream whose columns belong to single heads.

What the columns are is shown with nnsight on a row of five tokens that are given random queries, keys and values: values
shifted by one vector at all tokens shift z of their heads by it; a query changed at one token changes z of its head there
and nowhere else; a key changed at one token changes z of its heads at that token or later ones, and of no others.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import nn

from emotrace.attribution.weights import output_projection, weighed
from emotrace.discovery.nodes import read_at
from emotrace.forwards.entering import enter, inputs
from emotrace.forwards.projections import reading_norm_path, spec
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel, Site, envoy
from emotrace.sites.finding import record_ids
from emotrace.sites.probe import Call, Recording
from emotrace.sites.twin import shrunken
from emotrace.traced import rewiring, weights

TOKENS = 5
AMPLITUDES = (1.0, 0.3)
"""Of the queries, keys and values that are given; a smaller one shows what a softmax of one-hot rows hides."""
CHANGED = 2
"""Token of the probe that is changed: some are before it, some after."""


@dataclass(frozen=True)
class Readers:
    """What reads the residual stream in one layer, as it was shown.

    Attributes:
        norms: module paths of what queries, keys and values read through, and of what the MLP does.
        norm_orders: of each, when it is given the stream.
        projections: module path of the queries', keys' and values' projection (one path thrice where they are fused).
        columns: of each of them, ``[reader, head_dim]``: the output columns of each head.
        orders: of each of them, when it runs.
    """

    norms: tuple[str, str]
    norm_orders: tuple[float, float]
    projections: tuple[str, str, str]
    columns: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    orders: tuple[float, float, float]


@dataclass(frozen=True)
class LayerWiring(Readers):
    """Readers and writers of one layer.

    Attributes:
        heads: how many.
        out: where the output projection is, that takes z into the residual stream.
        scale: of the residual stream.
    """

    heads: int
    out: weights.Spec
    scale: float


_SHOWN: weakref.WeakKeyDictionary[nn.Module, dict[int, Readers]] = weakref.WeakKeyDictionary()
"""Layers of models that were shown already."""


def wiring(model: LanguageModel, n_layers: int | None = None) -> list[LayerWiring]:
    """Readers and writers of the first layers.

    Args:
        model: from `emotrace.load`.
        n_layers: how many; None for all.

    Raises:
        EmotraceError: for a model whose layers cannot be rewired, with the reason.
    """
    sites = model.sites
    if sites.form != "sequential":
        raise EmotraceError(
            f"edges need a residual stream that attention and MLP read one after the other; {sites.model_class} is "
            f"{sites.form}. Score nodes (level='node') instead."
        )
    shown, wanted = _SHOWN.setdefault(model._module, {}), range(sites.n_layers if n_layers is None else n_layers)
    recording = _recorded(model) if any(i not in shown for i in wanted) else None
    found = []
    for i in wanted:
        if i not in shown and recording is not None:
            shown[i] = _layer(model, recording, i)
        out = spec(model, "z", i)
        found.append(LayerWiring(**vars(shown[i]), heads=sites.heads(i), out=out, scale=out.scale))
    shared = [len(layer.columns[0]) // len(layer.columns[1]) for layer in found]
    if len(set(shared)) > 1:
        raise EmotraceError(
            f"layers of {sites.model_class} differ in how many heads share a key: {shared}. Edges need one number; score "
            "nodes (level='node') instead."
        )
    return found


def _recorded(model: LanguageModel) -> Recording:
    """Which modules run, and what each is given; of a model whose weights are elsewhere on its shrunken twin."""
    if _here(model):
        return record_ids(model._module)
    _, recording, reason = shrunken(model._module, record_ids)
    if recording is None:
        raise EmotraceError(
            f"edges of {model.sites.model_class}: no shrunken twin shows what reads the residual stream ({reason}). Load it "
            "here, or score nodes (level='node')."
        )
    return recording


def _layer(model: LanguageModel, recording: Recording, layer: int) -> Readers:
    sites, name = model.sites, model.sites.model_class
    for site in ("z", "mlp_out", "resid_mid"):
        sites.address(site, layer)
    out, heads = spec(model, "z", layer), sites.heads(layer)
    if _here(model):
        normed = output_projection(model, "z", layer).norm is not None
    else:
        normed = weights.follows(out) and weighed(model, weights.normed, out)
    if normed:
        raise EmotraceError(
            f"layer {layer} of {name} norms its attention's output before adding it, so that heads do not add up: there "
            "are no edges between heads. Score nodes (level='node') instead."
        )
    pre = sites.address("resid_pre", layer).seen
    start = recording.at(pre.path)[0]
    stream, given = (start.inp, start.order_in) if pre.side == "input" else (start.out, start.order_out)
    later = int(pre.order) - given  # sites count calls of the twin, which may have one more before the layers
    end = recording.at(sites.address("z", layer).path)[0]
    between = [c for c in recording.calls if given <= c.order_in < end.order_in and c.inp is not None]
    norm = next((c for c in between if _is_norm(c) and _same(c.inp, stream)), None)
    reading = reading_norm_path(model, layer)
    if norm is None or reading is None:
        which = "attention" if norm is None else "MLP"
        raise EmotraceError(
            f"the {which} of layer {layer} of {name} does not read the residual stream through a norm of its own, so its "
            "input cannot be split. Score nodes (level='node') instead."
        )
    found = [c for c in between if c.order_in > norm.order_in and _matrix(c.module) and _same(c.inp, norm.out)]
    order = {c.path: later + c.order_out for c in found}
    widths = {c.path: _width(model, c.path) for c in found if c.out is not None}
    for paths, columns in _layouts(widths, heads, out.width // heads):
        if any(_shown(model, layer, paths, columns, order, amplitude) for amplitude in AMPLITUDES):
            norm_orders = (later + norm.order_in, later + recording.at(reading)[0].order_in)
            orders = (order[paths[0]], order[paths[1]], order[paths[2]])
            return Readers((norm.path, reading), norm_orders, paths, columns, orders)
    listed = ", ".join(f"{path} ({width})" for path, width in widths.items()) or "none"
    raise EmotraceError(
        f"layer {layer} of {name}: no projections of the normed stream were proven to be queries, keys and values of "
        f"{heads} heads of {out.width // heads}; there are: {listed}. Score nodes "
        "(level='node') instead."
    )


def lowered(model: LanguageModel, layers: list[LayerWiring], whole: bool = True) -> list[rewiring.Layer]:
    """The layers as `emotrace.traced.rewiring.rewired` takes them; without the last MLP where not ``whole``."""
    sites, found = model.sites, []
    for n, layer in enumerate(layers):
        attention, reading = (envoy(model, path) for path in layer.norms)
        projections = [
            rewiring.HeadProjection(sites.place(Site(path)), envoy(model, path), list(columns), order)
            for path, columns, order in zip(layer.projections, layer.columns, layer.orders, strict=True)
        ]
        mlp = None
        if whole or n + 1 < len(layers):
            stream = read_at(model, "resid_mid", n)  # knows whether batch and token are one axis there
            normed = replace(stream, side="output", index=None)
            mlp = rewiring.MlpReader(stream.lower(model), reading, normed.lower(model))
        before, z, mlp_out = (sites.place(site, n) for site in ("resid_pre", "z", "mlp_out"))
        found.append(
            rewiring.Layer(before, attention, projections, z, layer.heads, layer.out, mlp, mlp_out, layer.scale)
        )
    return found


def _layouts(
    widths: dict[str, int], heads: int, size: int
) -> Iterator[tuple[tuple[str, str, str], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Paths and columns that queries, keys and values may have, for any number of heads that share a key."""
    for each in range(1, heads + 1):
        if heads % each == 0:
            yield from _grouped(widths, heads, each, size)


def _grouped(
    widths: dict[str, int], heads: int, each: int, size: int
) -> Iterator[tuple[tuple[str, str, str], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Likewise where so many heads share a key, the likeliest first."""
    groups = heads // each

    def rows(n: int, start: int = 0) -> torch.Tensor:
        return start + torch.arange(n * size).reshape(n, size)

    if len(widths) == 3:
        orders = sorted(
            permutations(widths), key=lambda o: [not _leaf(p).startswith(s) for p, s in zip(o, "qkv", strict=True)]
        )
        for q, k, v in orders:
            if (widths[q], widths[k], widths[v]) == (heads * size, groups * size, groups * size):
                yield (q, k, v), (rows(heads), rows(groups), rows(groups))
    for path, width in widths.items():
        if width == (heads + 2 * groups) * size:
            yield (path, path, path), (rows(heads), rows(groups, heads * size), rows(groups, (heads + groups) * size))
            block = torch.arange(width).reshape(groups, each + 2, size)  # each group: its queries, its key, its value
            yield (path, path, path), (block[:, :each].reshape(heads, size), block[:, each], block[:, each + 1])


def _shown(
    model: LanguageModel, layer: int, paths: tuple[str, str, str], columns: tuple[torch.Tensor, ...], order: dict[str, int],
    amplitude: float,
) -> bool:  # fmt: skip
    """Whether these columns do what queries, keys and values do; one forward."""
    sites = model.sites
    counts = [len(c) for c in columns]
    n = 1 + sum(counts)
    generator = torch.Generator().manual_seed(layer)
    ids = torch.randint(3, sites.vocab_size, (TOKENS,), generator=generator).tolist()
    size = columns[0].shape[1]
    shift = amplitude * torch.randn(size, generator=generator)
    unique = sorted(set(paths), key=lambda p: order[p])
    noise = {p: amplitude * torch.randn(TOKENS, _width(model, p), generator=generator) for p in unique}
    given = {p: noise[p].repeat(n, 1, 1) for p in unique}
    row = 1
    for path, some, where in zip(paths, columns, (CHANGED, CHANGED, slice(None)), strict=True):
        for mine in some:
            given[path][row, where][..., mine] += shift
            row += 1
    places = [(sites.place(Site(p)), given[p]) for p in unique]
    z = enter(model, rewiring.following, inputs(model, [ids] * n), places, sites.place("z", layer))
    z = z.unflatten(-1, (counts[0], -1))
    moved = z - z[:1]
    small = 1e-4 * float(z.abs().max()) + 1e-6
    heads = torch.arange(counts[0])
    each = counts[0] // counts[1]
    row = 1
    for part, count in enumerate(counts):
        for i in range(count):
            mine = heads == i if part == 0 else heads // each == i
            one = moved[row]
            row += 1
            if _most(one[:, ~mine]) > small:
                return False
            if part == 2 and _most(one[:, mine] - shift) > 10 * small:
                return False
            if part < 2 and (_most(one[:CHANGED]) > small or _most(one[CHANGED:]) <= small):
                return False
            if part == 0 and _most(one[CHANGED + 1 :]) > small:
                return False
            if part == 1 and _most(one[CHANGED + 1 :]) <= small:
                return False
    return True


def _here(model: LanguageModel) -> bool:
    return not any(p.is_meta for p in model._module.parameters())


def _width(model: LanguageModel, path: str) -> int:
    """Columns of the output of a projection."""
    return int(rewiring.rows_of(model._module.get_submodule(path))[0].shape[0])


def _most(value: torch.Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


def _is_norm(call: Call) -> bool:
    own = list(call.module.parameters())
    return all(p.ndim == 1 for p in own) and (bool(own) or "norm" in call.path.lower())


def _matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2


def _leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]
