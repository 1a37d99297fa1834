"""Defaults that functions, commands and studies share, each said once; importing them imports nothing else."""

from __future__ import annotations

from typing import Final

MAX_NEW_TOKENS: Final = 60
"""Most tokens of a reply."""
BATCH_SIZE: Final = 32
"""Prompts per batch."""
NEURONS_PER_LAYER: Final = 20
"""Neurons that each layer gives to a circuit."""
HEADS_PER_LAYER: Final = 2
"""Heads likewise."""
