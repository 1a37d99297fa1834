"""Forwards: how a model is entered, and which prompts may share a forward and its first tokens."""
