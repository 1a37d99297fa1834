"""The likelihood judge: which answer a causal model finds likeliest after a question about the text; nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from emotrace import arguments
from emotrace.datasets.prompts import Prompt, Prompts
from emotrace.forwards.likelihood import continued, reply_logprobs
from emotrace.judges.base import EMPTY, Verdict, texts_of
from emotrace.labels import ANSWERS, EmotraceError
from emotrace.model import load
from emotrace.sites import LanguageModel

QUESTION: Final = '"{text}" This text expresses the emotion of'
"""A sentence for the answer to end, as running text: a small model answers it far better than a question in a chat message
(chosen among eight ways to ask on `data/goemotions_sample.csv`, which no judge is tested on)."""
NOTHING: Final = "N/A"
"""The text without content whose answers say what the model prefers whatever it reads."""


class LikelihoodJudge:
    """A judge that compares how likely each answer is to follow a question about the text.

    Formula: score[a] = Σ_t ln p(a_t | question(text), a_<t) − Σ_t ln p(a_t | question("N/A"), a_<t); the answer is the argmax.
    The second term takes away what the model answers whatever it reads (contextual calibration: Zhao et al. 2021,
    arXiv 2102.09690).

    Args:
        model: hub id or directory of a causal model, or one from `emotrace.load`.
        choices: the answers.
        question: plain text that the answer goes on, without a chat template; with ``{text}``, and perhaps ``{answers}``.
        calibrated: whether the second term is subtracted.
        batch_size: of the forwards.
        device: ``auto`` or a torch device, of a model named.

    Raises:
        EmotraceError: for fewer than two choices, a question without ``{text}``, or a model that gives texts no likelihood.
    """

    def __init__(
        self,
        model: str | Path | LanguageModel,
        *,
        choices: Sequence[str] = ANSWERS,
        question: str = QUESTION,
        calibrated: bool = True,
        batch_size: int = 32,
        device: str = "auto",
    ) -> None:
        self.choices = arguments.names("LikelihoodJudge(choices)", choices)
        if len(self.choices) < 2 or "{text}" not in question:
            raise EmotraceError(
                f"LikelihoodJudge(choices={list(self.choices)}, question={question!r}): two answers or more, and a question "
                "with {text}."
            )
        self.model = load(str(model), device=device) if isinstance(model, (str, Path)) else model
        if not self.model.sites.encoder.causal:
            raise EmotraceError(f"{self.model.sites.model_class} is a masked model: it gives answers no likelihood.")
        self.question, self.calibrated, self.batch_size = question, calibrated, batch_size
        self.name = f"likelihood:{self.model.sites.identity['model_id']}"

    @property
    def depends_on(self) -> dict[str, Any]:
        """The model's weights, how it is asked, and what it may answer."""
        known = self.model.sites.identity
        return {
            **{n: known[n] for n in ("config_hash", "weights_hash", "dtype")}, "template": self.model.sites.encoder.record,
            "choices": list(self.choices), "question": self.question, "calibrated": self.calibrated,
        }  # fmt: skip

    def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
        """Judge each text; blank ones are unjudged."""
        texts = texts_of(self.name, texts)
        some = [i for i, text in enumerate(texts) if text.strip()]
        found = dict(zip(some, self.scores([texts[i] for i in some], progress), strict=True)) if some else {}
        return [
            self._verdict(found[i]) if i in found else {"predicted": None, "judge": self.name, "reason": EMPTY}
            for i in range(len(texts))
        ]

    def scores(self, texts: Sequence[str], progress: bool = False) -> np.ndarray:
        """``[text, choice]``, in nats."""
        found = self._likelihoods(texts, progress)
        return found - self._nothing if self.calibrated else found

    @cached_property
    def _nothing(self) -> np.ndarray:
        return self._likelihoods([NOTHING], False)

    def _likelihoods(self, texts: Sequence[str], progress: bool) -> np.ndarray:
        forced = []
        for i, text in enumerate(texts):
            said = self.question.replace("{answers}", ", ".join(self.choices), 1).replace("{text}", text, 1)
            asked = Prompt(f"{i}", text=said)
            blank = "" if said[-1:].isspace() else " "
            forced += [continued(self.model, asked, f"{blank}{answer}", f"{i} {answer}") for answer in self.choices]
        sums = [one.sum() for one in reply_logprobs(self.model, Prompts(forced), self.batch_size, progress)]
        return np.array(sums).reshape(len(texts), len(self.choices))

    def _verdict(self, scores: np.ndarray) -> Verdict:
        first, second = np.argsort(-scores, kind="stable")[:2]
        answer = self.choices[first]
        reason = f"{answer} {scores[first]:+.2f} nats; next {self.choices[second]} {scores[second]:+.2f}"
        return {"predicted": answer, "judge": self.name, "reason": reason}
