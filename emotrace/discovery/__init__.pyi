from emotrace.discovery.aligned import Pair, Pairs
from emotrace.discovery.as_edits import edits
from emotrace.discovery.evaluation import POINTS, curve, evaluate, faithfulness, run_circuits
from emotrace.discovery.files import load_discovery, save_discovery
from emotrace.discovery.methods import METHODS, Level, mean, scores
from emotrace.discovery.metrics import KL, LogitDifference, Projection, SiteFunction
from emotrace.discovery.pairing import other_emotion, other_valence, pairs
from emotrace.discovery.selection import jaccard, live, nodes_of, select
from emotrace.discovery.stability import across, bootstrap_circuits, random_like, significance
from emotrace.discovery.stored import attribution_patching
from emotrace.forwards.metrics import Metric

__all__ = [
    "KL",
    "METHODS",
    "POINTS",
    "Level",
    "LogitDifference",
    "Metric",
    "Pair",
    "Pairs",
    "Projection",
    "SiteFunction",
    "across",
    "attribution_patching",
    "bootstrap_circuits",
    "curve",
    "edits",
    "evaluate",
    "faithfulness",
    "jaccard",
    "live",
    "load_discovery",
    "mean",
    "nodes_of",
    "other_emotion",
    "other_valence",
    "pairs",
    "random_like",
    "run_circuits",
    "save_discovery",
    "scores",
    "select",
    "significance",
]
