"""Configs: read fields of a transformers configuration that may be missing, None, one number per layer, or raise."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model; the whole where there is no such part."""
    try:
        found = config.get_text_config()
    except Exception:  # several parts, or a class with rules of its own
        found = field(config, "text_config")
    return config if found is None or isinstance(found, dict) else found


def field(config: Any, name: str, default: Any = None) -> Any:
    """A field of a configuration; the default where it is missing or None, or where reading it raises.

    Properties of some configurations raise errors of their own: a field that differs by layer is ambiguous there.
    """
    try:
        found = getattr(config, name, None)
    except Exception:
        return default
    return default if found is None else found


def number(config: Any, name: str, layer: int | None = None) -> int | None:
    """A whole number of a configuration: of one layer where a layer is given and layers differ, or else of all of them.

    Args:
        config: of transformers.
        name: of the field.
        layer: 0-based; None where the number must be the same for every layer.

    Returns:
        None where there is no such number.
    """
    found = field(of_layer(config, layer), name)
    if isinstance(found, (list, tuple)):
        if layer is not None and layer < len(found):
            found = found[layer]
        elif len(set(map(repr, found))) == 1:
            found = found[0]
    return int(found) if isinstance(found, Integral) and not isinstance(found, bool) else None


def of_layer(config: Any, layer: int | None) -> Any:
    """The configuration of one layer, where a configuration has one for each."""
    if layer is None or not field(config, "is_heterogeneous", False):
        return config
    try:
        return config.per_layer_config[layer]
    except (IndexError, KeyError, TypeError, ValueError):
        return config


def numbers(config: Any, layer: int | None = None) -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration, by name."""
    for name in sorted(vars(config)):
        found = number(config, name, layer)
        if found is not None:
            yield name, found
