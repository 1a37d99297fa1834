"""Datasets: SEV, GoEmotions and your own files → `Prompts`."""

from emotrace.datasets.goemotions import class_counts, goemotions, read_goemotions
from emotrace.datasets.prompts import Prompt, Prompts, spread
from emotrace.datasets.sev import Skeleton, read_jsonl, read_sev, sev

__all__ = [
    "Prompt",
    "Prompts",
    "Skeleton",
    "class_counts",
    "goemotions",
    "read_goemotions",
    "read_jsonl",
    "read_sev",
    "sev",
    "spread",
]
