"""Discovery: which nodes and edges of a model carry an emotion, with the projection on its direction as the metric.

    pairs = discovery.other_emotion(model, prompts)
    metric = discovery.Projection(directions, layer=4)
    found = discovery.scores(model, pairs, metric, method="eap_ig_activations", level="edge")

Sign everywhere: positive means that the component raises the metric; removing it lowers it.
"""

from emotrace.discovery.metrics import KL, LogitDifference, Metric, Projection, SiteFunction
from emotrace.discovery.pairs import Pair, Pairs, other_emotion, other_valence, pairs
from emotrace.discovery.scores import METHODS, mean, scores

__all__ = [
    "KL",
    "METHODS",
    "LogitDifference",
    "Metric",
    "Pair",
    "Pairs",
    "Projection",
    "SiteFunction",
    "mean",
    "other_emotion",
    "other_valence",
    "pairs",
    "scores",
]
