"""Stats: intervals, permutation, FDR, dip, ties. Pure, on numbers; scores of replies are in `emotrace.replies`."""

from typing import Any

from emotrace import lazy
from emotrace.stats.intervals import bootstrap_ci, cluster_weights, fdr_bh, wilson
from emotrace.stats.permutation import exchange, sign_flip
from emotrace.stats.unimodal import dip, dip_test

__all__ = [
    "bootstrap_ci",
    "cluster_weights",
    "dip",
    "dip_test",
    "exchange",
    "fdr_bh",
    "sign_flip",
    "wilson",
]


def __getattr__(name: str) -> Any:
    return lazy.moved(__name__, name)
