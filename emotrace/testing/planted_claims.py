"""Planted claims: tiny Llamas of which it is known what makes them express an emotion, so that claims can be told apart by runs.

The residual stream carries orthonormal features, as in `emotrace.testing.planted`. A head of the first layer copies the emotion
asked for to *seen_e* at the last token; the MLP of the second layer turns it into the answer's feature *out_e*. How it does is
the truth that is planted:

* ``components``: some units of the second layer are those of one emotion and write a channel that no other unit writes; the
  third layer answers e wherever channel e is moved, up or down. So they express their emotion whatever is added there.
* ``payload``: every unit of the second layer carries every emotion, in a code of signs. What is added says which emotion, at
  whichever units.
* ``opening``: the same, and each answer brings its own feature *out_e* along as the next token's embedding. So a reply goes on
  as it began, whoever began it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from emotrace import model as model_
from emotrace.datasets import Prompts
from emotrace.labels import EMOTIONS, unknown
from emotrace.sites import LanguageModel
from emotrace.testing.planted import ANSWERS, END, HEADS, NEUTRAL, NEUTRAL_ANSWER, WORDS, prompts_of
from emotrace.testing.planted_weights import BOS, FLAG, HEAD_DIM, Planting, Sizes, llama
from emotrace.testing.tiny import VOCAB, tiny_tokenizer

TRUTHS: Final = ("components", "payload", "opening")
D, D_FF, LAYERS = 64, 96, 3
LAYER: Final = 1
"""The layer whose units are looked at."""
OWN: Final = 8
"""Units of each emotion, where an emotion has its own."""
SEEN, CHANNEL, CODE, MOVED, CARRIED = 1.5, 1.5, 7.0, 1.1, 6.0
"""How much is written: by the head, by all units of an emotion, by all of a code, by the third layer; and brought along."""


@dataclass(frozen=True)
class PlantedClaim:
    """A model with its prompts, and how many units of an emotion to look for.

    Attributes:
        model: as `emotrace.load` returns it.
        prompts: with each emotion asked.
        plain: the same without.
        units: of each emotion's circuit in `LAYER`.
        strength: λ at which they make the model answer.
    """

    model: LanguageModel
    prompts: Prompts
    plain: Prompts
    units: int
    strength: float


def planted_claim(truth: str, *, seed: int = 0, skeletons: int = 12) -> PlantedClaim:
    """A model in which one of `TRUTHS` holds and the others do not.

    Args:
        truth: one of `TRUTHS`.
        seed: of features, distractors, prompts, and the code.
        skeletons: of the prompts.

    Raises:
        EmotraceError: for an unknown truth.
    """
    if truth not in TRUTHS:
        raise unknown("planted truth", truth, TRUTHS, "testing.planted_claims")
    plan = _ClaimPlanting(truth, torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = llama(plan)
    own = truth == "components"
    prompts, plain = prompts_of(seed, skeletons, ("neutral",))
    return PlantedClaim(
        model_.load(module.eval(), tokenizer=tiny_tokenizer()), prompts, plain, OWN if own else 3 * OWN, 6.0
    )


def answer_of(token_ids: list[int]) -> str:
    """The emotion that most tokens of a reply say; ``neutral`` where most say none, and among equally frequent ones."""
    said = [EMOTIONS[i - ANSWERS] if ANSWERS <= i < NEUTRAL_ANSWER else "neutral" for i in token_ids]
    most = max(EMOTIONS, key=said.count)
    return most if 2 * said.count(most) > len(said) else "neutral"


class _ClaimPlanting(Planting):
    def __init__(self, truth: str, generator: torch.Generator) -> None:
        super().__init__(Sizes(D, D_FF, LAYERS, HEADS, HEADS // 2, positions=128), generator)
        self.truth, n, rest = truth, len(EMOTIONS), self.features
        self.asked, self.seen, self.channel, self.out = (rest[i * n : (i + 1) * n] for i in range(4))
        (self.word, self.end, self.neutral, self.sink), self.context = rest[4 * n : 4 * n + 4], rest[4 * n + 4 :]
        self.code = torch.where(self.noise(D_FF, n) > 0, 1.0, -1.0)

    def embedding(self) -> Tensor:
        table = FLAG * self.readers(VOCAB)
        table[WORDS : WORDS + len(self.asked)] = FLAG * (0.87 * self.word + 0.5 * self.asked)
        last = FLAG * self.end + NEUTRAL * self.neutral
        table[BOS], table[END] = FLAG * self.sink, last
        table[ANSWERS : NEUTRAL_ANSWER + 1] = last
        if self.truth == "opening":
            table[ANSWERS:NEUTRAL_ANSWER] += CARRIED * self.out
        return table

    def unembedding(self) -> Tensor:
        table = 0.3 * self.readers(VOCAB)
        table[ANSWERS:NEUTRAL_ANSWER] = self.out
        table[NEUTRAL_ANSWER] = self.neutral
        return table

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first head of the first layer looks from *end* at *word* and copies *asked* to *seen*; the others are noise."""
        n, slow, groups = len(self.asked), HEAD_DIM // 2 - 1, self.sizes.groups
        q, k, v = (0.7 * self.readers(m * HEAD_DIM).reshape(m, HEAD_DIM, D) for m in (HEADS, groups, groups))
        o = 0.02 * self.noise(HEADS, HEAD_DIM, D)
        for m in (q, k):
            m[:, [slow, slow + HEAD_DIM // 2]] = 0
        if layer == 0:
            k[0, slow] = 1.7 * self.word + 0.7 * self.sink
            v[0, :n] = 0.25 * self.asked
            o[: HEADS // groups, :n] = 0
            q[0] = 0
            q[0, slow] = 1.7 * self.end
            o[0, :n] = SEEN * self.seen
        return q, k, v, o

    def mlp(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """At *end* a planted gate is about 5; up reads what there is, so that a unit is linear in it."""
        gate, up = 0.1 * self.readers(D_FF), 0.1 * self.readers(D_FF)
        down = 0.02 * self.noise(D_FF, D)
        n, own = len(EMOTIONS), self.truth == "components"
        if layer == LAYER and own:
            for e in range(n):
                mine = slice(e * OWN, (e + 1) * OWN)
                gate[mine], up[mine] = 0.75 * self.end, 0.4 * self.seen[e]
                down[mine] = CHANNEL / (4.5 * OWN) * self.channel[e]
        elif layer == LAYER:
            gate[:], up[:] = 0.75 * self.end, 0.4 * self.code @ self.seen
            down[:] = CODE / (4.5 * D_FF) * self.code @ self.out
        elif layer == LAYER + 1 and own:
            for e in range(n):
                for unit, sign in ((2 * e, 1), (2 * e + 1, -1)):
                    gate[unit], up[unit] = 3 * sign * self.channel[e] - 0.3 * self.end, 0.15 * self.end
                    down[unit] = MOVED * self.out[e]
        return gate, up, down
