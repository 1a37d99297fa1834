"""Planted circuits: small Llama and GPT-2 models in which every edge of a known circuit is set by hand.

The residual stream carries orthonormal features. A word token carries *word* and one of two *asked* features, the last
token *end*; the unembedding turns *out* features into the answers 0 and 1. A planted head looks from one feature to another
and copies features; a planted neuron answers to a feature. What reads a feature that another component writes is joined
to it by an edge. All other heads and neurons read context and a little of everything, and write noise; a decoy copies the
word, more than any planted head, to where nothing reads.

Its shapes are in `emotrace.testing.planted_shapes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from emotrace import discovery
from emotrace import model as model_
from emotrace.datasets import Prompt
from emotrace.labels import unknown
from emotrace.sites import LanguageModel
from emotrace.testing.planted_shapes import SHAPES, Shape
from emotrace.testing.planted_weights import BOS, FLAG, HEAD_DIM, Planting, Sizes, gpt2, llama
from emotrace.testing.tiny import VOCAB, tiny_tokenizer

D, D_FF = 64, 48
END, MIDDLE, WORDS, SIDES, ANSWERS, CONTEXT = 7, 8, (10, 11), (14, 15), (20, 21), range(40, 140)
PLACES: Final = {
    "asked": 2, "moved": 2, "out": 2, "sides": 2, "dead": 2, "word": 1, "middle": 1, "end": 1, "sink": 1,
}  # fmt: skip
LEAK = 0.02
"""How much of everything a distractor reads."""
DECOY = 4.0
"""How many times as much as a planted head a decoy reads; what it writes is its strength all the same."""


@dataclass(frozen=True)
class PlantedCircuit:
    """A model with the truth about it.

    Attributes:
        model: as `emotrace.load` returns it.
        pairs: the same context with the one word and with the other.
        metric: logit of the answer to the clean word minus that to the other.
        nodes: names of planted heads and of MLPs with planted neurons.
        edges: names of edges that carry the word.
        negative: names of nodes that lower the metric.
        idle: planted, but silent in the clean run.
    """

    model: LanguageModel
    pairs: Any
    metric: Any
    nodes: frozenset[str]
    edges: frozenset[str]
    negative: frozenset[str] = field(default_factory=frozenset)
    idle: frozenset[str] = field(default_factory=frozenset)


def planted_circuit(name: str, *, seed: int = 0, n_pairs: int = 6) -> PlantedCircuit:
    """A model with a planted circuit.

    Args:
        name: one of `SHAPES`.
        seed: of features, distractors and prompts.
        n_pairs: pairs of prompts, of three lengths.

    Raises:
        EmotraceError: for an unknown name.
    """
    if name not in SHAPES:
        raise unknown("planted circuit", name, SHAPES, "testing.planted_circuits")
    shape = SHAPES[name]
    plan = _CircuitPlanting(shape, torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = llama(plan) if shape.family == "llama" else gpt2(plan)
    model = model_.load(module.eval(), tokenizer=tiny_tokenizer())
    rng = np.random.default_rng(seed)
    clean, other = [], []
    for i in range(n_pairs):
        a, b, c = (rng.choice(CONTEXT, 2 + (i + j) % 3).tolist() for j in range(3))
        labels = {"skeleton_id": f"work_{i:02}", "theme": f"theme {i % 2}"}
        for word, to in ((i % 2, clean), (1 - i % 2, other)):
            ids = (BOS, *a, WORDS[word], SIDES[0], *b, MIDDLE, SIDES[1], *c, END)
            to.append(Prompt(f"{i}", token_ids=ids, labels={**labels, "emotion": str(word)}))
    pairs = discovery.pairs(model, clean, other)
    metric = discovery.LogitDifference({"0": ANSWERS[0], "1": ANSWERS[1]})
    real = [h for h in shape.planted if h.write != "dead"]
    nodes = {f"a{h.layer}.h{h.head}" for h in real} | {f"m{i}" for i in shape.neurons}
    negative = {f"a{h.layer}.h{h.head}" for h in shape.planted if h.strength < 0}
    idle = {f"a{layer}.h{head}" for layer, head in shape.idle}
    return PlantedCircuit(
        model, pairs, metric, frozenset(nodes), frozenset(_edges(shape)), frozenset(negative), frozenset(idle)
    )


def _edges(shape: Shape) -> set[str]:
    """Edges whose writer writes what the reader reads and what differs between the words; idle heads have none."""
    active = [h for h in shape.planted if (h.layer, h.head) not in shape.idle and h.write != "dead"]
    each = shape.heads // shape.groups
    found = set()
    writers = [("embed", -1.0, "asked")]
    writers += [(f"a{h.layer}.h{h.head}", h.layer, h.write) for h in active]
    writers += [(f"m{i}", i + 0.5, "out") for i in shape.neurons]
    readers: list[tuple[str, float, str]] = [
        (f"a{h.layer}.h{h.head}.q" if part == "q" else f"a{h.layer}.g{h.head // each}.{part}", h.layer, feature)
        for h in active
        for part, feature in h.inputs.items()
    ]
    readers += [(f"m{i}", i + 0.5, "out") for i in shape.neurons] + [("out", shape.layers, "out")]
    for source, when, wrote in writers:
        found |= {f"{source}->{target}" for target, then, read in readers if read == wrote and when < then}
    return found


class _CircuitPlanting(Planting):
    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__(Sizes(D, D_FF, shape.layers, shape.heads, shape.groups, positions=64), generator)
        self.shape = shape
        self.named: dict[str, Tensor] = {}
        at = 0
        for name, n in PLACES.items():
            self.named[name] = self.features[at : at + n]
            at += n
        self.context = self.features[at:]

    def __getitem__(self, name: str) -> Tensor:
        return self.named[name]

    def embedding(self) -> Tensor:
        table = FLAG * self.readers(VOCAB)
        for i, word in enumerate(WORDS):
            table[word] = FLAG * (0.8 * self["word"][0] + 0.6 * self["asked"][i])
        for token, side in zip(SIDES, self["sides"], strict=True):
            table[token] = FLAG * side
        for token, name in ((BOS, "sink"), (MIDDLE, "middle"), (END, "end")):
            table[token] = FLAG * self[name][0]
        return table

    def unembedding(self) -> Tensor:
        table = 0.3 * self.readers(VOCAB)
        for i, answer in enumerate(ANSWERS):
            table[answer] = self["out"][i]
        return table

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s, slow = self.shape, HEAD_DIM // 2 - 1
        q, k, v = (0.7 * self.readers(m * HEAD_DIM).reshape(m, HEAD_DIM, D) for m in (s.heads, s.groups, s.groups))
        o = 0.05 * self.noise(s.heads, HEAD_DIM, D)
        for m in (q, k):
            m[:, [slow, slow + HEAD_DIM // 2]] = 0
        v += LEAK * self.noise(*v.shape)
        each = s.heads // s.groups
        here = [h for h in s.planted if h.layer == layer]
        for h in here:
            group, pair = h.head // each, (slow, slow + HEAD_DIM // 2)  # the pair hardly turns within a prompt
            v[group, :2] = (DECOY if h.write == "dead" else 1.0) * 0.25 * self[h.read]
            o[group * each : (group + 1) * each, :2] = 0
            q[h.head] = 0
            if h.by == "query":
                for dim, at, to in zip(pair, self[h.at], self[h.to], strict=True):
                    q[h.head, dim], k[group, dim] = 2.5 * at, 1.7 * to
                continue
            k[group, slow] = 1.7 * self[h.to][0] + (0.7 if h.by == "value" else 0.3) * self["sink"][0]
            q[h.head, slow] = 1.7 * self[h.at][0]
            if h.less:
                q[h.head, slow] -= 6.0 * self[h.less].sum(0)
        for h in here:
            o[h.head, :2] = h.strength / (DECOY if h.write == "dead" else 1.0) * self[h.write]
            if h.by == "key":  # one feature, for the first answer
                o[h.head, 1] = 0
        return q, k, v, o

    def mlp(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        gate, up = 0.2 * self.readers(D_FF), 0.2 * self.readers(D_FF)
        gate += LEAK * self.noise(D_FF, D)
        down = self.noise(D_FF, D)
        down *= 0.05 / down.norm(dim=1, keepdim=True)
        if layer in self.shape.neurons:
            for i in range(2):
                gate[i], up[i] = 2 * self["out"][i], 0.15 * self["end"][0]
                down[i] = 0.3 * self["out"][i]
        return gate, up, down
