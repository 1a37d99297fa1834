"""RSA: do the distances between concepts in a model resemble those in people? Pure, on labelled arrays.

    x = rsa.patterns(acts.sel(variable="neuron", position="last"))           # [seed, emotion, layer, unit]
    human = rsa.read_ratings("ratings.csv")                                  # [emotion, attribute]
    attributes = rsa.attribute_rdms(human)                                   # [attribute, pair]
    rsa.compare(rsa.rdm(x, "cosine", over="seed"), attributes, permutations=10_000)
    found = rsa.searchlight(x, attributes)                                   # τ of every neuron with every attribute
    masks = rsa.select_neurons(found.tau, k=[500, 1000], draws=100)          # the best, and random ones of the same layers

Concepts are matched by name everywhere. An RDM is ``[…, pair]`` with the names of its concepts as ``first`` and ``second``.
"""

from typing import Any

from emotrace import lazy
from emotrace.lazy import public
from emotrace.rsa.attributes import (
    ATTRIBUTES,
    EMOTIONS_27,
    OLD_NAMES,
    SPACES,
    attribute_rdms,
    reference_rdms,
    space_rdms,
)
from emotrace.rsa.compare import bootstrap, compare, noise_ceiling
from emotrace.rsa.intervals import neuron_intervals
from emotrace.rsa.link import human_link
from emotrace.rsa.masking import draw_tests, drops, paired_tests, unimodality
from emotrace.rsa.masks import Masks, order, select_neurons
from emotrace.rsa.matrices import concepts, condensed, labelled, matched, rdm, square
from emotrace.rsa.patterns import patterns
from emotrace.rsa.ratings import read_dissimilarities, read_ratings
from emotrace.rsa.searchlight import searchlight
from emotrace.rsa.significance import fdr
from emotrace.rsa.text import text_control, text_rdm
from emotrace.rsa.toolbox import from_rsatoolbox, to_rsatoolbox

__all__ = [
    "ATTRIBUTES",
    "EMOTIONS_27",
    "OLD_NAMES",
    "SPACES",
    "Masks",
    "attribute_rdms",
    "bootstrap",
    "compare",
    "concepts",
    "condensed",
    "draw_tests",
    "drops",
    "fdr",
    "from_rsatoolbox",
    "human_link",
    "labelled",
    "matched",
    "neuron_intervals",
    "noise_ceiling",
    "order",
    "paired_tests",
    "patterns",
    "rdm",
    "read_dissimilarities",
    "read_ratings",
    "reference_rdms",
    "searchlight",
    "select_neurons",
    "space_rdms",
    "square",
    "text_control",
    "text_rdm",
    "to_rsatoolbox",
    "unimodality",
]


def __getattr__(name: str) -> Any:
    return lazy.moved(__name__, name)


__dir__ = public(__name__)
