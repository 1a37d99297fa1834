"""Datasets: SEV, GoEmotions, EmotionQuery, TruthfulQA and your own files → `Prompts`."""

from emotrace.datasets.elicitation import Elicitation, elicitation, elicitations, read_elicitations
from emotrace.datasets.goemotions import class_counts, goemotions, read_goemotions
from emotrace.datasets.overlap import hold_out, refuse_shared, shared, split
from emotrace.datasets.own import is_sev, read_prompts
from emotrace.datasets.prompts import Prompt, PromptLike, Prompts, PromptsLike, spread
from emotrace.datasets.queries import Query, emotion_query, query_report, read_queries
from emotrace.datasets.sev import Skeleton, read_sev, sev
from emotrace.datasets.truthfulqa import Question, read_truthfulqa, truthfulqa
from emotrace.files import read_jsonl
from emotrace.lazy import public

__all__ = [
    "Elicitation",
    "Prompt",
    "PromptLike",
    "Prompts",
    "PromptsLike",
    "Query",
    "Question",
    "Skeleton",
    "class_counts",
    "elicitation",
    "elicitations",
    "emotion_query",
    "goemotions",
    "hold_out",
    "is_sev",
    "query_report",
    "read_elicitations",
    "read_goemotions",
    "read_jsonl",
    "read_prompts",
    "read_queries",
    "read_sev",
    "read_truthfulqa",
    "refuse_shared",
    "sev",
    "shared",
    "split",
    "spread",
    "truthfulqa",
]

__dir__ = public(__name__)
