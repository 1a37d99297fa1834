"""The fitted judge: a text classifier made from labelled rows, of any labels; saved as numbers and JSON, nothing pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from emotrace import arguments, bundles, disk
from emotrace.datasets.prompts import Prompts
from emotrace.judges.base import EMPTY, Verdict, texts_of
from emotrace.judges.measurement import Labelled, Measurement, compared, labelled, measure_judge
from emotrace.labels import EmotraceError
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed

FILE: Final = "judge"
UNKNOWN: Final = "no word of it is known"
TOKEN: Final = r"(?u)\b\w[\w']*|[!?]+|[^\w\s.,;:()\"]"
"""A word with its apostrophes, a run of marks, or any other sign."""
BINS: Final = 10
"""Of equal width, of the probability of the answer given, for the calibration."""


@dataclass(frozen=True)
class FittedJudge:
    """A judge that a linear classifier of word n-grams is.

    Formula: x = TF-IDF (1 + ln count, times idf, length 1) of the n-grams that were kept; p = softmax(x Wᵀ + b); the answer is
    the label with the largest p. A text without any known n-gram is unjudged.

    Attributes:
        name: ``fitted:NAME``, which signs verdicts.
        choices: its labels.
        vocabulary: the n-grams, in the order of the columns.
        idf: weight of each n-gram.
        weights: ``[label, n-gram]``.
        bias: ``[label]``.
        card: what it was made from, and its cross-validation: accuracy, macro-F1, recall, confusion and calibration on folds that
            it was not fitted on, none of which shares a group with what it was.
        tested: measurements on rows that it was not made from (`FittedJudge.test`).
    """

    name: str
    choices: tuple[str, ...]
    vocabulary: tuple[str, ...]
    idf: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    card: Mapping[str, Any]
    tested: tuple[Measurement, ...] = field(default=())

    @cached_property
    def depends_on(self) -> dict[str, Any]:
        """All that its answers depend on."""
        numbers = [self.idf, self.weights, self.bias]
        return {"fitted": disk.digest([self.choices, self.vocabulary, self.card["ngrams"], *numbers])}

    @cached_property
    def _features(self) -> TfidfVectorizer:
        made = _vectorizer(self.card["ngrams"], {word: i for i, word in enumerate(self.vocabulary)})
        made.idf_ = self.idf
        return made

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """``[text, label]``; NaN for a text without a known n-gram."""
        texts = texts_of(self.name, texts)
        x = self._features.transform(texts) if texts else np.empty((0, len(self.vocabulary)))
        p = _softmax(x @ self.weights.T + self.bias)
        p[np.asarray(abs(x).sum(axis=1)).ravel() == 0] = np.nan
        return p

    def judge(self, texts: Sequence[str], *, progress: bool = False) -> list[Verdict]:
        """Judge each text; blank ones and those without a known word are unjudged."""
        texts = texts_of(self.name, texts)
        bar = progress_bar(texts, desc=f"judge {self.name}", unit="text", enabled=progress)
        return [self._verdict(text, p) for text, p in zip(bar, self.probabilities(texts), strict=True)]

    def _verdict(self, text: str, p: np.ndarray) -> Verdict:
        if np.isnan(p).any():
            return {"predicted": None, "judge": self.name, "reason": UNKNOWN if text.strip() else EMPTY}
        first, second = np.argsort(-p, kind="stable")[:2]
        answer = self.choices[first]
        reason = f"{answer} {p[first]:.3f}; next {self.choices[second]} {p[second]:.3f}"
        return {"predicted": answer, "judge": self.name, "reason": reason}

    def test(
        self,
        rows: Iterable[Mapping[str, Any]] | pd.DataFrame | Prompts,
        label: str = "emotion",
        *,
        on: str,
        text: str | None = None,
        groups: str | None = None,
    ) -> FittedJudge:
        """The judge with a measurement more, on rows that it was not made from: `emotrace.judges.standing` goes by these.

        Args:
            rows: as in `fit`, with labels that the judge knows.
            label: the field that holds the right answer.
            on: what the rows are, in words.
            text: as in `fit`.
            groups: as in `fit`.

        Raises:
            EmotraceError: for a text that the judge was made from.
        """
        found = labelled(rows, label, text, groups)
        seen = set(self.card["texts"])
        for i, one in enumerate(found.texts):
            if disk.digest(one) in seen:
                raise EmotraceError(
                    f"{self.name}: row {i} is among those that it was made from ({one[:60]!r}); test it on others."
                )
        table = pd.DataFrame({"text": found.texts, "label": found.labels, "group": [str(g) for g in found.groups]})
        return replace(
            self, tested=(*self.tested, measure_judge(self, table, "label", on=on, text="text", groups="group"))
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``judge.safetensors`` and ``judge.json`` into a folder, for `load_judge` and ``--judge fitted:FOLDER``."""
        about = {
            "kind": "fitted judge", "name": self.name, "choices": list(self.choices), "vocabulary": list(self.vocabulary),
            "card": dict(self.card), "tested": [m.record for m in self.tested],
        }  # fmt: skip
        return bundles.write(folder, FILE, {"idf": self.idf, "weights": self.weights, "bias": self.bias}, about)


@typed
def fit(
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame | Prompts,
    label: str = "emotion",
    *,
    name: str,
    text: str | None = None,
    groups: str | None = None,
    ngrams: Sequence[int] = (1, 2),
    least: int = 2,
    strength: float = 10.0,
    folds: int = 5,
    seed: int = 0,
) -> FittedJudge:
    """A judge from labelled rows: TF-IDF of word n-grams and a logistic regression, every label weighing the same.

    Its card holds what cross-validation found. Rows that belong together (``groups``; always those with one text) are never on
    both sides of a fold, and words are counted anew in every fold.

    Args:
        rows: mappings, a table, or prompts of plain text (`datasets.goemotions`).
        label: the field to learn; its values are texts of any kind.
        name: of the judge, which signs verdicts as ``fitted:NAME``.
        text: the field that holds the text; None: ``gen_text`` or ``text``.
        groups: the field of what belongs together, e.g. ``skeleton_id``; None: each text alone.
        ngrams: shortest and longest, in words.
        least: texts that hold an n-gram, for it to count.
        strength: inverse of the regression's penalty.
        folds: of the cross-validation.
        seed: of the folds.

    Raises:
        EmotraceError: for rows without text or label, fewer than two labels, or a label in fewer groups than folds.
    """
    found = labelled(rows, label, text, groups)
    arguments.text("fit(name)", name)
    arguments.seed("fit(seed)", seed)
    for what, value, at_least in (("least", least, 1), ("folds", folds, 2)):
        arguments.whole(f"fit({what})", value, at_least)
    arguments.number("fit(strength)", strength, above=0)
    shortest, longest = (arguments.whole("fit(ngrams)", n, 1) for n in ngrams) if len(ngrams) == 2 else (1, 0)
    if shortest > longest:
        raise EmotraceError(f"fit(ngrams={tuple(ngrams)}): the shortest and the longest, as in (1, 2).")
    labels = sorted(set(found.labels))
    if len(labels) < 2:
        raise EmotraceError(
            f"fit: the label {label!r} has one value here ({labels[0]!r}); there is nothing to tell apart."
        )
    for one in labels:
        have = len(set(found.groups[[i for i, name in enumerate(found.labels) if name == one]].tolist()))
        if have < folds:
            raise EmotraceError(
                f"fit(folds={folds}): {label} {one!r} is in {have} groups; each fold needs one. Take fewer folds."
            )
    settings: dict[str, Any] = {"ngrams": [shortest, longest], "least": least, "strength": float(strength)}
    crossed = _crossed(found, labels, settings, folds, seed, f"fitted:{name}")
    words, classifier = _learned(found.texts, found.labels, settings)
    card = {
        "label": label, "labels": {one: found.labels.count(one) for one in labels}, "n": len(found.texts),
        "n_groups": len(set(found.groups.tolist())), "groups": groups or "texts", **settings, "folds": folds, "seed": seed,
        "rows": disk.digest([found.texts, found.labels]), "texts": sorted({disk.digest(one) for one in found.texts}),
        "cross_validated": crossed,
    }  # fmt: skip
    vocabulary = tuple(str(word) for word in words.get_feature_names_out())
    weights, bias = _table(classifier)
    return FittedJudge(f"fitted:{name}", tuple(labels), vocabulary, np.asarray(words.idf_), weights, bias, card)


@typed
def load_judge(folder: str | Path) -> FittedJudge:
    """The judge that `FittedJudge.save` wrote into a folder.

    Raises:
        EmotraceError: for a folder without one, or a damaged one.
    """
    about, numbers = bundles.read(folder, FILE, "a fitted judge")
    try:
        tested = tuple(Measurement.of(record) for record in about["tested"])
        return FittedJudge(
            str(about["name"]), tuple(about["choices"]), tuple(about["vocabulary"]), numbers["idf"], numbers["weights"],
            numbers["bias"], about["card"], tested,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise EmotraceError(f"{folder}: {FILE}.json there is of no fitted judge ({error!r}).") from error


def _vectorizer(ngrams: Sequence[int], vocabulary: Mapping[str, int] | None = None, least: int = 1) -> TfidfVectorizer:
    return TfidfVectorizer(
        token_pattern=TOKEN, ngram_range=(ngrams[0], ngrams[1]), min_df=least, sublinear_tf=True, vocabulary=vocabulary
    )


def _learned(
    texts: Sequence[str], labels: Sequence[str], settings: Mapping[str, Any]
) -> tuple[TfidfVectorizer, LogisticRegression]:
    words = _vectorizer(settings["ngrams"], least=settings["least"])
    try:
        x = words.fit_transform(texts)
    except ValueError as error:
        raise EmotraceError(f"fit: no word is in {settings['least']} of the {len(texts)} texts ({error}).") from error
    regression = LogisticRegression(C=settings["strength"], class_weight="balanced", max_iter=5000)
    return words, regression.fit(x, list(labels))


def _table(regression: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a softmax over all labels; of two labels scikit-learn keeps the difference."""
    weights, bias = np.asarray(regression.coef_), np.asarray(regression.intercept_)
    if len(weights) > 1:
        return weights, bias
    return np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2


def _crossed(
    rows: Labelled, labels: Sequence[str], settings: Mapping[str, Any], folds: int, seed: int, name: str
) -> dict[str, Any]:
    """What the folds say: accuracy, macro-F1, recall, confusion, and how far probabilities are from frequencies."""
    texts, right = np.array(rows.texts, dtype=object), np.array(rows.labels, dtype=object)
    p = np.empty((len(texts), len(labels)))
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(texts, right, rows.groups)
    for train, test in splits:
        if missing := sorted(set(labels) - set(right[train])):
            raise EmotraceError(
                f"fit(folds={folds}): all groups with {missing[0]!r} came into one fold. Take fewer folds."
            )
        words, regression = _learned(texts[train].tolist(), right[train].tolist(), settings)
        p[test] = regression.predict_proba(words.transform(texts[test]))  # its classes are sorted, as the labels are
    answers = [str(labels[i]) for i in p.argmax(1)]
    found = compared(name, f"{folds} folds", rows.labels, answers, rows.groups, seed=seed)
    return found.record | {"calibration": _calibration(p.max(1), np.array(answers, dtype=object) == right)}


def _calibration(confidence: np.ndarray, hit: np.ndarray) -> dict[str, Any]:
    """Expected calibration error, Σ_bins n_b/n · |share right − mean probability|, and the bins."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {"from": b / BINS, "n": int(mine.sum()), "probability": float(confidence[mine].mean()), "right": float(hit[mine].mean())}
        for b in range(BINS)
        if (mine := place == b).any()
    ]  # fmt: skip
    error = sum(b["n"] * abs(b["right"] - b["probability"]) for b in bins) / len(hit)
    return {"expected_error": float(error), "bins": bins}


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True)) if len(x) else np.asarray(x)
    return e / e.sum(axis=1, keepdims=True)
