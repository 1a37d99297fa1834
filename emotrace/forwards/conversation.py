"""Conversation: a chat with a model whose replies are steered by a mixture that may change from turn to turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from transformers import StoppingCriteria, StoppingCriteriaList

from emotrace import arguments
from emotrace import edits as edits_
from emotrace.datasets import Prompt
from emotrace.directions.mixtures import Mix, parse_mix
from emotrace.edits import Edit, mixture
from emotrace.forwards import decoding as decoding_
from emotrace.forwards.entering import backend
from emotrace.forwards.finite import Item
from emotrace.forwards.generated import generated
from emotrace.labels import EmotraceError, unknown
from emotrace.sites import LanguageModel

Tell = Callable[[str], None]
DECODING: Mapping[str, Any] = {
    "max_new_tokens": 200, "min_new_tokens": 0, "do_sample": False, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "use_cache": True,
}  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        text: without special tokens.
        token_ids: without the end token.
        stopped: whether the model ended it, rather than ``max_new_tokens`` or the user.
        fired: how often each edit was carried out.
    """

    text: str
    token_ids: tuple[int, ...]
    stopped: bool
    fired: tuple[int, ...]


class Conversation:
    """Several turns with one model; what was said before is in the prompt of every turn.

    The mixture acts where its positions say: with ``steer`` from the last token of the prompt on, so what was said in earlier
    turns is read as it stands, without it.

    Args:
        model: from `emotrace.load`; causal.
        vectors: ``[emotion, layer, dim]``.
        mix: weights by name (`emotrace.directions.parse_mix`); None or nothing for the model as it is.
        strength: of the mixture.
        system: system message; None for none.
        seed: of sampling; turn t is drawn from ``seed + t``, base and steered alike.
        decoding: arguments of `emotrace.generate`, e.g. ``max_new_tokens`` (200 where nothing is said), ``do_sample``.
        where: ``site``, ``layers``, ``scale`` and ``positions`` of `emotrace.edits.mixture`.

    Raises:
        EmotraceError: for a masked model, or vectors, a mixture and settings that do not fit.
    """

    def __init__(
        self,
        model: LanguageModel,
        vectors: xr.DataArray,
        mix: Mix | None = None,
        *,
        strength: float = 1.0,
        system: str | None = None,
        seed: int = 0,
        decoding: Mapping[str, Any] | None = None,
        **where: Any,
    ) -> None:
        if not model.sites.encoder.causal:
            raise EmotraceError(f"{model.sites.model_class} is a masked model: it does not converse.")
        known = (*DECODING, "temperature", "top_p", "top_k")
        for name in decoding or {}:
            if name not in known:
                raise unknown("option", name, known, "Conversation(decoding=…)")
        if system is not None:
            arguments.encodable("Conversation(system)", system)
        self.model, self.vectors, self.system, self.seed = model, vectors, system, seed
        self.decoding = {**DECODING, **(decoding or {})}
        self.where = where
        self.emotions = [str(v) for v in vectors["emotion"].values]
        self.history: list[dict[str, str]] = []
        self.turn = 0
        self._strength, self._mix = strength, dict[str, float]()
        self._edits = self._made(mix or {}, strength)
        self._mix = parse_mix(mix or {}, self.emotions)

    @property
    def mix(self) -> dict[str, float]:
        """Weights by emotion; empty for the model as it is."""
        return dict(self._mix)

    @mix.setter
    def mix(self, mix: Mix) -> None:
        self._edits, self._mix = self._made(mix, self._strength), parse_mix(mix, self.emotions)

    @property
    def strength(self) -> float:
        """Factor of the mixture."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        self._edits, self._strength = self._made(self._mix, strength), strength

    @property
    def edits(self) -> list[Edit]:
        """What is applied to the next reply."""
        return list(self._edits)

    @property
    def label(self) -> str:
        """The mixture in a few letters, e.g. ``joy=1``; ``base`` where there is none."""
        if not self._edits:
            return "base"
        weights = ",".join(f"{name}={weight:g}" for name, weight in self._mix.items())
        return weights if self._strength == 1 else f"{weights} ×{self._strength:g}"

    def say(self, text: str, tell: Tell | None = None, stop: Callable[[], bool] | None = None) -> Reply:
        """The next turn: what the user says, and the steered reply, both of which are kept.

        Args:
            text: what the user says.
            tell: called with each piece of the reply as it is generated; on a server once, with the whole.
            stop: asked after every token whether to end the reply; what was said until then is kept.

        Raises:
            EmotraceError: for an empty text, or a conversation too long for the model; nothing is kept then.
        """
        reply = self.answer(text, tell, stop)
        self.history += [{"role": "user", "content": text}, {"role": "assistant", "content": reply.text}]
        self.turn += 1
        return reply

    def answer(
        self, text: str, tell: Tell | None = None, stop: Callable[[], bool] | None = None, *, steered: bool = True
    ) -> Reply:
        """A reply to the next turn that is not kept.

        Args:
            text: what the user says.
            tell: called with each piece of the reply as it is generated; on a server once, with the whole.
            stop: asked after every token whether to end the reply; what was said until then is the reply.
            steered: by the mixture; False is the model as it is.

        Raises:
            EmotraceError: for an empty text, or a conversation too long for the model.
        """
        if not text.strip():
            raise EmotraceError("there is nothing to reply to.")
        before = [{"role": "system", "content": self.system}] if self.system else []
        messages = (*before, *self.history, {"role": "user", "content": text})
        return _reply(
            self.model, Prompt(f"turn {self.turn}", messages=messages), self._edits if steered else [],
            self.decoding, self.seed + self.turn, tell, stop,
        )  # fmt: skip

    def reset(self) -> None:
        """Forget what was said; the mixture stays."""
        self.history, self.turn = [], 0

    def _made(self, mix: Mix, strength: float) -> list[Edit]:
        edits = mixture(self.vectors, mix, strength=strength, **self.where)
        edits_.check(edits, self.model.sites)
        return edits


class _Streamer(StoppingCriteria):
    """Hands on the text of a growing reply, and ends it on demand; called by transformers after every token."""

    def __init__(self, decode: Callable[[list[int]], str], start: int, tell: Tell, stop: Callable[[], bool]) -> None:
        self.decode, self.start, self.tell, self.stop = decode, start, tell, stop
        self.shown = ""

    def __call__(self, input_ids: torch.LongTensor, scores: object, **kwargs: Any) -> Any:
        self.show(input_ids[0, self.start :].tolist())
        return torch.full((len(input_ids),), bool(self.stop()), dtype=torch.bool, device=input_ids.device)

    def show(self, ids: list[int], whole: bool = False) -> None:
        """Tell what is new; half a character, or a text that the next token may still change, waits."""
        text = self.decode(ids)
        text = text if whole else text.rstrip("\ufffd")
        if text.startswith(self.shown) and len(text) > len(self.shown):
            self.tell(text[len(self.shown) :])
            self.shown = text


def _reply(
    model: LanguageModel,
    prompt: Prompt,
    edits: list[Edit],
    decoding: dict[str, Any],
    seed: int,
    tell: Tell | None,
    stop: Callable[[], bool] | None,
) -> Reply:
    encoder, sites = model.sites.encoder, model.sites
    ids = encoder.ids([prompt])[0]
    most = int(decoding["max_new_tokens"])
    if encoder.max_length is not None and len(ids) + most > encoder.max_length:
        raise EmotraceError(
            f"the conversation has {len(ids)} tokens; with {most} of a reply that is more than the {encoder.max_length} of "
            f"{sites.model_class}. Forget it (/reset), or ask for fewer tokens."
        )
    config = decoding_.configuration(model, decoding, encoder.pad_id)
    options: dict[str, Any] = {}
    streamer = _Streamer(encoder.decode, len(ids), tell or (lambda _: None), stop or (lambda: False))
    if backend(model).streams:
        options["stopping_criteria"] = StoppingCriteriaList([streamer])
    drawn = seed if decoding["do_sample"] else None
    item = Item(prompt.key, ids, about=prompt.about)
    (reply,), fired = generated(model, [item], edits, config, drawn, **options)
    edits_.refuse_silent(edits, fired)
    streamer.show(list(reply.token_ids), whole=True)
    return Reply(*reply, tuple(fired))
