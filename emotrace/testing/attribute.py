"""Attribute: a tiny Llama in which, by construction, known neurons carry an attribute of concepts and nothing else does.

Every letter has a value of the attribute, which its embedding holds along one direction. In the first layer one head averages
that direction over all tokens before, and writes the average along a second direction; the planted neurons of both layers read
it and write along a third, on which the answers *yes* and *no* are read. So the model answers whether the letters of a text have
more of the attribute than less, and all of it passes through the planted neurons. Every other neuron and head reads and writes
directions in which nothing of the attribute lies.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
import xarray as xr
from torch import nn

from emotrace import model as model_
from emotrace.datasets import Prompts
from emotrace.datasets.goemotions import LabelledText
from emotrace.prompt_tuning import concept_prompts
from emotrace.sites import LanguageModel
from emotrace.testing.tiny import VOCAB, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

D, LAYERS, D_FF, HEADS = 32, 2, 64, 4
PLANTED = 3
"""Planted neurons of each layer."""
ATTRIBUTE = "valence"
CONCEPTS = tuple("ABCDEFGHIJ")
WORDS = ("-", "+")
"""The answers *no* and *yes*."""
LABEL = "joy"


@dataclass(frozen=True)
class Carried:
    """The model, and the truth about it.

    Attributes:
        model: as `emotrace.load` returns it.
        neurons: which neurons carry the attribute, bool ``[layer, unit]``.
        scores: ``[emotion, attribute]`` of the concepts: the attribute that is carried, and two that are not.
        prompts: plain prompts that name each concept at their last token.
        texts: part → texts with the label `LABEL` where they have more of the attribute than less, else ``neutral``.
    """

    model: LanguageModel
    neurons: xr.DataArray
    scores: xr.DataArray
    prompts: Prompts
    texts: dict[str, list[LabelledText]]


def carried(seed: int = 0, texts: tuple[int, int, int] = (40, 20, 40)) -> Carried:
    """A model that carries an attribute in `PLANTED` neurons of each layer.

    Args:
        seed: of directions, noise, and the neurons that are planted.
        texts: of train, dev and test.
    """
    rng = np.random.default_rng(seed)
    tokenizer = tiny_tokenizer()
    letter: dict[str, int] = {c: tokenizer.get_vocab()[c] for c in string.ascii_letters}
    low = dict(zip(string.ascii_lowercase, rng.permutation(np.repeat([-1.0, 1.0], 13)), strict=True))
    high = dict(zip(CONCEPTS, rng.permutation(np.linspace(-2, 2, len(CONCEPTS))), strict=True))
    planted = np.zeros((LAYERS, D_FF), dtype=bool)
    for row in planted:
        row[rng.choice(D_FF, PLANTED, replace=False)] = True
    module = _build(rng, {letter[c]: v for c, v in (low | high).items()}, planted, tokenizer)
    others = rng.permuted(np.tile(np.linspace(0, 1, len(CONCEPTS)), (2, 1)), axis=1)
    return Carried(
        model_.load(module.eval(), tokenizer=tokenizer),
        xr.DataArray(planted, dims=("layer", "unit"), coords={"layer": range(LAYERS), "unit": range(D_FF)}),
        xr.DataArray(
            np.stack([list(high.values()), *others], axis=1), dims=("emotion", "attribute"),
            coords={"emotion": list(high), "attribute": [ATTRIBUTE, "control", "novelty"]},
        ),
        concept_prompts(high, ["so {concept}", "well: {concept}", "0, 1, {concept}", "{concept}{concept}"]),
        {part: _texts(rng, low, n, part) for part, n in zip(("train", "dev", "test"), texts, strict=True)},
    )  # fmt: skip


@torch.no_grad()
def _build(
    rng: np.random.Generator, values: dict[int, float], planted: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> nn.Module:
    basis = torch.tensor(np.linalg.qr(rng.normal(size=(D, D)))[0].T, dtype=torch.float32)
    held, moved, answer, always, rest = basis[0], basis[1], basis[2], basis[3], basis[4:]

    def noise(rows: int) -> torch.Tensor:
        mixed = torch.tensor(rng.normal(size=(rows, len(rest))), dtype=torch.float32) @ rest
        return mixed / mixed.norm(dim=1, keepdim=True)

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=D, intermediate_size=D_FF, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    module: Any = transformers.LlamaForCausalLM(config)
    embedding = 2 * always + noise(VOCAB)
    for token, value in values.items():
        embedding[token] += value * held
    module.model.embed_tokens.weight.copy_(embedding)
    size = D // HEADS
    for layer, block in enumerate(module.model.layers):
        attention, mlp = block.self_attn, block.mlp
        attention.q_proj.weight.zero_()  # all tokens before count alike
        attention.k_proj.weight.zero_()
        attention.v_proj.weight.copy_(noise(D))
        attention.o_proj.weight.copy_(0.2 * (noise(D).T @ torch.eye(D)))
        if layer == 0:
            attention.v_proj.weight[:size] = 0
            attention.v_proj.weight[0] = held
            attention.o_proj.weight[:, :size] = 0
            attention.o_proj.weight[:, 0] = moved
        gate, up, down = always + noise(D_FF), noise(D_FF), 0.3 * noise(D_FF)
        for i, unit in enumerate(np.flatnonzero(planted[layer]).tolist()):
            sign = 1.0 if i % 2 == 0 else -1.0
            gate[unit], up[unit], down[unit] = 2 * always, sign * moved, sign * answer
        for target, rows in ((mlp.gate_proj, gate), (mlp.up_proj, up), (mlp.down_proj, down.T)):
            target.weight.copy_(rows)
    head = 0.1 * noise(VOCAB)
    for word, sign in zip(WORDS, (-1.0, 1.0), strict=True):
        head[tokenizer.convert_tokens_to_ids(word)] = sign * answer
    module.lm_head.weight.copy_(head)
    return module


def _texts(rng: np.random.Generator, values: dict[str, float], n: int, part: str) -> list[LabelledText]:
    more, less = ([c for c, v in values.items() if v * sign > 0] for sign in (1, -1))
    out = []
    for i in range(n):
        mine, others = (more, less) if i % 2 else (less, more)
        letters = rng.permutation([*rng.choice(mine, 5), *rng.choice(others, int(rng.integers(0, 3)))])
        out.append(LabelledText(f"{part}_{i}", "".join(letters), (LABEL if i % 2 else "neutral",)))
    return out
