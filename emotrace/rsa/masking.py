"""Masking: what the accuracies with masked neurons say: drops against random masks, paired tests, the link to people.

A table has one row per accuracy, with the columns ``emotion, seed, attribute, k, kind, draw, accuracy`` (the labels are those
of `Masks`; ``kind`` may also be ``none``). ``drop`` = accuracy under random masks − under the selective mask: positive, the
chosen neurons matter more than others. The published difference is its negative.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import scipy
import xarray as xr

from emotrace import arguments
from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.masks import DRAWN, SHARED
from emotrace.rsa.significance import RULES, fdr
from emotrace.signatures import typed
from emotrace.stats import dip_test
from emotrace.stats.ties import TIED

UNITS: Final = ("emotion", "seed", "attribute", "k")
"""What tells the cells of a table apart, in the order of its rows here."""
COLUMNS: Final = (*UNITS, "kind", "draw", "accuracy")
NONE: Final = "none"
"""The kind of an accuracy without a mask; its attribute, k and draw do not matter."""

Groups = dict[tuple[Any, ...], list[float]]


class MaskCell(NamedTuple):
    """What tells a row of a table: `UNITS`, by name."""

    emotion: str
    seed: int
    attribute: str
    k: int


@typed
def drops(table: pd.DataFrame) -> pd.DataFrame:
    """Selective against random masks, one row per (emotion, seed, attribute, k) that has both.

    Random masks of the attribute `SHARED` count for every attribute. Selective cells without a random mask of that k, and
    random ones without a selective, are left out; ``attrs["left_out"]`` counts them.

    Args:
        table: columns `COLUMNS`.

    Returns:
        Columns ``emotion, seed, attribute, k, selective, random`` (mean of the draws), ``drop, n_draws``; with rows of the kind
        `NONE` also ``unmasked`` and ``loss`` = unmasked − selective.

    Raises:
        EmotraceError: for a missing column, an unknown kind, a repeated row, an accuracy outside [0, 1], or no pair at all.
    """
    chosen, random, bare = _split(table, UNITS)
    both = [c for c in chosen if c in random]
    if not both:
        raise EmotraceError("drops: no selective mask has a random mask of the same emotion, seed, attribute and k.")
    rows = []
    for cell in both:
        where = MaskCell(*cell)
        mine, others, plain = chosen[cell][0], mean_of(random[cell]), bare.get((where.emotion, where.seed))
        rows.append((*cell, mine, others, others - mine, len(random[cell])))
        if bare:
            if plain is None:
                raise EmotraceError(
                    f"drops: no unmasked accuracy of {where.emotion!r}, seed {where.seed!r}, though others have one."
                )
            rows[-1] += (mean_of(plain), mean_of(plain) - mine)
    more = ["unmasked", "loss"] if bare else []
    out = pd.DataFrame(rows, columns=pd.Index([*UNITS, "selective", "random", "drop", "n_draws", *more]))
    out.attrs["left_out"] = {"selective": len(chosen) - len(both), "random": len(random) - len(both)}
    return out


@typed
def paired_tests(
    table: pd.DataFrame,
    by: Sequence[str] = ("k", "attribute"),
    *,
    units: str | Sequence[str] | None = None,
    rule: str = "bh",
    level: float = 0.95,
) -> pd.DataFrame:
    """Is the mean drop above 0? A paired t-test in every group.

    Rows that share a unit are averaged first, so that n counts what is independent. The published tests count every row
    (``units=("emotion", "seed", "attribute")``), and correct with ``rule="published"``.

    Args:
        table: of `drops`.
        by: columns that define the groups, e.g. ``("k", "attribute")`` or ``("k", "emotion")``.
        units: what is drawn; None: the emotions, or the seeds where the groups are of one emotion.
        rule: `fdr` over all groups.
        level: of the two-sided interval.

    Returns:
        Per group ``n, drop, lo, hi, t, df, p`` (one-sided: drop > 0) and ``q``. Where all drops of a group are equal, t is
        infinite, or NaN with p = 1 if they are 0.

    Raises:
        EmotraceError: for unknown columns, or a group of fewer than two units.
    """
    by = list(by)
    units = [units] if isinstance(units, str) else units
    drawn = [u for u in units if u not in by] if units is not None else ["seed" if "emotion" in by else "emotion"]
    for name in (*by, *drawn):
        if name not in UNITS:
            raise unknown("column", name, UNITS, "paired_tests")
    if rule not in RULES:
        raise unknown("rule", rule, RULES, "paired_tests")
    groups: Groups = defaultdict(list)
    for cell, values in grouped(table, [*by, *drawn], "drop").items():
        groups[cell[: len(by)]].append(mean_of(values))
    rows = []
    for key, values in groups.items():
        if len(values) < 2:
            raise EmotraceError(
                f"paired_tests: {dict(zip(by, key, strict=True))} has {len(values)} {' × '.join(drawn)}; at least 2 are needed."
            )
        rows.append((*key, len(values), *t_test(np.array(values), level, "greater")))
    out = pd.DataFrame(rows, columns=pd.Index([*by, "n", "drop", "lo", "hi", "t", "df", "p"]))
    out["q"] = fdr(xr.DataArray(out["p"].to_numpy()), rule).values
    out.attrs.update(by=by, units=drawn, rule=rule, level=level, alternative="greater")
    return out


@typed
def draw_tests(table: pd.DataFrame, by: Sequence[str] = ("k", "attribute")) -> pd.DataFrame:
    """Does the selective mask hurt more than random masks do? Its rank among many draws, in every group.

    Each draw is one mask, evaluated on the same emotions and seeds as the selective one, and the accuracies are averaged over
    them: p = (1 + draws whose mean accuracy is at most the selective one) / (1 + draws). Unlike a t-test over emotions this
    says that *these neurons* are special, not that this one random mask was lucky. With n draws p is at least 1/(n + 1).

    Args:
        table: columns `COLUMNS`.
        by: groups; k and attribute must be among them, since draws belong to them.

    Returns:
        Per group ``selective, random, drop, sd`` (of the draws), ``hurts_more`` (share of the draws that it hurts more than),
        ``n_draws`` and ``p``.

    Raises:
        EmotraceError: if a draw lacks an emotion or seed that the selective mask has.
    """
    by = list(by)
    if not {"k", "attribute"} <= set(by) <= set(UNITS):
        raise EmotraceError(f"draw_tests(by={by}): 'k' and 'attribute', and perhaps 'emotion' and 'seed'.")
    chosen, random, _ = _split(table, by, draws=True)
    draws: dict[tuple[Any, ...], dict[Any, list[float]]] = defaultdict(dict)
    for (*key, draw), values in random.items():
        draws[tuple(key)][draw] = values
    rows = []
    for key, mine in chosen.items():
        for draw, values in draws.get(key, {}).items():
            if len(values) != len(mine):
                raise EmotraceError(
                    f"draw_tests: draw {draw} of {dict(zip(by, key, strict=True))} has {len(values)} accuracies, the selective "
                    f"mask {len(mine)}; evaluate it on all of them, or leave it out."
                )
        means, here = np.array([mean_of(v) for v in draws.get(key, {}).values()]), mean_of(mine)
        if len(means):
            as_bad = int((means <= here + 1e-12).sum())
            sd = float(means.std(ddof=1)) if len(means) > 1 else np.nan
            share, p = 1 - as_bad / len(means), (1 + as_bad) / (1 + len(means))
            rows.append((*key, here, means.mean(), means.mean() - here, sd, share, len(means), p))
    if not rows:
        raise EmotraceError("draw_tests: no selective mask has random masks of the same attribute and k.")
    names = ["selective", "random", "drop", "sd", "hurts_more", "n_draws", "p"]
    return pd.DataFrame(rows, columns=pd.Index([*by, *names]))


@typed
def unimodality(table: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Dip test of the drops of all emotions (mean over seeds), per k and attribute: does a mask work on some emotions only?

    Args:
        table: with the columns ``k, attribute, emotion, drop``.
        draws: uniform samples.
        seed: of the draws.

    Returns:
        Columns ``k, attribute, dip, p, n``.
    """
    arguments.resampling("unimodality", seed, draws=draws)
    groups: Groups = defaultdict(list)
    for (k, attribute, _), values in grouped(table, ["k", "attribute", "emotion"], "drop").items():
        groups[k, attribute].append(mean_of(values))
    rows = [(*key, *dip_test(values, draws, seed), len(values)) for key, values in groups.items()]
    return pd.DataFrame(rows, columns=pd.Index(["k", "attribute", "dip", "p", "n"]))


def grouped(table: pd.DataFrame, by: Sequence[str], value: str) -> Groups:
    """The values of every group, in the order in which the groups occur."""
    for name in (*by, value):
        if name not in table:
            raise unknown("column", name, table.columns, "the table")
    found: Groups = {}
    for *key, one in zip(*(table[c].tolist() for c in (*by, value)), strict=True):
        found.setdefault(tuple(key), []).append(one)
    return found


def _split(table: pd.DataFrame, by: Sequence[str], draws: bool = False) -> tuple[Groups, Groups, Groups]:
    """Accuracies of the selective masks by group; of the random ones (by group and draw); unmasked by emotion and seed."""
    for name in COLUMNS:
        if name not in table:
            raise unknown("column", name, table.columns, "the table of accuracies, which needs it")
    parts: dict[str, Groups] = {kind: {} for kind in (*DRAWN, NONE)}
    seen: set[tuple[Any, ...]] = set()
    kinds, accuracies = table["kind"].tolist(), table["accuracy"].tolist()
    labels = [MaskCell(*cell) for cell in zip(*(table[c].tolist() for c in UNITS), strict=True)]
    attributes = dict.fromkeys(cell.attribute for cell, kind in zip(labels, kinds, strict=True) if kind == "selective")
    at = [UNITS.index(c) for c in by]
    for cell, kind, draw, accuracy in zip(labels, kinds, table["draw"].tolist(), accuracies, strict=True):
        if kind not in parts:
            raise unknown("kind", kind, parts, "the table of accuracies")
        if not 0 <= accuracy <= 1:
            raise EmotraceError(f"the table of accuracies holds {accuracy} for {dict(zip(UNITS, cell, strict=True))}.")
        if kind == NONE:
            parts[NONE].setdefault((cell.emotion, cell.seed), []).append(accuracy)
            continue
        name = (*cell, kind, draw if kind == "random" else -1)
        if name in seen:
            what = dict(zip((*UNITS, "kind", "draw"), name, strict=True))
            raise EmotraceError(f"the table of accuracies has two rows for {what}.")
        seen.add(name)
        for attribute in attributes if cell.attribute == SHARED else (cell.attribute,):
            whole = cell._replace(attribute=attribute)
            key = tuple(whole[i] for i in at) + ((draw,) if draws and kind == "random" else ())
            parts[kind].setdefault(key, []).append(accuracy)
    return parts["selective"], parts["random"], parts[NONE]


def mean_of(values: Sequence[float]) -> float:
    """The mean, whatever the order of the values."""
    return math.fsum(values) / len(values)


class TTest(NamedTuple):
    """A one-sample t-test against 0: mean, its interval, t, degrees of freedom and p."""

    mean: float
    lo: float
    hi: float
    t: float
    df: int
    p: float


def t_test(d: np.ndarray, level: float, alternative: str) -> TTest:
    """The t-test of some numbers against 0; ``alternative`` is ``greater`` or ``two-sided``."""
    arguments.share("level", level)
    mean, df = float(d.mean()), len(d) - 1
    se = float(d.std(ddof=1)) / np.sqrt(len(d))
    half = float(scipy.stats.t.ppf((1 + level) / 2, df)) * se
    least = TIED * float(np.abs(d).max())  # what rounding leaves of no spread, and of no mean
    t = mean / se if se > least else (np.nan if abs(mean) <= least else float(np.copysign(np.inf, mean)))
    p = float(scipy.stats.t.sf(t, df)) if alternative == "greater" else float(2 * scipy.stats.t.sf(abs(t), df))
    return TTest(mean, mean - half, mean + half, t, df, 1.0 if np.isnan(t) else p)
