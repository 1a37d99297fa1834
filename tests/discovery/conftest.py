"""Planted circuits, built once."""

from __future__ import annotations

import functools

import pytest

from emotrace.testing.planted_circuits import PlantedCircuit, planted_circuit


@functools.cache
def planted(name: str) -> PlantedCircuit:
    return planted_circuit(name)


@pytest.fixture(scope="session")
def circuits():
    """Name of a shape → its planted circuit."""
    return planted
