"""Datasets: SEV and your own files → `Prompts`."""

from emotrace.datasets.prompts import Prompt, Prompts, spread
from emotrace.datasets.sev import Skeleton, read_jsonl, read_sev, sev

__all__ = ["Prompt", "Prompts", "Skeleton", "read_jsonl", "read_sev", "sev", "spread"]
