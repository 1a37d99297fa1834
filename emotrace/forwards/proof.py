"""Proof: by how much prompts change when they share a forward, or their first tokens, on a few short prompts.

The prompts are long enough for the windows of a twin (`emotrace.sites.twin.WINDOW`), and every token of theirs is compared,
from the first behind padding or a cut on: small windows forget what lies behind them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from emotrace.configs import field, text_config
from emotrace.forwards import caches
from emotrace.forwards.decoding import neutral
from emotrace.forwards.entering import enter, inputs
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel
from emotrace.traced import beginnings as leaf
from emotrace.traced.beginnings import Stretch
from emotrace.traced.caches import BeginningRecipe, Level
from emotrace.traced.kept import Begun, BegunRow, Block, Kept, Pass, Wanted, cache_of
from emotrace.traced.requests import Forward
from emotrace.traced.steps import ordered

AGREEMENT = 1e-4
"""Largest relative deviation of any token in float32."""
ROUNDING = 16
"""In lower precision the median over tokens and layers is compared, with so many times the rounding of the dtype."""
LENGTHS, ALIKE, SHORT = (11, 1, 6, 4), (7, 7, 7), (9, 4)
"""Tokens of the prompts: of a twin (padded ones within and beyond its windows), of a batch of one length, of the weights."""
PREFIX, BRANCHES, TOTALS = 6, (9, 7), (16, 10)
"""Tokens that two prompts share, those that a further forward computes behind them, and all of theirs."""
STEPS = 3
"""Tokens that are generated."""


def alike(model: LanguageModel, deviations: Sequence[torch.Tensor]) -> bool:
    """Whether deviations are within rounding."""
    eps = torch.finfo(model._module.dtype).eps
    if eps < 1e-5:
        return all(float(x.max()) <= AGREEMENT for x in deviations)
    return all(float(x.median()) <= ROUNDING * eps for x in deviations)


def together(model: LanguageModel, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Deviations of prompts of some lengths in one (padded) batch."""
    sequences = [ids(model, n, seed) for seed, n in enumerate(lengths)]
    plain = caches.options(model)
    width, causal = max(lengths), model.sites.encoder.causal
    starts = [width - n if causal else 0 for n in lengths]
    spans = tuple(Stretch(row, at, at + n, row, 0) for row, (at, n) in enumerate(zip(starts, lengths, strict=True)))
    return _deviations(model, sequences, [Forward(inputs(model, sequences) | plain, spans)])


def shared(model: LanguageModel, briefly: bool = False) -> list[torch.Tensor]:
    """Deviations of two prompts behind kept keys and values: of a prefix and padded branches, of all tokens but the
    last, of a prefix.

    Args:
        model: causal; a family without a plain key-value cache fails in its own words.
        briefly: leave out the last of these.
    """
    first = ids(model, TOTALS[0], 0)
    sequences = [first, first[:PREFIX] + ids(model, TOTALS[1] - PREFIX, 1)]
    prefix = Level(inputs(model, [first[:PREFIX]]))

    def behind(cuts: Sequence[int], recipe: BeginningRecipe) -> Forward:
        rests = [s[cut:] for s, cut in zip(sequences, cuts, strict=True)]
        width = max(map(len, rests))
        spans = tuple(
            Stretch(i, width - len(r), width, i, cut) for i, (r, cut) in enumerate(zip(rests, cuts, strict=True))
        )
        return Forward(inputs(model, rests), spans, recipe)

    def branched(cuts: Sequence[int]) -> Forward:
        branches = inputs(model, [s[PREFIX:cut] for s, cut in zip(sequences, cuts, strict=True)])
        return behind(cuts, BeginningRecipe((prefix, Level(branches, (0, 0))), (0, 1)))

    wanted = [branched(BRANCHES), branched([n - 1 for n in TOTALS])]
    if not briefly:
        wanted.append(behind((PREFIX, PREFIX), BeginningRecipe((prefix,), (0, 0))))
    return _deviations(model, sequences, wanted)


def replies(model: LanguageModel, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Deviations of what a model here predicts while it generates: of the last prompt of a batch, from that prompt alone."""
    sequences = [ids(model, n, seed) for seed, n in enumerate(lengths)]
    try:
        alone = _generated(model, sequences[-1:])
    except Exception:  # a class that cannot generate at all has nothing to compare
        return []
    batch = _generated(model, sequences)
    return [(b[-1] - a[0]).norm()[None] / a[0].norm().clamp(min=1e-30) for a, b in zip(alone, batch, strict=False)]


def continued(model: LanguageModel) -> list[torch.Tensor]:
    """Deviations of what a model here predicts while it generates behind kept keys and values of all tokens but the last."""
    first = ids(model, TOTALS[0], 0)
    sequences = [first, first[:PREFIX] + ids(model, TOTALS[1] - PREFIX, 1)]
    last = max(model.sites.layers("resid_post"))
    setup = caches.setup(model, [model.sites.address("resid_post", last).seen.read(model)])
    prefix = Pass("prefix", inputs(model, [first[:PREFIX]]), setup.program)
    own = Pass("own", inputs(model, [s[PREFIX:-1] for s in sequences]), setup.program)
    rows = [BegunRow(0, row, len(s) - 1, len(s) - 1 - PREFIX) for row, s in enumerate(sequences)]
    wanted = Wanted([Block(prefix, own)], rows, TOTALS[0] - 1)
    cache, _ = enter(model, cache_of, Begun(wanted, setup, Kept(0)))
    pairs = zip(_generated(model, sequences), _generated(model, sequences, past_key_values=cache), strict=True)
    return [(b - a).norm(dim=-1) / a.norm(dim=-1).clamp(min=1e-30) for a, b in pairs]


def _generated(model: LanguageModel, sequences: Sequence[Sequence[int]], **options: Any) -> list[torch.Tensor]:
    """Logits of every step, ``[row, vocabulary]``."""
    config = GenerationConfig(
        max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, num_beams=1, pad_token_id=model.sites.encoder.pad_id,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    with warnings.catch_warnings(), torch.no_grad(), neutral(model):
        warnings.simplefilter("ignore")  # of generation: about settings that do not matter here
        output = model._module.generate(**inputs(model, sequences), generation_config=config, **options)
    return [torch.nan_to_num(logits.double(), nan=torch.inf) for logits in output.logits]


def ids(model: LanguageModel, n: int, seed: int) -> list[int]:
    """Token ids, none of them special (those change masks and positions in some families), the first third again at the end.

    Equal tokens are equal choices to what selects tokens by their content, and the width of a batch decides between them.
    """
    config, size = text_config(model._module.config), model.sites.vocab_size
    special = [field(config, f"{name}_token_id") for name in ("pad", "bos", "eos", "sep", "cls", "mask")]
    avoid = {t for token in special for t in (token if isinstance(token, (list, tuple)) else [token]) if t is not None}
    allowed = [i for i in range(min(size, 4096)) if i not in {*avoid, model.sites.encoder.pad_id}]
    drawn = torch.randint(len(allowed), (n - n // 3,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [allowed[i] for i in [*drawn, *drawn[: n // 3]]]


def _deviations(model: LanguageModel, sequences: Sequence[Sequence[int]], wanted: list[Forward]) -> list[torch.Tensor]:
    """Of some forwards, where the model lives.

    Raises:
        EmotraceError: for a model whose hidden states have more or fewer columns than the prompt has tokens.
    """
    sites, plain = model.sites, caches.options(model)
    places = [sites.address("resid_post", layer) for layer in sites.layers("resid_post")]
    places += [sites.address("logits")] if sites.has("logits") else []
    reads = ordered(a.read(model, number) for number, a in enumerate(places))
    alone = [Forward(inputs(model, [s]) | plain, ()) for s in sequences]
    setup = caches.setup(model, reads)
    shapes, deviations = enter(model, leaf.deviations, reads, alone, wanted, setup)
    tokens = len(sequences[0])
    for read, (rows, columns) in zip(reads, shapes, strict=True):
        if (rows, columns) != (1, tokens):
            a = places[read.number]
            raise EmotraceError(
                f"{sites.model_class}: {a.path!r} holds {columns} columns for {tokens} tokens (the model pads, or adds tokens, "
                "inside), so its activations cannot be told apart by token."
            )
    return deviations
