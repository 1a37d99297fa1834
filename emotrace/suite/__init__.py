"""Suite: what steering does to replies: paired arms and controls, measures of text, topic and emotion, TruthfulQA.

Offline everything has a default; topic and intensity then are proxies, and are signed as such. ``lm-eval`` runs under edits
through `harness.adapter`.
"""

from typing import Any

from emotrace import lazy
from emotrace.suite import raters, truthful
from emotrace.suite.arms import arms, control
from emotrace.suite.measured import measure
from emotrace.suite.measures import overlap
from emotrace.suite.probability import EmotionClassifier
from emotrace.suite.relabelled import relabelled
from emotrace.suite.summary import summarise, value_of

__all__ = [
    "EmotionClassifier",
    "arms",
    "control",
    "measure",
    "overlap",
    "raters",
    "relabelled",
    "summarise",
    "truthful",
    "value_of",
]


def __getattr__(name: str) -> Any:
    return lazy.moved(__name__, name)
