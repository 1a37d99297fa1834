"""Features of texts that a fitted judge weighs: its words, or what a local model makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from emotrace import provenance
from emotrace.datasets import Prompts
from emotrace.labels import EmotraceError

if TYPE_CHECKING:
    from emotrace.sites import LanguageModel

TOKEN: Final = r"(?u)\b\w[\w']*|[!?]+|[^\w\s.,;:()\"]"
"""A word with its apostrophes, a run of marks, or any other sign."""
CHUNK: Final = 256
"""Texts whose tokens are held at a time."""


class Features(Protocol):
    """Texts → numbers. What is counted or scaled is learnt from texts (`learnt`), what is read is not."""

    def learnt(self, texts: Sequence[str]) -> Features:
        """The same features, scaled or counted by these texts."""
        ...

    def of(self, texts: Sequence[str]) -> Any:
        """``[text, feature]``, dense or sparse; a row of zeros for a text of which nothing is known."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """For JSON: what gives the features back, beside `arrays`."""
        ...

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What was learnt."""
        ...


@dataclass(frozen=True)
class Words:
    """Word n-grams: (1 + ln count) · idf, length 1.

    Attributes:
        ngrams: shortest and longest, in words.
        least: texts that hold an n-gram, for it to count.
        vocabulary: the n-grams, in the order of the columns.
        idf: weight of each.
    """

    ngrams: tuple[int, int]
    least: int = 1
    vocabulary: tuple[str, ...] = ()
    idf: np.ndarray = field(default_factory=lambda: np.empty(0))

    def learnt(self, texts: Sequence[str]) -> Words:
        """The n-grams of these texts.

        Raises:
            EmotraceError: where no n-gram is in enough of them.
        """
        words = vectorizer(self.ngrams, least=self.least)
        try:
            words.fit(texts)
        except ValueError as error:
            raise EmotraceError(f"fit: no word is in {self.least} of the {len(texts)} texts ({error}).") from error
        return Words(self.ngrams, self.least, tuple(map(str, words.get_feature_names_out())), np.asarray(words.idf_))

    @cached_property
    def _made(self) -> TfidfVectorizer:
        made = vectorizer(self.ngrams, {word: i for i, word in enumerate(self.vocabulary)})
        made.idf_ = self.idf
        return made

    def of(self, texts: Sequence[str]) -> Any:
        """``[text, n-gram]``, sparse."""
        return self._made.transform(texts) if len(texts) else sparse.csr_matrix((0, len(self.vocabulary)))

    @property
    def record(self) -> dict[str, Any]:
        """The vocabulary; the n-grams are in the card."""
        return {"vocabulary": list(self.vocabulary)}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """``idf``."""
        return {"idf": self.idf}


@dataclass(frozen=True)
class Pooled:
    """Sentence embeddings: the mean of a local model's residual stream over the tokens of a text, scaled, length 1.

    Special tokens are left out of the mean. Any causal or masked model does that `emotrace.load` takes; a text is given as it
    is, without a chat template.

    Attributes:
        source: as `emotrace.load` takes it.
        layer: whose ``resid_post`` is read.
        identity: of the model that the judge was made with; another one under the same name is refused.
        mean: of each dim over the texts learnt from.
        scale: likewise its standard deviation.
    """

    source: str
    layer: int
    identity: Mapping[str, Any] = field(default_factory=dict)
    mean: np.ndarray = field(default_factory=lambda: np.empty(0))
    scale: np.ndarray = field(default_factory=lambda: np.empty(0))
    known: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def made(cls, source: str, layer: int | None) -> Pooled:
        """Of a model that is loaded now; ``layer`` None for its last one."""
        lm = _loaded(source)
        at = lm.sites.n_layers - 1 if layer is None else layer
        lm.sites.address("resid_post", at)  # refuses what there is not
        known = lm.sites.identity
        found = cls(source, at, {key: known[key] for key in provenance.KEYS if key in known})
        vars(found)["_model"] = lm
        return found

    @cached_property
    def _model(self) -> LanguageModel:
        lm = _loaded(self.source)
        if not provenance.same(self.identity, lm.sites.identity):
            raise EmotraceError(f"a judge was fitted on embeddings of {self.source}, and another model is there now.")
        return lm

    def learnt(self, texts: Sequence[str]) -> Pooled:
        """Scaled by these texts."""
        x = self.raw(texts)
        x = x[np.abs(x).sum(1) > 0]
        if not len(x):
            raise EmotraceError(f"fit: none of the {len(texts)} texts has a token of {self.source}.")
        found = Pooled(self.source, self.layer, self.identity, x.mean(0), np.maximum(x.std(0), 1e-6), self.known)
        vars(found)["_model"] = self._model
        return found

    def raw(self, texts: Sequence[str]) -> np.ndarray:
        """``[text, dim]`` means over tokens; zeros for a text without any. Each text is read once."""
        from emotrace.forwards.capturing import capture

        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        special = set(self._model.sites.encoder.tokenizer.all_special_ids)
        width = int(self._model.sites.d_model)
        for start in range(0, len(new), CHUNK):
            some = [text for text in new[start : start + CHUNK] if text.strip()]
            self.known.update({text: np.zeros(width) for text in new[start : start + CHUNK]})
            if not some:
                continue
            acts = capture(
                self._model, Prompts.of(some), "resid_post", layers=[self.layer], positions="all", progress=False
            )
            values = np.asarray(acts.residual.values, dtype=np.float64).reshape(-1, width)
            own = ~acts.tokens["token_id"].isin(list(special)).to_numpy()
            at = acts.tokens["prompt"].to_numpy()
            sums, counts = np.zeros((len(some), width)), np.bincount(at[own], minlength=len(some))
            np.add.at(sums, at[own], values[own])
            self.known.update(zip(some, sums / np.maximum(counts, 1)[:, None], strict=True))
        return np.array([self.known[text] for text in texts]).reshape(len(texts), width)

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """``[text, dim]``."""
        x = self.raw(texts)
        read = np.abs(x).sum(1, keepdims=True) > 0
        z = np.where(read, (x - self.mean) / self.scale, 0.0)
        return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)

    @property
    def record(self) -> dict[str, Any]:
        """Model and layer."""
        return {"embeddings": {"source": self.source, "layer": self.layer, "identity": dict(self.identity)}}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """``mean`` and ``scale``."""
        return {"mean": self.mean, "scale": self.scale}


def _loaded(source: str) -> LanguageModel:
    from emotrace.model import load  # here: judges of words need no model library

    return load(source)


def read(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Words | Pooled:
    """The features that a saved judge has."""
    if "embeddings" in about:
        one = about["embeddings"]
        return Pooled(str(one["source"]), int(one["layer"]), one["identity"], arrays["mean"], arrays["scale"])
    shortest, longest = about["card"]["ngrams"]
    return Words((int(shortest), int(longest)), int(about["card"]["least"]), tuple(about["vocabulary"]), arrays["idf"])


def vectorizer(ngrams: Sequence[int], vocabulary: Mapping[str, int] | None = None, least: int = 1) -> TfidfVectorizer:
    """TF-IDF of word n-grams, as the judges count them."""
    return TfidfVectorizer(
        token_pattern=TOKEN, ngram_range=(ngrams[0], ngrams[1]), min_df=least, sublinear_tf=True, vocabulary=vocabulary
    )
