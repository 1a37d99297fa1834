"""RSA: do the distances between concepts in a model resemble those in people? Pure, on labelled arrays."""

from emotrace.rsa.masks import Masks, order, select

__all__ = ["Masks", "order", "select"]
