"""The fitted judge: a text classifier made from labelled rows, of any labels; saved as numbers and JSON, nothing pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from emotrace import arguments, bundles, disk, shown
from emotrace.datasets.prompts import Prompts
from emotrace.judges import features as features_
from emotrace.judges.base import EMPTY, Verdict, texts_of
from emotrace.judges.features import Features, Joined, Pooled, Words
from emotrace.judges.measurement import Labelled, Measurement, compared, labelled, measure_judge
from emotrace.labels import EmotraceError
from emotrace.shown import progress as progress_bar
from emotrace.signatures import typed

FILE: Final = "judge"
UNKNOWN: Final = "no word of it is known"
BINS: Final = 10
"""Of equal width, of the probability of the answer given, for the calibration."""


@dataclass(frozen=True)
class FittedJudge:
    """A judge that a linear classifier of n-grams and sentence embeddings is.

    Formula: p = softmax(x Wᵀ + b), x being the features of a text (`emotrace.judges.features`: TF-IDF of n-grams, or a local
    model's mean over tokens); the answer is the label with the largest p. A text of which nothing is known is unjudged.

    Attributes:
        name: ``fitted:NAME``, which signs verdicts.
        choices: its labels.
        features: what it weighs.
        weights: ``[label, feature]``.
        bias: ``[label]``.
        card: what it was made from, and its cross-validation: accuracy, macro-F1, recall, confusion and calibration on folds that
            it was not fitted on, none of which shares a group with what it was.
        tested: measurements on rows that it was not made from (`FittedJudge.test`).
    """

    name: str
    choices: tuple[str, ...]
    features: Features
    weights: np.ndarray
    bias: np.ndarray
    card: Mapping[str, Any]
    tested: tuple[Measurement, ...] = field(default=())
    __repr__ = shown.brief

    @cached_property
    def depends_on(self) -> dict[str, Any]:
        """All that its answers depend on."""
        learnt = list(self.features.arrays.values())
        if isinstance(self.features, Words) and not self.features.of_characters:  # signs as it always did
            about: list[Any] = [self.features.vocabulary, list(self.features.ngrams)]
        else:
            about = [self.features.record]
        return {"fitted": disk.digest([self.choices, *about, *learnt, self.weights, self.bias])}

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """``[text, label]``; NaN for a text of which nothing is known."""
        x = self.features.of(texts_of(self.name, texts))
        p = softmax(x @ self.weights.T + self.bias, axis=1)
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
            rows: mappings, a table, or prompts of plain text, with labels that the judge knows.
            label: the field that holds the right answer.
            on: what the rows are, in words.
            text: the field that holds the text; None: ``gen_text`` or ``text``.
            groups: the field of what belongs together; None: each text alone.

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
            "kind": "fitted judge", "name": self.name, "choices": list(self.choices), **self.features.record,
            "card": dict(self.card), "tested": [m.record for m in self.tested],
        }  # fmt: skip
        return bundles.write(folder, FILE, {**self.features.arrays, "weights": self.weights, "bias": self.bias}, about)


@typed
def fit(
    rows: Iterable[Mapping[str, Any]] | pd.DataFrame | Prompts,
    label: str = "emotion",
    *,
    name: str,
    text: str | None = None,
    groups: str | None = None,
    sets: str | None = None,
    ngrams: Sequence[int] | None = (1, 2),
    characters: Sequence[int] | None = None,
    least: int = 2,
    embeddings: str | Path | None = None,
    layers: Sequence[int] | None = None,
    strength: float = 10.0,
    folds: int = 5,
    seed: int = 0,
) -> FittedJudge:
    """A judge from labelled rows: features of their texts and a logistic regression, every label weighing the same.

    Features are, one behind the other, TF-IDF of word n-grams (``ngrams``), of n-grams of the characters of each word
    (``characters``), and what a local model makes of each text (``embeddings``): the mean of its residual stream over the tokens,
    each dim scaled over the texts, each layer's of length 1.

    Its card holds what cross-validation found. Rows that belong together (``groups``; always those with one text) are never on
    both sides of a fold, and words are counted anew in every fold.

    Args:
        rows: mappings, a table, or prompts of plain text (`datasets.goemotions`).
        label: the field to learn; its values are texts of any kind.
        name: of the judge, which signs verdicts as ``fitted:NAME``.
        text: the field that holds the text; None: ``gen_text`` or ``text``.
        groups: the field of what belongs together, e.g. ``skeleton_id``; None: each text alone.
        sets: the field that says which labelled set a row is of, where labels are not by who is to be judged but by people, say.
            Every set weighs the same, and what the folds say of each counts as a measurement on rows that the judge has not seen
            (`emotrace.judges.standing`); None: the folds are for the card alone.
        ngrams: shortest and longest, in words; None for none.
        characters: likewise, in characters; None for none.
        least: texts that hold an n-gram, for it to count.
        embeddings: a model as `emotrace.load` takes it, causal or masked; None for none. The judge loads it by the same name
            again, and refuses another one there.
        layers: of the model, whose ``resid_post`` is read; None for the last.
        strength: inverse of the regression's penalty.
        folds: of the cross-validation.
        seed: of the folds.

    Raises:
        EmotraceError: for rows without text or label, fewer than two labels, or a label in fewer groups than folds.
    """
    rows = rows if isinstance(rows, (pd.DataFrame, Prompts)) else list(rows)
    found = labelled(rows, label, text, groups)
    arguments.text("fit(name)", name)
    arguments.seed("fit(seed)", seed)
    for what, value, at_least in (("least", least, 1), ("folds", folds, 2)):
        arguments.whole(f"fit({what})", value, at_least)
    arguments.number("fit(strength)", strength, above=0)
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
    parts: list[Words | Pooled] = []
    settings: dict[str, Any] = {"strength": float(strength)}
    for what, lengths in (("ngrams", ngrams), ("characters", characters)):
        if lengths is not None:
            parts.append(Words(_lengths(what, lengths), least, of_characters=what == "characters"))
            settings |= {what: list(lengths), "least": least}
    if embeddings is not None:
        parts.append(Pooled.made(str(embeddings), layers))
        settings |= parts[-1].record
    elif layers is not None:
        raise EmotraceError(f"fit(layers={layers}): layers of the model that embeddings=… names; there is none.")
    if not parts:
        raise EmotraceError("fit: nothing to weigh; give ngrams, characters or embeddings.")
    base: Features = parts[0] if len(parts) == 1 else Joined(tuple(parts))
    of_set = _sets(rows, sets, len(found.texts))
    crossed, tested = _crossed(found, labels, base, strength, folds, seed, f"fitted:{name}", of_set)
    learnt, classifier = _learned(found.texts, found.labels, base, strength, of_set)
    card = {
        "label": label, "labels": {one: found.labels.count(one) for one in labels}, "n": len(found.texts),
        "n_groups": len(set(found.groups.tolist())), "groups": groups or "texts", **settings, "folds": folds, "seed": seed,
        "rows": disk.digest([found.texts, found.labels]), "texts": sorted({disk.digest(one) for one in found.texts}),
        "cross_validated": crossed,
    }  # fmt: skip
    return FittedJudge(f"fitted:{name}", tuple(labels), learnt, *_table(classifier), card, tested if sets else ())


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
            str(about["name"]), tuple(about["choices"]), features_.read(about, numbers), numbers["weights"], numbers["bias"],
            about["card"], tested,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise EmotraceError(f"{folder}: {FILE}.json there is of no fitted judge ({error!r}).") from error


def _lengths(what: str, lengths: Sequence[int]) -> tuple[int, int]:
    shortest, longest = (arguments.whole(f"fit({what})", n, 1) for n in lengths) if len(lengths) == 2 else (1, 0)
    if shortest > longest:
        raise EmotraceError(f"fit({what}={tuple(lengths)}): the shortest and the longest, as in (1, 2).")
    return shortest, longest


def _sets(rows: Any, sets: str | None, n: int) -> np.ndarray:
    """The set of every row; one where nothing says so."""
    if sets is None:
        return np.full(n, "")
    if isinstance(rows, Prompts):
        found = [p.labels.get(sets) for p in rows]
    else:
        found = [row.get(sets) for row in (rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows)]
    for i, one in enumerate(found):
        if not isinstance(one, str) or not one.strip():
            raise EmotraceError(f"{arguments.said(f'row {i}: {sets}', one)}: the name of a labelled set is due.")
    return np.array(found)


def _learned(
    texts: Sequence[str], labels: Sequence[str], base: Features, strength: float, of_set: np.ndarray
) -> tuple[Features, LogisticRegression]:
    """Features and regression; every set weighs the same, as every label does."""
    _, at, counts = np.unique(of_set, return_inverse=True, return_counts=True)
    weights = len(at) / (len(counts) * counts[at])
    learnt = base.learnt(texts, weights)
    regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000)
    return learnt, regression.fit(learnt.of(texts), list(labels), sample_weight=weights)


def _table(regression: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a softmax over all labels; of two labels scikit-learn keeps the difference."""
    weights, bias = np.asarray(regression.coef_), np.asarray(regression.intercept_)
    if len(weights) > 1:
        return weights, bias
    return np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2


def _crossed(
    rows: Labelled,
    labels: Sequence[str],
    base: Features,
    strength: float,
    folds: int,
    seed: int,
    name: str,
    of_set: np.ndarray,
) -> tuple[dict[str, Any], tuple[Measurement, ...]]:  # fmt: skip
    """What folds say: accuracy, macro-F1, recall, confusion, and how far probabilities are from frequencies; each set apart."""
    texts, right = np.array(rows.texts, dtype=object), np.array(rows.labels, dtype=object)
    p = np.empty((len(texts), len(labels)))
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(texts, right, rows.groups)
    for train, test in splits:
        if missing := sorted(set(labels) - set(right[train])):
            raise EmotraceError(
                f"fit(folds={folds}): all groups with {missing[0]!r} came into one fold. Take fewer folds."
            )
        learnt, regression = _learned(texts[train].tolist(), right[train].tolist(), base, strength, of_set[train])
        p[test] = regression.predict_proba(learnt.of(texts[test].tolist()))  # its classes are sorted, as the labels are
    answers = [str(labels[i]) for i in p.argmax(1)]
    found = compared(name, f"{folds} folds", rows.labels, answers, rows.groups, seed=seed)
    each = []
    for one in sorted(set(of_set.tolist())):
        mine = np.flatnonzero(of_set == one)
        groups = np.unique(rows.groups[mine], return_inverse=True)[1]
        each.append(
            compared(name, f"{one}, {folds} folds", right[mine].tolist(), [answers[i] for i in mine], groups, seed=seed)
        )
    hit = np.array(answers, dtype=object) == right
    return found.record | {"calibration": _calibration(p.max(1), hit)}, tuple(each)


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
