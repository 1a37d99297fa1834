"""Groups: how many rows of a store are committed at once, so that little is computed twice."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from emotrace.forwards.rows import ROWS
from emotrace.store import Plan
from emotrace.store.plan import FEWEST_INNER, INNER_ROWS

MAX_ROWS = 2048
"""At most so many rows between two commits."""
FORWARD_COST = 0.25
"""What one more forward costs, as a share of a full batch; the rest of its cost is in its prompts."""


def fitted(plan: Plan, row_group_bytes: int, batch_size: int = ROWS) -> Plan:
    """The plan with the row group, between half the budget and the budget, that wastes least.

    Groups of many rows are shards, whose inner chunks have to divide them.
    A prompt whose rows lie in two groups is computed for both, and a group is not computed in full batches only. So
    where prompts are equally long, groups are cut between batches.

    Args:
        plan: of the whole prompt set.
        row_group_bytes: budget of one group.
        batch_size: prompts per forward; what a store is cut into does not depend on the batches that fill it.
    """
    per_row = sum(v.row_bytes for v in plan.variables)
    most = max(min(row_group_bytes // per_row, MAX_ROWS, plan.n_rows), plan.row_group)
    step = FEWEST_INNER if most > INNER_ROWS else 1
    whole = -(-plan.n_rows // step) * step
    sizes = range(most - most % step, max(1, most // 2) - 1, -step)
    if most == plan.n_rows and whole * per_row <= row_group_bytes:
        sizes = [whole, *sizes]
    best = min(sizes, key=lambda size: (round(_waste(plan, size, batch_size), 3), -size))
    return replace(plan, row_group=best)


def _waste(plan: Plan, size: int, batch_size: int) -> float:
    """Work beyond that of one group for everything, as a share of it: prompts computed twice and forwards half full."""
    starts = plan.rows.prompt_starts
    cuts = np.append(np.arange(0, plan.n_rows, size), plan.n_rows)
    first = np.searchsorted(starts, cuts[:-1], side="right") - 1
    last = np.searchsorted(starts, cuts[1:])
    prompts = last - first
    forwards = int(np.ceil(prompts / batch_size).sum()) / math.ceil(len(starts) / batch_size)
    padding = (len(prompts) * size - plan.n_rows) / plan.n_rows  # the last chunk is written whole
    return int(prompts.sum()) / len(starts) - 1 + FORWARD_COST * (forwards - 1) + 0.1 * padding
