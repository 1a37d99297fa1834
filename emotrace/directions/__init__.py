"""Directions: centred means, mean difference, PCA, similarity, and whether they are context-agnostic. Pure.

Input is a labelled array with the dims ``(layer, [sublayer], token, dim)`` in any order, or open activations; it is read
layer by layer and summed in float64. A direction is a unit vector with its norm beside it as the coordinate ``norm``.
"""

from emotrace.directions.agnosticism import context_agnosticism
from emotrace.directions.axes import pca
from emotrace.directions.contrast import auroc, contrast
from emotrace.directions.estimate import centered_mean, mean_difference, mean_rms
from emotrace.directions.files import load, save
from emotrace.directions.groups import accepted, complete_groups
from emotrace.directions.mixtures import mixed, parse_mix
from emotrace.directions.projection import project
from emotrace.directions.selectors import only_layers, orthogonal_to, top_k, without
from emotrace.directions.shift import base_vector, paired_shift
from emotrace.directions.similarity import similarity, sublayer_similarity
from emotrace.directions.vectors import vectors
from emotrace.lazy import public

__all__ = [
    "accepted",
    "auroc",
    "base_vector",
    "centered_mean",
    "complete_groups",
    "context_agnosticism",
    "contrast",
    "load",
    "mean_difference",
    "mean_rms",
    "mixed",
    "only_layers",
    "orthogonal_to",
    "paired_shift",
    "parse_mix",
    "pca",
    "project",
    "save",
    "similarity",
    "sublayer_similarity",
    "top_k",
    "vectors",
    "without",
]

__dir__ = public(__name__)
