"""Directions: centred means, mean difference, PCA, similarity, and whether they are context-agnostic. Pure.

Input is a labelled array with the dims ``(layer, [sublayer], token, dim)`` in any order, or open activations; it is read
layer by layer and summed in float64. A direction is a unit vector with its norm beside it as the coordinate ``norm``.
"""

from emotrace.directions.agnosticism import context_agnosticism
from emotrace.directions.axes import pca
from emotrace.directions.estimate import centered_mean, mean_difference, mean_rms
from emotrace.directions.files import load, save
from emotrace.directions.groups import accepted, complete_groups
from emotrace.directions.similarity import similarity, sublayer_similarity

__all__ = [
    "accepted",
    "centered_mean",
    "complete_groups",
    "context_agnosticism",
    "load",
    "mean_difference",
    "mean_rms",
    "pca",
    "save",
    "similarity",
    "sublayer_similarity",
]
