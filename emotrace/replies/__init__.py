"""Replies: what a reply is (`Row`), and from rows to numbers: accuracy, fluency, doses, controls, the choice of a setting. Pure.

Every score of a reply goes through here, so that n, interval and worst case are computed in one way; the cluster is the skeleton.
"""

from emotrace.lazy import public
from emotrace.replies.accuracy import accuracy_table, confusion_table
from emotrace.replies.agreement import agreement_table
from emotrace.replies.arms import accuracy_over_draws, lifts, published_stats, summary
from emotrace.replies.claims import CLAIMS, Claim, claims
from emotrace.replies.controls import (
    deranged,
    derangement,
    norm_matched,
    random_directions,
    random_vectors,
    shuffled_labels,
)
from emotrace.replies.doses import diagonal, dose_table, emotion_matrix
from emotrace.replies.family import Comparison, compared, reread
from emotrace.replies.fluency import add_length_and_repetition, fluency_bounds, is_fluent, mark_fluent, repetition
from emotrace.replies.frontiers import frontiers
from emotrace.replies.openings import Opening, openings
from emotrace.replies.paired import fluent_test, paired_test
from emotrace.replies.refits import refit_table, refitted
from emotrace.replies.row import Row, read_rows
from emotrace.replies.search import best_dose, bisect, collapse, layer_windows, search
from emotrace.replies.table import fluent_rows, mean_of, table
from emotrace.replies.texts import response_statistics

__all__ = [
    "CLAIMS",
    "Claim",
    "Comparison",
    "Opening",
    "Row",
    "accuracy_over_draws",
    "accuracy_table",
    "add_length_and_repetition",
    "agreement_table",
    "best_dose",
    "bisect",
    "claims",
    "collapse",
    "compared",
    "confusion_table",
    "deranged",
    "derangement",
    "diagonal",
    "dose_table",
    "emotion_matrix",
    "fluency_bounds",
    "fluent_rows",
    "fluent_test",
    "frontiers",
    "is_fluent",
    "layer_windows",
    "lifts",
    "mark_fluent",
    "mean_of",
    "norm_matched",
    "openings",
    "paired_test",
    "published_stats",
    "random_directions",
    "random_vectors",
    "read_rows",
    "refit_table",
    "refitted",
    "repetition",
    "reread",
    "response_statistics",
    "search",
    "shuffled_labels",
    "summary",
    "table",
]

__dir__ = public(__name__)
