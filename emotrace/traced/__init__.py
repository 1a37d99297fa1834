"""Every line of emotrace that runs inside a trace.

A leaf: it imports torch, math, collections, typing, nnsight and itself, takes and returns plain tensors and tuples, and
is registered with nnsight so that it ships by value to a remote server.
"""
