"""Beginnings: which prompts may share a forward, and which may share the computation of their first tokens.

Both are proven once per model, on its shrunken twin and on the weights, and remembered as ``model.sites.beginnings``:

* *padding is neutral*: a padded batch gives what each prompt gives alone. Where it does not (positions that a model counts
  its own way, convolutions and recurrences over padding), prompts run in batches of one length;
* *beginnings are shared*: a prompt behind kept keys and values of its first tokens comes out alike.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from emotrace import checkpoints, configs
from emotrace.configs import text_config
from emotrace.disk import cache
from emotrace.forwards import proof
from emotrace.forwards import rows as rows_
from emotrace.forwards.entering import backend
from emotrace.labels import EmotraceError
from emotrace.sites import LanguageModel
from emotrace.sites import twin as twins
from emotrace.sites.finding import record_ids

MIN_PREFIX = 8
"""A common beginning is worth a pass of its own from this many tokens on."""


@dataclass
class Beginnings:
    """What a model allows.

    Attributes:
        padded: tokens up to which prompts of unequal length may be padded together; infinity, or 0 for never.
        batched: whether prompts of equal length may run together.
        shared: tokens, padding included, up to which prompts may begin with kept keys and values; 0 for never.
        confirmed: whether ``shared``, shown on the twin, was confirmed on the weights.
        continued: whether replies come out alike that are generated behind kept keys and values.
        about: of what it was shown, where that is kept.
    """

    padded: float = math.inf
    batched: bool = True
    shared: float = math.inf
    confirmed: bool = False
    continued: bool = False
    about: Any = field(default=None, repr=False, compare=False)

    def keep(self) -> None:
        """Keep it in the user's cache, where it says of what it was shown."""
        if self.about is not None:
            known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "about"}
            cache.keep("beginnings", self.about, {k: None if v == math.inf else v for k, v in known.items()})

    @classmethod
    def read(cls, known: dict[str, Any], about: Any) -> Beginnings:
        """What was kept."""
        values: dict[str, Any] = {k: math.inf if v is None else v for k, v in known.items()}
        return cls(**values, about=about)

    def allows(self, lengths: Sequence[int]) -> bool:
        """Whether prompts of these lengths, in one padded batch, come out as each does alone."""
        one_length = len(set(lengths)) == 1
        return len(lengths) == 1 or (self.batched and (one_length or max(lengths) <= self.padded))

    def __str__(self) -> str:
        if not self.batched:
            return "one prompt at a time (prompts of a batch change each other)"
        if not self.padded:
            return "padding is not neutral: batches of one length; beginnings not shared"
        padded = "padding is neutral" + _up_to(self.padded)
        return f"{padded}; beginnings {f'shared{_up_to(self.shared)}' if self.shared else 'not shared'}"


def of(model: LanguageModel) -> Beginnings:
    """What was proven of a model; proves it where that was not done yet."""
    if model.sites.beginnings is None:
        model.sites.beginnings = prove(model)
    return model.sites.beginnings


def batches(
    model: LanguageModel, lengths: Sequence[int], size: int | Callable[[int], int], rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Rows in batches that give each what it gives alone: the longest first, always the same for the same lengths.

    Args:
        model: from `emotrace.load`.
        lengths: tokens of every row, those that it will generate included.
        size: most rows of a batch, or what makes it of the length of its longest row; fewer where rows are long (`rows`).
        rows: which rows; None for all.
    """
    order = longest_first(lengths, rows)
    parts = neighbours(model, [(lengths[i],) for i in order], size)
    return [order[part.start : part.stop] for part in parts]


def longest_first(lengths: Sequence[int], rows: Sequence[int] | None = None) -> list[int]:
    """The order in which rows are cut into batches, and into the blocks of first tokens that these begin with: were they cut in
    two orders, a batch would need a row of most blocks.

    Args:
        lengths: tokens of every row.
        rows: which rows; None for all.
    """
    return sorted(range(len(lengths)) if rows is None else rows, key=lambda i: (-lengths[i], i))


def neighbours(
    model: LanguageModel, lengths: Sequence[tuple[int, ...]], size: int | Callable[[int], int]
) -> list[range]:
    """As `batches`, of rows that stay in order: each has several sequences, which run with those of the other rows.

    Args:
        model: from `emotrace.load`.
        lengths: tokens of every sequence of every row.
        size: most rows of a batch, or what makes it of the length of its first row.
    """
    known = of(model)
    parts, start = [], 0
    while start < len(lengths):
        asked = max(1, size if isinstance(size, int) else size(max(lengths[start])))
        most = rows_.within(asked, max(map(max, lengths[start : start + asked]))) if known.batched else 1
        stop = min(start + most, len(lengths))
        if max(map(max, lengths[start:stop])) > known.padded:
            stop = next((i for i in range(start, stop) if lengths[i] != lengths[start]), stop)
        parts.append(range(start, stop))
        start = stop
    return parts


def shared_up_to(model: LanguageModel) -> float:
    """Tokens up to which prompts may begin with kept keys and values; the first to ask has it confirmed on the weights."""
    known, where = of(model), backend(model)
    if where.copies:  # keys and values would be sent to and fro
        return 0
    if known.shared and not known.confirmed and where.holds(model):
        known.shared, known.confirmed = known.shared if _shares(model, briefly=True) else 0, True
        known.keep()
    return known.shared


def common(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all sequences begin with, at least two tokens short of the shortest; nothing where that is not worth a pass."""
    first, last = min(map(list, sequences)), max(map(list, sequences))  # what these two share all share
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    shared = min(shared, min(map(len, sequences)) - 2)
    return tuple(first[:shared]) if shared >= MIN_PREFIX else ()


def refuse_coupled(model: LanguageModel, what: str) -> None:
    """Refuse what runs copies of a prompt beside each other, where prompts of a batch change each other.

    Raises:
        EmotraceError: for such a model.
    """
    if not of(model).batched:
        raise EmotraceError(f"{what}: in {model.sites.model_class} the prompts of a batch change each other.")


# -- the proof --------------------------------------------------------------------------------------------------------


def prove(model: LanguageModel) -> Beginnings:
    """What a model allows: shown on its twin, padding confirmed on the weights wherever they are.

    Raises:
        EmotraceError: for a model whose hidden states have more or fewer columns than the prompt has tokens.
    """
    sites = model.sites
    twin, sites.twin = sites.twin, None
    if twin is None:
        return _shown(model, proof.LENGTHS)
    known = _of_twin(model, twin)
    if not backend(model).holds(model):
        return known
    if known.padded and not proof.alike(model, proof.together(model, proof.SHORT)):
        known = replace(known, padded=0, shared=0)
    if not known.padded and known.batched:
        known = replace(known, batched=proof.alike(model, proof.together(model, proof.ALIKE)))
    return known


_TWINS: dict[tuple[Any, ...], Beginnings] = {}


def _of_twin(model: LanguageModel, twin: nn.Module) -> Beginnings:
    """What a twin shows, once per configuration; where windows are the reason, its limit is a window of the model."""
    module, encoder = model._module, model.sites.encoder
    about = (module.config.to_json_string(), str(configs.field(module.config, "_attn_implementation", "")))
    key = (type(module), *about, encoder.causal, encoder.pad_id)
    if key not in _TWINS:
        known = _shown(_attached(model, twin), proof.LENGTHS)
        reach = _reach(module)
        if not (known.padded and (known.shared or not encoder.causal)) and math.isfinite(reach):
            wide = twins.shrunken(module, record_ids, windows=False)[0]
            if wide is not None:
                within = _attached(model, wide)
                padded = known.padded or (reach if _neutral(within, proof.LENGTHS) else 0)
                shared = known.shared or (reach if padded and encoder.causal and _shares(within) else 0)
                continued = known.continued if known.shared else bool(shared) and _continues(within)
                known = Beginnings(padded, known.batched, min(padded, shared), continued=continued)
        _TWINS[key] = known
    return replace(_TWINS[key])


def _shown(model: LanguageModel, lengths: Sequence[int]) -> Beginnings:
    """What a model with its weights here shows on a few prompts."""
    causal = model.sites.encoder.causal
    if _neutral(model, lengths):
        shared = causal and _shares(model)
        return Beginnings(shared=math.inf if shared else 0, continued=shared and _continues(model))
    return Beginnings(0, _neutral(model, proof.ALIKE), 0)


def _neutral(model: LanguageModel, lengths: Sequence[int]) -> bool:
    if not proof.alike(model, proof.together(model, lengths)):
        return False
    if not model.sites.encoder.causal:
        return True
    try:
        return proof.alike(model, proof.replies(model, lengths))
    except Exception:  # in whatever words a family says that it cannot generate from a padded batch
        return False


def _shares(model: LanguageModel, briefly: bool = False) -> bool:
    try:
        return proof.alike(model, proof.shared(model, briefly))
    except Exception:  # a family without a plain key-value cache: computing every prompt whole is always right
        return False


def _continues(model: LanguageModel) -> bool:
    try:
        return proof.alike(model, proof.continued(model))
    except Exception:  # a family that does not generate, or not behind a cache it is given
        return False


def _attached(model: LanguageModel, twin: nn.Module) -> LanguageModel:
    """A twin as an nnsight model with the sites of its original."""
    vocabulary = int(twin.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    encoder = copy.copy(model.sites.encoder)
    encoder.pad_id = min(encoder.pad_id, vocabulary - 1)
    wrapped = checkpoints.wrapped(twin, model.tokenizer)
    sites = replace(model.sites, vocab_size=vocabulary, remote=None, twin=None, _places={})
    sites.attach(wrapped, encoder)
    return wrapped


def _reach(module: nn.Module) -> float:
    """Tokens that no window of a model cuts."""
    config = module.config
    parts = {id(c): c for c in (config, text_config(config))}.values()
    return min((size // 2 for part in parts for _, _, size in twins.windows_of(part)), default=math.inf)


def _up_to(tokens: float) -> str:
    return "" if math.isinf(tokens) else f" up to {int(tokens)} tokens"
