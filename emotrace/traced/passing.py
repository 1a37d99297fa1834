"""Passing: which columns of the padded sequences a forward computes, asked of what arrives in it.

How much of a sequence passes is the model's own business: with a key-value cache one new column at a time, without one (or
where a family keeps none, or drops it on the way) everything again, and a long prompt may come in pieces.
"""

from __future__ import annotations


def first(arrived: int, done: int, width: int) -> int:
    """First column of a forward.

    Args:
        arrived: columns that it computes.
        done: columns computed before it, from the first on; 0 at the beginning.
        width: columns of the prompts.

    Raises:
        ValueError: for a number that is neither the columns that are new nor all of them.
    """
    if done < width and done + arrived <= width:
        return done
    if done >= width and arrived == 1:
        return done
    if done >= width and arrived == done + 1:
        return 0
    new = f"{width - done} of a prompt" if done < width else f"1 or {done + 1}"
    raise ValueError(f"columns that arrive: a forward computes {arrived}, where {new} are due.")
