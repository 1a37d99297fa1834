"""Stats: intervals, permutation, corrections, agreement, dip, ties. Pure, on numbers; scores of replies: `emotrace.replies`."""

from typing import Any

from emotrace import lazy
from emotrace.lazy import public
from emotrace.stats.agreement import Agreement, cohen_kappa, krippendorff_alpha
from emotrace.stats.corrections import fdr_bh, holm
from emotrace.stats.intervals import bootstrap_ci, cluster_weights, refit_ci, wilson
from emotrace.stats.permutation import exchange, sign_flip
from emotrace.stats.unimodal import dip, dip_test

__all__ = [
    "Agreement",
    "bootstrap_ci",
    "cluster_weights",
    "cohen_kappa",
    "dip",
    "dip_test",
    "exchange",
    "fdr_bh",
    "holm",
    "krippendorff_alpha",
    "refit_ci",
    "sign_flip",
    "wilson",
]


def __getattr__(name: str) -> Any:
    return lazy.moved(__name__, name)


__dir__ = public(__name__)
