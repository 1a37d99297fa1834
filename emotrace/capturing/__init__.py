"""Capture: prompts → activations, labelled by layer, sublayer, token and everything the prompts carry."""

from emotrace.capturing.reduce import reduced
from emotrace.capturing.run import Dry, capture

__all__ = ["Dry", "capture", "reduced"]
