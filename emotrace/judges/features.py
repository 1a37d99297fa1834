"""Features of texts that a fitted judge weighs: its words, or what a local model makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from emotrace import provenance, shown
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

    def learnt(self, texts: Sequence[str], weights: np.ndarray | None = None) -> Features:
        """The same features, scaled or counted by these texts, of which each weighs so much in a mean."""
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
    """Word n-grams, or n-grams of the characters of each word: (1 + ln count) · idf, length 1.

    Attributes:
        ngrams: shortest and longest, in words or characters.
        least: texts that hold an n-gram, for it to count.
        vocabulary: the n-grams, in the order of the columns.
        idf: weight of each.
        of_characters: n-grams of characters, which know a word by its parts.
    """

    ngrams: tuple[int, int]
    least: int = 1
    vocabulary: tuple[str, ...] = ()
    idf: np.ndarray = field(default_factory=lambda: np.empty(0))
    of_characters: bool = False
    __repr__ = shown.brief

    def learnt(self, texts: Sequence[str], weights: np.ndarray | None = None) -> Words:
        """The n-grams of these texts.

        Raises:
            EmotraceError: where no n-gram is in enough of them.
        """
        words = vectorizer(self.ngrams, least=self.least, of_characters=self.of_characters)
        try:
            words.fit(texts)
        except ValueError as error:
            raise EmotraceError(f"fit: no word is in {self.least} of the {len(texts)} texts ({error}).") from error
        found = tuple(map(str, words.get_feature_names_out()))
        return Words(self.ngrams, self.least, found, np.asarray(words.idf_), self.of_characters)

    @cached_property
    def _made(self) -> TfidfVectorizer:
        known = {word: i for i, word in enumerate(self.vocabulary)}
        made = vectorizer(self.ngrams, known, of_characters=self.of_characters)
        made.idf_ = self.idf
        return made

    def of(self, texts: Sequence[str]) -> Any:
        """``[text, n-gram]``, sparse."""
        return self._made.transform(texts) if len(texts) else sparse.csr_matrix((0, len(self.vocabulary)))

    @property
    def record(self) -> dict[str, Any]:
        """The vocabulary, and which n-grams it is of."""
        kind = "characters" if self.of_characters else "words"
        return {
            "ngrams": {"of": kind, "lengths": list(self.ngrams), "least": self.least},
            "vocabulary": list(self.vocabulary),
        }

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """``idf``."""
        return {"idf": self.idf}


@dataclass(frozen=True)
class Pooled:
    """Sentence embeddings: the mean of a local model's residual stream over the tokens of a text, scaled; a layer's has length 1.

    Special tokens are left out of the mean. Any causal or masked model does that `emotrace.load` takes; a text is given as it
    is, without a chat template.

    Attributes:
        source: as `emotrace.load` takes it.
        layers: whose ``resid_post`` is read, one behind the other.
        identity: of the model that the judge was made with; another one under the same name is refused.
        mean: ``[layer, dim]`` over the texts learnt from.
        scale: likewise the standard deviation.
    """

    source: str
    layers: tuple[int, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    mean: np.ndarray = field(default_factory=lambda: np.empty(0))
    scale: np.ndarray = field(default_factory=lambda: np.empty(0))
    known: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    __repr__ = shown.brief

    @classmethod
    def made(cls, source: str, layers: Sequence[int] | None) -> Pooled:
        """Of a model that is loaded now; ``layers`` None for its last one."""
        lm = _loaded(source)
        at = (lm.sites.n_layers - 1,) if layers is None else tuple(layers)
        for layer in at:
            lm.sites.address("resid_post", layer)  # refuses what there is not
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

    def learnt(self, texts: Sequence[str], weights: np.ndarray | None = None) -> Pooled:
        """Scaled by these texts."""
        x = self.raw(texts)
        w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
        w = np.where(np.abs(x).sum((1, 2)) > 0, w, 0.0)
        if not w.sum():
            raise EmotraceError(f"fit: none of the {len(texts)} texts has a token of {self.source}.")
        w = w[:, None, None] / w.sum()
        mean = (w * x).sum(0)
        scale = np.maximum(np.sqrt((w * (x - mean) ** 2).sum(0)), 1e-6)
        found = Pooled(self.source, self.layers, self.identity, mean, scale, self.known)
        vars(found)["_model"] = self._model
        return found

    def raw(self, texts: Sequence[str]) -> np.ndarray:
        """``[text, layer, dim]`` means over tokens; zeros for a text without any. Each text is read once."""
        from emotrace.forwards.capturing import capture

        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        special = set(self._model.sites.encoder.tokenizer.all_special_ids)
        width = int(self._model.sites.d_model)
        for start in range(0, len(new), CHUNK):
            some = [text for text in new[start : start + CHUNK] if text.strip()]
            self.known.update({text: np.zeros((len(self.layers), width)) for text in new[start : start + CHUNK]})
            if not some:
                continue
            acts = capture(
                self._model,
                Prompts.of(some),
                "resid_post",
                layers=sorted(set(self.layers)),
                positions="all",
                progress=False,
            )
            held = acts.residual.sel(layer=list(self.layers)).transpose("token", "layer", "sublayer", "dim")
            values = np.asarray(held.values, dtype=np.float64).reshape(-1, len(self.layers), width)
            own = ~acts.tokens["token_id"].isin(list(special)).to_numpy()
            at = acts.tokens["prompt"].to_numpy()
            sums, counts = np.zeros((len(some), *values.shape[1:])), np.bincount(at[own], minlength=len(some))
            np.add.at(sums, at[own], values[own])
            self.known.update(zip(some, sums / np.maximum(counts, 1)[:, None, None], strict=True))
        return np.array([self.known[text] for text in texts]).reshape(len(texts), len(self.layers), width)

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """``[text, layer · dim]``."""
        x = self.raw(texts)
        read = np.abs(x).sum((1, 2), keepdims=True) > 0
        z = np.where(read, (x - self.mean) / self.scale, 0.0)
        z = z / np.maximum(np.linalg.norm(z, axis=2, keepdims=True), 1e-12)
        return z.reshape(len(texts), -1)

    @property
    def record(self) -> dict[str, Any]:
        """Model and layers."""
        return {"embeddings": {"source": self.source, "layers": list(self.layers), "identity": dict(self.identity)}}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """``mean`` and ``scale``."""
        return {"mean": self.mean, "scale": self.scale}


def _loaded(source: str) -> LanguageModel:
    from emotrace.model import load  # here: judges of words need no model library

    return load(source)


@dataclass(frozen=True)
class Joined:
    """Several features, one behind the other.

    Attributes:
        parts: of them.
    """

    parts: tuple[Words | Pooled, ...]

    def learnt(self, texts: Sequence[str], weights: np.ndarray | None = None) -> Joined:
        """Every part by these texts."""
        return Joined(tuple(part.learnt(texts, weights) for part in self.parts))

    def of(self, texts: Sequence[str]) -> Any:
        """``[text, feature]``, sparse."""
        return sparse.hstack([sparse.csr_matrix(part.of(texts)) for part in self.parts]).tocsr()

    @property
    def record(self) -> dict[str, Any]:
        """The parts'."""
        return {"parts": [part.record for part in self.parts]}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The parts', behind their number."""
        return {f"{i}.{name}": x for i, part in enumerate(self.parts) for name, x in part.arrays.items()}


def read(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Features:
    """The features that a saved judge has."""
    if "parts" in about:
        return Joined(
            tuple(
                _one(part, {name.partition(".")[2]: x for name, x in arrays.items() if name.startswith(f"{i}.")})
                for i, part in enumerate(about["parts"])
            )
        )
    return _one(about, arrays)


def _one(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Words | Pooled:
    if "embeddings" in about:
        one = about["embeddings"]
        layers = tuple(int(layer) for layer in one["layers"])
        return Pooled(str(one["source"]), layers, one["identity"], arrays["mean"], arrays["scale"])
    if "ngrams" in about:
        one = about["ngrams"]
        lengths, least, of_characters = one["lengths"], int(one["least"]), one["of"] == "characters"
    else:  # as judges of words alone were saved at first
        lengths, least, of_characters = about["card"]["ngrams"], int(about["card"]["least"]), False
    return Words((int(lengths[0]), int(lengths[1])), least, tuple(about["vocabulary"]), arrays["idf"], of_characters)


def vectorizer(
    ngrams: Sequence[int], vocabulary: Mapping[str, int] | None = None, least: int = 1, of_characters: bool = False
) -> TfidfVectorizer:
    """TF-IDF of n-grams, as the judges count them."""
    made = TfidfVectorizer(ngram_range=(ngrams[0], ngrams[1]), min_df=least, sublinear_tf=True, vocabulary=vocabulary)
    return made.set_params(**({"analyzer": "char_wb"} if of_characters else {"token_pattern": TOKEN}))
