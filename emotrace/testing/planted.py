"""Planted: tiny models in which, by construction, known heads and neurons write the emotion among random distractors.

The residual stream carries orthonormal features. An emotion word carries *word* and *asked_e*, the last token *end* and
*neutral*; the unembedding turns *out_e* into the answer of e and *neutral* into a neutral answer. Planted heads look from
*end* at *word* and copy *asked_e* to *out_e*; planted neurons answer to *out_e* at *end* and write more of it. Every other
head and neuron reads context only, so that it does not depend on the emotion, and writes noise into the whole space,
*out_e* included; a decoy head and a decoy neuron write *out* whatever was asked, so that only a contrast tells them apart.
Gains and biases of norms are random and undone in what reads. With the emotion asked the model answers with it, without
the emotion or without the planted components it answers neutrally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from emotrace import model as model_
from emotrace.datasets import Prompt, Prompts
from emotrace.labels import EMOTIONS, VALENCES, unknown
from emotrace.sites import LanguageModel
from emotrace.testing.planted_weights import BOS, FLAG, HEAD_DIM, Planting, Sizes, gpt2, llama
from emotrace.testing.tiny import VOCAB, tiny_tokenizer

FAMILIES = ("llama", "gpt2")
D, LAYERS, HEADS, D_FF = 64, 3, 4, 96
NEUTRAL = 2.6
"""How strongly every last token asks for the neutral answer; a planted emotion adds up to about 5."""
HEAD_WRITES, NEURON_WRITES, DECOY_WRITES = 1.5, 0.7, 1.7
PLANTED_HEADS = {0: {1: (0, 1, 2), 2: (3, 4, 5)}, 1: {3: (0, 1, 2, 3, 4, 5)}}
"""Layer → head → indices of the emotions that it writes."""
PLANTED_NEURONS = {1: (1, 1.5), 2: (2, 2.4)}
"""Layer → neurons of each emotion, and how much of it there must be before they answer."""
DECOY_LAYER, DECOY_HEAD = 2, 0
"""Here a head writes for anger and a neuron for sadness, whatever is asked."""
END, FILLER, WORDS, ANSWERS, NEUTRAL_ANSWER, CONTEXT = 7, 16, 10, 20, 26, range(40, 140)


@dataclass(frozen=True)
class Planted:
    """A planted model with its prompts and the truth about it.

    Attributes:
        model: as `emotrace.load` returns it.
        prompts: every skeleton and valence with each emotion asked.
        plain: the same without an emotion.
        heads: which head writes which emotion, bool ``[emotion, layer, head]``.
        neurons: which neuron does, bool ``[emotion, layer, unit]``.
        answers: emotion (and ``neutral``) → the token id that the model answers.
    """

    model: LanguageModel
    prompts: Prompts
    plain: Prompts
    heads: xr.DataArray
    neurons: xr.DataArray
    answers: dict[str, int]


def planted(family: str = "llama", *, seed: int = 0, skeletons: int = 6) -> Planted:
    """A planted model of a family: ``llama`` (GQA, SwiGLU, RMSNorm, RoPE) or ``gpt2`` (LayerNorm, GELU, biases, Conv1D).

    Args:
        family: one of `FAMILIES`.
        seed: of features, distractors, prompts, and the units that are planted.
        skeletons: of the prompts, each in three valences.

    Raises:
        EmotraceError: for an unknown family.
    """
    if family not in FAMILIES:
        raise unknown("planted family", family, FAMILIES, "testing.planted")
    generator = torch.Generator().manual_seed(seed)
    plan = _Planting(generator, HEADS // 2 if family == "llama" else HEADS)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = llama(plan) if family == "llama" else gpt2(plan)
    heads = np.zeros((len(EMOTIONS), LAYERS, HEADS), dtype=bool)
    for layer, by_head in PLANTED_HEADS.items():
        for head, emotions in by_head.items():
            heads[list(emotions), layer, head] = True
    neurons = np.zeros((len(EMOTIONS), LAYERS, D_FF), dtype=bool)
    for layer, by_unit in plan.units.items():
        for unit, e in by_unit.items():
            neurons[e, layer, unit] = True
    coords = {"emotion": list(EMOTIONS), "layer": np.arange(LAYERS)}
    prompts, plain = prompts_of(seed, skeletons)
    return Planted(
        model_.load(module.eval(), tokenizer=tiny_tokenizer()),
        prompts,
        plain,
        xr.DataArray(heads, dims=("emotion", "layer", "head"), coords={**coords, "head": np.arange(HEADS)}),
        xr.DataArray(neurons, dims=("emotion", "layer", "unit"), coords={**coords, "unit": np.arange(D_FF)}),
        {**{e: ANSWERS + i for i, e in enumerate(EMOTIONS)}, "neutral": NEUTRAL_ANSWER},
    )


class _Planting(Planting):
    mlp_bias = 0.05

    def __init__(self, generator: torch.Generator, groups: int) -> None:
        super().__init__(Sizes(D, D_FF, LAYERS, HEADS, groups, positions=128), generator)
        n, features = len(EMOTIONS), self.features
        self.asked, self.out, (self.word, self.end, self.neutral, self.sink), self.context = (
            features[:n], features[n : 2 * n], features[2 * n : 2 * n + 4], features[2 * n + 4 :],
        )  # fmt: skip
        self.units: dict[int, dict[int, int]] = {}
        self.decoy = 0
        for layer, (each, _) in PLANTED_NEURONS.items():
            drawn = torch.randperm(D_FF, generator=generator)[: each * n + 1].tolist()
            self.units[layer] = {unit: i % n for i, unit in enumerate(drawn[:-1])}
            self.decoy = drawn[-1]  # in the last of these layers

    def embedding(self) -> Tensor:
        table = FLAG * self.readers(VOCAB)
        for i, asked in enumerate(self.asked):
            table[WORDS + i] = FLAG * (0.87 * self.word + 0.5 * asked)
        last = FLAG * self.end + NEUTRAL * self.neutral
        table[BOS], table[END] = FLAG * self.sink, last
        table[ANSWERS : NEUTRAL_ANSWER + 1] = last  # an answer may be followed by another
        return table

    def unembedding(self) -> Tensor:
        table = 0.3 * self.readers(VOCAB)
        table[ANSWERS : ANSWERS + len(self.out)] = self.out
        table[NEUTRAL_ANSWER] = self.neutral
        return table

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The planted score lives in the slowest pair of a rotary embedding, the planted values in the first dims."""
        n, slow, groups = len(self.asked), HEAD_DIM // 2 - 1, self.sizes.groups
        q, k, v = (0.7 * self.readers(m * HEAD_DIM).reshape(m, HEAD_DIM, D) for m in (HEADS, groups, groups))
        q += 0.2 * self.noise(HEADS, HEAD_DIM, 1) * self.end
        o = 0.05 * self.noise(HEADS, HEAD_DIM, D)
        for m in (q, k):
            m[:, [slow, slow + HEAD_DIM // 2]] = 0
        planted = PLANTED_HEADS.get(layer, {})
        for group in {head * groups // HEADS for head in planted}:
            k[group, slow] = 1.7 * self.word + 0.7 * self.sink  # where no word is, look at the beginning
            v[group, :n] = 0.25 * self.asked  # normed, a word's asked is 4
            o[group * HEADS // groups : (group + 1) * HEADS // groups, :n] = 0
        for head, emotions in planted.items():
            q[head] = 0
            q[head, slow] = 1.7 * self.end
            for e in emotions:
                o[head, e] = HEAD_WRITES * self.out[e]
        if layer == DECOY_LAYER:
            head, group = DECOY_HEAD, DECOY_HEAD * groups // HEADS
            q[head], k[group, slow], v[group, 0] = 0, 0.7 * self.sink, 0.125 * self.sink  # normed, the beginning is 8
            q[head, slow] = 3.0 * self.end
            o[head] = 0
            o[head, 0] = DECOY_WRITES * self.out[0]
        return q, k, v, o

    def mlp(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """A gate is about 5 where it is open, up about 1."""
        gate, up = 0.2 * self.readers(D_FF), 0.2 * self.readers(D_FF)
        gate += 0.15 * self.noise(D_FF, 1) * self.end
        up += 0.1 * self.noise(D_FF, 1) * self.end
        down = self.noise(D_FF, D)
        sizes = torch.where(torch.rand(D_FF, 1, generator=self.generator) < 0.1, 0.3, 0.06)
        down *= sizes / down.norm(dim=1, keepdim=True)
        for unit, e in self.units.get(layer, {}).items():
            gate[unit], up[unit] = 3 * self.out[e] - 3 / FLAG * PLANTED_NEURONS[layer][1] * self.end, 0.15 * self.end
            down[unit] = NEURON_WRITES / 4 * self.out[e]
        if layer == DECOY_LAYER:
            gate[self.decoy], up[self.decoy] = 0.6 * self.end, 0.15 * self.end
            down[self.decoy] = DECOY_WRITES / 4 * self.out[1]
        return gate, up, down


def prompts_of(seed: int, skeletons: int, valences: Sequence[str] = VALENCES) -> tuple[Prompts, Prompts]:
    """Prompts and plain ones: context, the emotion word (there a filler), context of the valence, and the last token.

    Args:
        seed: of the contexts.
        skeletons: how many.
        valences: of each skeleton.
    """
    rng = np.random.default_rng(seed)
    asked: list[Prompt] = []
    plain: list[Prompt] = []
    for s in range(skeletons):
        before = rng.choice(CONTEXT, rng.integers(3, 8)).tolist()
        for valence in valences:
            after = rng.choice(CONTEXT, rng.integers(2, 5)).tolist()
            labels = {"skeleton_id": f"work_{s:02}", "theme": f"theme {s % 3}", "valence": valence}

            def ids(word: int, before: Sequence[int] = before, after: Sequence[int] = after) -> tuple[int, ...]:
                return (BOS, *before, word, *after, END)

            key = f"work_{s:02}__{valence}"
            plain.append(Prompt(key, token_ids=ids(FILLER), labels=labels))
            for i, emotion in enumerate(EMOTIONS):
                asked.append(
                    Prompt(f"{key}__{emotion}", token_ids=ids(WORDS + i), labels={**labels, "emotion": emotion})
                )
    return Prompts(asked), Prompts(plain)
