"""Stats: intervals, permutation, FDR, dip, accuracy with its doubt, fluency. Pure; the cluster is the skeleton.

Every score of the package goes through here, so that n, interval and worst case are computed in one way.
"""

from emotrace.stats.accuracy import accuracy_table, confusion
from emotrace.stats.doses import bisect, diagonal, dose_table, emotion_matrix
from emotrace.stats.fluency import fluency_bounds, is_fluent, repetition
from emotrace.stats.intervals import bootstrap_ci, cluster_weights, fdr_bh, wilson
from emotrace.stats.paired import paired_test, sign_flip
from emotrace.stats.responses import response_statistics
from emotrace.stats.unimodal import dip, dip_test

__all__ = [
    "accuracy_table",
    "bisect",
    "bootstrap_ci",
    "cluster_weights",
    "confusion",
    "diagonal",
    "dip",
    "dip_test",
    "dose_table",
    "emotion_matrix",
    "fdr_bh",
    "fluency_bounds",
    "is_fluent",
    "paired_test",
    "repetition",
    "response_statistics",
    "sign_flip",
    "wilson",
]
