from emotrace.suite import raters, truthful
from emotrace.suite.measures import overlap
from emotrace.suite.measuring import measure
from emotrace.suite.paired import arms, control
from emotrace.suite.probability import EmotionClassifier
from emotrace.suite.shuffled import relabelled
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
