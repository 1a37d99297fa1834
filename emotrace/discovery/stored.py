"""Stored: attribution patching as an expression over stored values and gradients. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr

from emotrace import provenance
from emotrace.directions.source import BLOCK_BYTES, Source, source
from emotrace.discovery.aligned import SPANS, Pair, Pairs
from emotrace.discovery.held import Held
from emotrace.discovery.names import SIGN, NodeName, kinds_of, node_coords, nodes_at, pair_coords
from emotrace.labels import COMPONENTS, GRADIENT, KINDS, METRIC, RUN_ORDER, SUBLAYERS, EmotraceError, unknown
from emotrace.signatures import typed
from emotrace.store import Activations

PLACE: Final = "attribution_patching"
ABLATIONS: Final = ("counterfactual", "mean", "zero")


class LayerRows(NamedTuple):
    """Rows of one layer of what is stored.

    Attributes:
        rows: of all layers.
        layer: index of the layer among them.
    """

    rows: Source
    layer: int

    def read(self, wanted: np.ndarray) -> np.ndarray:
        """Vectors of some rows, float64 ``[row, features]``."""
        return np.concatenate([values[0] for _, values in self.rows.blocks(self.layer, wanted)])


class StoredSite(NamedTuple):
    """Where the nodes of one kind write in one layer.

    Attributes:
        values: of the prompts.
        others: of the counterfactuals.
        gradients: of the prompts.
        nodes: in the order of the columns, each of as many.
    """

    values: LayerRows
    others: LayerRows
    gradients: LayerRows
    nodes: list[NodeName]


class Tokens(NamedTuple):
    """The tokens of some pairs, one after the other.

    Attributes:
        pairs: which pairs.
        mine: row of each token.
        theirs: row of what stands against it, in the counterfactuals.
        cell: pair · spans + span of each token, counted from the first of the pairs.
    """

    pairs: range
    mine: np.ndarray
    theirs: np.ndarray
    cell: np.ndarray


@typed
def attribution_patching(
    acts: Activations,
    pairs: Pairs | Sequence[Pair],
    *,
    nodes: Iterable[str] | str = ("head", "mlp"),
    ablation: str = "counterfactual",
    counterfactuals: Activations | None = None,
) -> xr.Dataset:
    """`scores` of nodes by ``method="eap"``, of stored values a and gradients: no model, no forward.

    ::

        score = Σ over tokens and columns of (a − a′) · d metric / d a

    a′ is a at the aligned token of the counterfactual; its mean over the tokens of the same span, of prompts and counterfactuals
    as often as the pairs have them; or 0. Sums are float64, layer by layer, some pairs at a time.

    Args:
        acts: of ``capture(model, pairs.prompts(), sites, positions="prompt", gradients=metric)``, with the sites of the nodes
            (head ``z``, neuron ``neuron``, attn ``attn_out``, mlp ``mlp_out``, resid ``resid_post``).
        pairs: of `other_emotion` and the like, of the model or of these activations.
        nodes: kinds of node: head, mlp, neuron, attn, resid, or sublayer for attn and mlp.
        ablation: what stands for a component that is gone: its value in the ``counterfactual``, its ``mean`` or ``zero``.
        counterfactuals: activations that hold the counterfactuals; None where ``acts`` hold them.

    Returns:
        As of `scores`: ``score[pair, node]`` and ``by_span[pair, span, node]`` float32, ``clean[pair]``; and
        ``counterfactual[pair]`` where the metric is linear in the one captured site that it reads (else that is not among what is
        stored). attrs name the store, its selection and its plan.

    Raises:
        EmotraceError: for activations without gradients, without the sites of the nodes, or in which tokens of a prompt are
            missing; for another model's counterfactuals.
    """
    pairs = pairs if isinstance(pairs, Pairs) else Pairs(pairs)
    if ablation not in ABLATIONS:
        raise unknown("ablation", ablation, ABLATIONS, PLACE)
    if METRIC not in acts.variables:
        raise EmotraceError(f"{PLACE}: {acts.path} holds no gradients; capture with gradients=metric.")
    other = acts if counterfactuals is None else counterfactuals
    provenance.together(PLACE, acts=acts.attrs, counterfactuals=other.attrs)
    sites = [site for kind in kinds_of(nodes, f"{PLACE}(nodes=…)") for site in _sites(acts, other, kind)]
    if not sites:
        raise EmotraceError(f"{PLACE}: no {nodes} of a layer before the metric ({acts.attrs['gradients']}) is held.")
    sites.sort(key=lambda site: (site.nodes[0].layer, RUN_ORDER.index(site.nodes[0].kind)))
    mine, theirs = Held(acts, PLACE), Held(other, f"{PLACE}(counterfactuals=…)")
    named = [node for site in sites for node in site.nodes]
    widest = max(site.values.rows.shape[2] for site in sites)
    blocks = list(_blocks(pairs, mine, theirs, max(1, BLOCK_BYTES // (8 * 4 * widest))))
    by_span = np.zeros((len(pairs), len(SPANS), len(named)))
    at = 0
    for site in sites:
        means = _span_means(site, blocks) if ablation == "mean" else None
        for block in blocks:
            found = _product(site, block, ablation, means).reshape(len(block.pairs), len(SPANS), -1)
            by_span[block.pairs.start : block.pairs.stop, :, at : at + len(site.nodes)] = found
        at += len(site.nodes)
    data: dict[str, Any] = {
        "score": (("pair", "node"), by_span.sum(1).astype(np.float32)),
        "by_span": (("pair", "span", "node"), by_span.astype(np.float32)),
        **_metrics(acts, other, mine, theirs, pairs),
    }
    coords = {**node_coords(named), **pair_coords(pairs), "span": ("span", list(SPANS))}
    attrs = {
        "method": "eap", "level": "node", "ablation": ablation, "metric": acts.attrs["gradients"], "sign": SIGN,
        "n_pairs": len(pairs), "model": acts.attrs.get("model_id", ""), **provenance.of(acts.attrs),
        **sites[0].values.rows.provenance(),
    }  # fmt: skip
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _sites(acts: Activations, other: Activations, kind: str) -> Iterator[StoredSite]:
    """Where the nodes of a kind write, in the layers before the metric is read."""
    site = COMPONENTS[kind].site
    variable = "residual" if site in SUBLAYERS else site
    described = {v.name: v for v in acts.described}
    here = [v for v in (variable, f"{variable}{GRADIENT}") if v in described]
    subs = described[variable].coords.get("sublayer", ()) if variable in described else ()
    if len(here) < 2 or variable not in other.variables or (variable == "residual" and site not in subs):
        raise EmotraceError(
            f"{PLACE}(nodes={kind!r}): {acts.path} does not hold {site!r} with its gradients; capture that site."
        )
    dim = COMPONENTS[kind].dim if kind in KINDS else None
    for held, name in ((acts, "acts"), (other, "counterfactuals")):
        parts = [d for d in held.cut(variable) if d != dim]
        if parts:
            raise EmotraceError(
                f"{PLACE}(nodes={kind!r}): {site!r} of {name} is narrowed along {parts[0]!r}; a node is whole."
            )
    read = [tuple(one) for one in acts.attrs["metric_reads"]]
    at = {"sublayer": [site]} if variable == "residual" else {}
    values, gradients = (source(acts.sel(name, **at), position="all") for name in here)
    for name, needed in (("layer", gradients), *(() if dim is None else ((dim, values),))):
        there = other.sel(variable)[name].values.tolist()
        lost = [i for i in needed.array[name].values.tolist() if i not in there]
        if lost:
            raise unknown(f"{name} of {site!r}", lost[0], there, f"{PLACE}(counterfactuals=…)")
    same = {} if dim is None else {dim: values.array[dim].values}
    others = values if other is acts else source(other.sel(variable, **at, **same), position="all")
    numbers = [0] if dim is None else values.array[dim].values.tolist()
    for layer in gradients.array["layer"].values.tolist():
        if (site, layer) not in read:  # what the metric reads is no node that it is found for
            yield StoredSite(
                _part(values, layer),
                _part(others, layer),
                _part(gradients, layer),
                list(nodes_at(kind, layer, numbers)),
            )


def _part(rows: Source, layer: int) -> LayerRows:
    return LayerRows(rows, rows.array["layer"].values.tolist().index(layer))


def _blocks(pairs: Pairs, mine: Held, theirs: Held, most: int) -> Iterator[Tokens]:
    """Some neighbouring pairs at a time, of about so many tokens together."""
    start, rows, against, cells = 0, [], [], []
    for i, pair in enumerate(pairs):
        if pair.keys is None:
            raise EmotraceError(f"{PLACE}: pair {pair.key!r} does not say the keys of its prompts (Pair(keys=…)).")
        here, there = mine.rows(pair.keys.clean), theirs.rows(pair.keys.counterfactual)
        if mine.ids(pair.keys.clean) != pair.clean or theirs.ids(pair.keys.counterfactual) != pair.counterfactual:
            raise EmotraceError(f"{PLACE}: the prompts of pair {pair.key!r} were captured as other tokens.")
        rows.append(np.arange(here.start, here.stop))
        against.append(there.start + np.array(pair.index))
        cells.append((i - start) * len(SPANS) + np.array(pair.spans))
        if sum(map(len, rows)) >= most or i == len(pairs) - 1:
            yield Tokens(range(start, i + 1), np.concatenate(rows), np.concatenate(against), np.concatenate(cells))
            start, rows, against, cells = i + 1, [], [], []


def _span_means(site: StoredSite, blocks: list[Tokens]) -> np.ndarray:
    """``[span, features]``: means over the tokens of prompts and counterfactuals, these in the span that they stand against."""
    sums, counts = np.zeros((len(SPANS), site.values.rows.shape[2])), np.zeros(len(SPANS))
    for tokens in blocks:
        pair = tokens.cell // len(SPANS)
        at = np.stack([pair, tokens.theirs])[:, ::-1]
        last = (
            len(pair) - 1 - np.unique(at, axis=1, return_index=True)[1]
        )  # one that stands against several counts once
        for part, rows, which in ((site.values, tokens.mine, slice(None)), (site.others, tokens.theirs[last], last)):
            of = (np.arange(len(SPANS))[:, None] == tokens.cell[which] % len(SPANS)).astype(np.float64)
            sums += of @ part.read(rows)
            counts += of.sum(1)
    return sums / np.maximum(counts, 1)[:, None]


def _product(site: StoredSite, tokens: Tokens, ablation: str, means: np.ndarray | None) -> np.ndarray:
    """Σ (a − a′) · gradient over each node's columns and the tokens of each cell: ``[cell, node]``."""
    change = site.values.read(tokens.mine)
    if means is not None:
        change = change - means[tokens.cell % len(SPANS)]
    elif ablation == "counterfactual":
        change = change - site.others.read(tokens.theirs)
    product = change * site.gradients.read(tokens.mine)
    summed = product.reshape(len(product), len(site.nodes), -1).sum(-1)
    out = np.zeros((len(tokens.pairs) * len(SPANS), len(site.nodes)))
    np.add.at(out, tokens.cell, summed)
    return out


def _metrics(acts: Activations, other: Activations, mine: Held, theirs: Held, pairs: Pairs) -> dict[str, Any]:
    """The metric of both prompts of every pair; that of counterfactuals where what is stored says it.

    A metric that is linear in one site is ⟨value, gradient⟩ there; under the same gradient the value of the counterfactual gives
    its metric.
    """
    last = [np.array([held.rows(key).stop - 1 for key in keys]) for held, keys in (
        (mine, [p.keys.clean for p in pairs if p.keys]), (theirs, [p.keys.counterfactual for p in pairs if p.keys]))]  # fmt: skip
    clean = np.asarray(acts.sel(METRIC).variable[last[0]].values, dtype=np.float64)
    found = {"clean": ("pair", clean.astype(np.float32))}
    read = [tuple(one) for one in acts.attrs["metric_reads"]]
    if len(read) != 1:
        return found
    site, layer = read[0]
    name = "residual" if site in SUBLAYERS else site
    held = {v.name: v.coords for v in acts.described}
    at = {} if layer is None else {"layer": layer}
    at |= {"sublayer": site} if name == "residual" else {}
    for variable in (name, f"{name}{GRADIENT}"):
        if variable not in held or any(value not in held[variable].get(dim, ()) for dim, value in at.items()):
            return found
    if name not in other.variables:
        return found
    values = np.asarray(acts.sel(name, **at).variable[last[0]].values, dtype=np.float64).reshape(len(pairs), -1)
    slopes = np.asarray(acts.sel(f"{name}{GRADIENT}", **at).variable[last[0]].values, dtype=np.float64).reshape(
        len(pairs), -1
    )
    again = (values * slopes).sum(-1)
    if not np.allclose(again, clean, rtol=1e-3, atol=1e-4 * np.abs(values * slopes).sum(-1).max()):
        return found
    against = np.asarray(other.sel(name, **at).variable[last[1]].values, dtype=np.float64).reshape(len(pairs), -1)
    return found | {"counterfactual": ("pair", (against * slopes).sum(-1).astype(np.float32))}
