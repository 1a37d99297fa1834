"""Planted weights: a model whose matrices are set by hand in feature space, as a Llama or a GPT-2.

The residual stream carries orthonormal features. What the matrices of a `Planting` say, `llama` and `gpt2` write into a
module: gains and biases of its norms are random, and undone in what reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor

from emotrace.testing.tiny import VOCAB

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_DIM, BOS = 16, 1
FLAG = 4.0
"""Length of an embedding."""


@dataclass(frozen=True)
class Sizes:
    """Of a planted model; ``groups`` are those of keys and values, ``positions`` the most that it takes."""

    d: int
    d_ff: int
    layers: int
    heads: int
    groups: int
    positions: int


class Planting(ABC):
    """Features, embeddings and the matrices of each layer, in feature space: norms are not yet undone.

    Args:
        sizes: of the model.
        generator: that everything is drawn by.

    Attributes:
        features: orthonormal ``[d − 1, d]``, without the one that LayerNorm takes away.
        context: those that tokens of the context carry.
        mlp_bias: how large the noise in what GPT-2's MLPs write is, whatever they read.
    """

    context: Tensor
    mlp_bias = 0.0

    def __init__(self, sizes: Sizes, generator: torch.Generator) -> None:
        self.sizes, self.generator = sizes, generator
        basis = self.noise(sizes.d, sizes.d)
        basis[:, 0] = 1.0
        self.features = torch.linalg.qr(basis)[0].T[1:]

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.generator)

    def gain(self) -> Tensor:
        """Of a norm, ``[d]``."""
        return 0.7 + 0.7 * torch.rand(self.sizes.d, generator=self.generator)

    def readers(self, rows: int) -> Tensor:
        """Random unit readers of the context, ``[row, d]``."""
        mixed = self.noise(rows, len(self.context)) @ self.context
        return mixed / mixed.norm(dim=1, keepdim=True)

    @abstractmethod
    def embedding(self) -> Tensor:
        """``[token, d]``."""

    @abstractmethod
    def unembedding(self) -> Tensor:
        """``[token, d]``."""

    @abstractmethod
    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Readers of q ``[head, head_dim, d]``, k and v ``[group, head_dim, d]``, and writers ``[head, head_dim, d]``."""

    @abstractmethod
    def mlp(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Readers of gate and up ``[unit, d]``, and writers ``[unit, d]``."""


def llama(plan: Planting) -> PreTrainedModel:
    """Grouped keys and values, SwiGLU, RMSNorm, rotary embeddings."""
    s = plan.sizes
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=s.d, intermediate_size=s.d_ff, num_hidden_layers=s.layers, num_attention_heads=s.heads,
        num_key_value_heads=s.groups, head_dim=HEAD_DIM, max_position_embeddings=s.positions, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=BOS, eos_token_id=2,
    )  # fmt: skip
    module: Any = transformers.LlamaForCausalLM(config)
    module.model.embed_tokens.weight.copy_(plan.embedding())
    for layer, block in enumerate(module.model.layers):
        q, k, v, o = plan.attention(layer)
        attention, mlp, gain = block.self_attn, block.mlp, plan.gain()
        block.input_layernorm.weight.copy_(gain)
        for target, rows in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v)):
            target.weight.copy_(rows.reshape(-1, s.d) / gain)
        attention.o_proj.weight.copy_(o.reshape(-1, s.d).T)
        gate, up, down = plan.mlp(layer)
        gain = plan.gain()
        block.post_attention_layernorm.weight.copy_(gain)
        mlp.gate_proj.weight.copy_(gate / gain)
        mlp.up_proj.weight.copy_(up / gain)
        mlp.down_proj.weight.copy_(down.T)
    gain = plan.gain()
    module.model.norm.weight.copy_(gain)
    module.lm_head.weight.copy_(plan.unembedding() / gain)
    return module


def gpt2(plan: Planting) -> PreTrainedModel:
    """LayerNorm, GELU, biases, Conv1D, learnt positions; as many groups as heads."""
    s = plan.sizes
    assert s.groups == s.heads
    assert s.d == s.heads * HEAD_DIM
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=s.d, n_layer=s.layers, n_head=s.heads, n_inner=s.d_ff, n_positions=s.positions,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=BOS, eos_token_id=2,
    )  # fmt: skip
    module: Any = transformers.GPT2LMHeadModel(config)
    body = module.transformer
    body.wte.weight.copy_(plan.embedding())
    body.wpe.weight.copy_(0.2 * plan.readers(len(body.wpe.weight)))

    def undone(norm: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a projection that reads the features as if the norm had neither gain nor bias."""
        weight = rows / norm.weight
        return weight.T, -(weight @ norm.bias)

    for layer, block in enumerate(body.h):
        for norm in (block.ln_1, block.ln_2):
            norm.weight.copy_(plan.gain())
            norm.bias.copy_(0.3 * plan.noise(s.d))
        q, k, v, o = plan.attention(layer)
        weight, bias = undone(block.ln_1, torch.cat([rows.reshape(-1, s.d) for rows in (q, k, v)]))
        block.attn.c_attn.weight.copy_(weight)
        block.attn.c_attn.bias.copy_(bias)
        block.attn.c_proj.weight.copy_(o.reshape(-1, s.d))
        block.attn.c_proj.bias.copy_(0.05 * plan.noise(s.d))
        gate, _, down = plan.mlp(layer)
        weight, bias = undone(block.ln_2, gate)
        block.mlp.c_fc.weight.copy_(weight)
        block.mlp.c_fc.bias.copy_(bias)
        block.mlp.c_proj.weight.copy_(down)
        if plan.mlp_bias:
            block.mlp.c_proj.bias.copy_(plan.mlp_bias * plan.noise(s.d))
    body.ln_f.weight.copy_(plan.gain())
    body.ln_f.bias.zero_()
    module.lm_head.weight.copy_(plan.unembedding() / body.ln_f.weight)
    return module
