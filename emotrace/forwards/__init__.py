"""Forwards: everything that runs a model on prompts: captures, replies, reruns, and how a model is entered.

Whoever runs a model goes through `entering`, which knows where it lives; which prompts may share a forward, and which the
computation of their first tokens, is proven once per model (`beginnings`).
"""
