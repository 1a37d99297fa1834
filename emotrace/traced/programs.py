"""Programs: everything that one trace reads and edits, as one list in execution order.

A program is a list of steps ``("keep", order, place, key)``, ``("edit", order, group)`` and
``("read", order, place, number)``, sorted by order. Inside one forward nnsight gives values in execution order only, so
reads and edits of one forward share the list.
"""

from __future__ import annotations

from typing import Any

import torch

from emotrace.traced import edits, places


def forward(program: list, batch: int, start: int, stop: int, fired: list, sink: Any = None) -> None:
    """Run a program in the forward that computes columns ``[start, stop)``.

    Args:
        program: sorted steps.
        batch: rows in the forward.
        start: first column computed.
        stop: one past the last.
        fired: counts of the edits, one per edit; counted up.
        sink: called as ``sink(number, value)`` with ``[batch, token, width]`` at each read.
    """
    kept: dict = {}
    bases = {step[2][3] for step in program if step[0] == "edit" and edits.live(step[2], start, stop)}
    for step in program:
        if step[0] == "edit":
            edits.apply(step[2], kept, batch, start, stop, fired)
        elif step[0] == "keep":
            if step[3] in bases:
                kept[step[3]] = places.fetch(step[2], None, batch)
        else:
            value = places.fetch(step[2], None, batch)
            if sink is not None:
                sink(step[3], value)


def reaches(program: list, start: int) -> bool:
    """Whether a program edits any column from ``start`` on."""
    return any(edits.live(step[2], start, None) for step in program if step[0] == "edit")


def gather(value: torch.Tensor, spans: tuple, uniform: tuple | None) -> torch.Tensor:
    """Rows of ``[batch, token, width]`` that are wanted, ``[row, width]``.

    Args:
        value: what a place holds.
        spans: ``(batch row, first token, one past the last)`` in the columns of this forward.
        uniform: ``(rows, tokens)`` index tensors where every span is one token, else None.
    """
    if uniform is not None:
        return value[uniform[0], uniform[1]]
    return torch.cat([value[b, t0:t1] for b, t0, t1 in spans])
