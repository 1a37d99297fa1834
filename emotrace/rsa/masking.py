"""Masking: what the accuracies with masked neurons say: drops against random masks, paired tests, the link to people.

A table has one row per accuracy, with the columns ``emotion, seed, attribute, k, kind, draw, accuracy`` (the labels are those
of `Masks`; ``kind`` may also be ``none``). ``drop`` = accuracy under random masks − under the selective mask: positive, the
chosen neurons matter more than others. The published difference is its negative.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from emotrace.stats.ties import EPS, TIED, constant

UNITS: Final = ("emotion", "seed", "attribute", "k")
"""What tells the cells of a table apart, in the order of its rows here."""
COLUMNS: Final = (*UNITS, "kind", "draw", "accuracy")
NONE: Final = "none"
"""The kind of an accuracy without a mask; its attribute, k and draw do not matter."""

Groups = dict[tuple[Any, ...], list[float]]


class Cell(NamedTuple):
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
        where = Cell(*cell)
        mine, others, plain = chosen[cell][0], _mean(random[cell]), bare.get((where.emotion, where.seed))
        rows.append((*cell, mine, others, others - mine, len(random[cell])))
        if bare:
            if plain is None:
                raise EmotraceError(
                    f"drops: no unmasked accuracy of {where.emotion!r}, seed {where.seed!r}, though others have one."
                )
            rows[-1] += (_mean(plain), _mean(plain) - mine)
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
    for cell, values in _groups(table, [*by, *drawn], "drop").items():
        groups[cell[: len(by)]].append(_mean(values))
    rows = []
    for key, values in groups.items():
        if len(values) < 2:
            raise EmotraceError(
                f"paired_tests: {dict(zip(by, key, strict=True))} has {len(values)} {' × '.join(drawn)}; at least 2 are needed."
            )
        rows.append((*key, len(values), *_t(np.array(values), level, "greater")))
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
        means, here = np.array([_mean(v) for v in draws.get(key, {}).values()]), _mean(mine)
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
def human_link(
    table: pd.DataFrame, human: xr.DataArray | Mapping[str, float], *, level: float = 0.95
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Do the attributes that matter more to people's concepts matter more to the model's inferences?

    Per (k, emotion): Pearson's r over attributes between the drop (mean over seeds) and the human side's correlation. Per k:
    Fisher's z = atanh r, one-sample t over emotions, mean and interval transformed back.

    Args:
        table: of `drops`.
        human: attribute → its correlation with the human RDM, e.g. ``compare(human, attribute_rdms)["correlation"]``.
        level: of the interval.

    Returns:
        Two tables. Per k: ``k, r, lo, hi, t, df, p`` (two-sided), ``n``. Per k and emotion: ``k, emotion, r, n_attributes``.
        r > 0: masking hurts more where people weigh the attribute more. An emotion whose drops are all equal has no r
        and is left out of n.

    Raises:
        EmotraceError: for an attribute without a human value, fewer than 3 attributes or fewer than 2 emotions.
    """
    weight = _weights(human)
    for name in dict.fromkeys(table["attribute"]):
        if name not in weight:
            raise unknown("attribute", name, weight, "the human side")
    cells: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for (k, emotion, attribute), values in _groups(table, ["k", "emotion", "attribute"], "drop").items():
        cells[k, emotion].append((_mean(values), weight[attribute]))
    each, by_k = [], defaultdict(list)
    for (k, emotion), both in cells.items():
        d, w = np.array(both).T
        if len(d) < 3 or constant(w):
            raise EmotraceError(
                f"human_link: {len(d)} attributes at k={k} for {emotion!r}; at least 3, with different weights."
            )
        r = float(np.corrcoef(d, w)[0, 1]) if not constant(d, noise=EPS) else np.nan
        each.append((k, emotion, r, len(d)))
        by_k[k] += [] if np.isnan(r) else [r]
    rows = []
    for k, values in by_k.items():
        if len(values) < 2:
            raise EmotraceError(f"human_link: r is defined for {len(values)} emotions at k={k}; at least 2.")
        mean, lo, hi, t, df, p = _t(np.arctanh(np.clip(values, -1 + 1e-15, 1 - 1e-15)), level, "two-sided")
        rows.append((k, np.tanh(mean), np.tanh(lo), np.tanh(hi), t, df, p, len(values)))
    return (
        pd.DataFrame(rows, columns=pd.Index(["k", "r", "lo", "hi", "t", "df", "p", "n"])),
        pd.DataFrame(each, columns=pd.Index(["k", "emotion", "r", "n_attributes"])),
    )


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
    for (k, attribute, _), values in _groups(table, ["k", "attribute", "emotion"], "drop").items():
        groups[k, attribute].append(_mean(values))
    rows = [(*key, *dip_test(values, draws, seed), len(values)) for key, values in groups.items()]
    return pd.DataFrame(rows, columns=pd.Index(["k", "attribute", "dip", "p", "n"]))


def _groups(table: pd.DataFrame, by: Sequence[str], value: str) -> Groups:
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
    labels = [Cell(*cell) for cell in zip(*(table[c].tolist() for c in UNITS), strict=True)]
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


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _weights(human: xr.DataArray | Mapping[str, float]) -> dict[str, float]:
    if isinstance(human, xr.DataArray):
        if human.dims != ("attribute",) or "attribute" not in human.coords:
            raise EmotraceError(
                f"human_link: the human side is [attribute] with labels, not {list(map(str, human.dims))}."
            )
        human = dict(zip(human["attribute"].values.tolist(), human.values.tolist(), strict=True))
    found = {str(k): float(v) for k, v in human.items()}
    for name, value in found.items():
        if not np.isfinite(value):
            raise EmotraceError(f"human_link: the human side of {name!r} is {value}.")
    return found


def _t(d: np.ndarray, level: float, alternative: str) -> tuple[float, float, float, float, int, float]:
    """Mean, interval, t, degrees of freedom and p of a one-sample t-test against 0."""
    arguments.share("level", level)
    mean, df = float(d.mean()), len(d) - 1
    se = float(d.std(ddof=1)) / np.sqrt(len(d))
    half = float(scipy.stats.t.ppf((1 + level) / 2, df)) * se
    least = TIED * float(np.abs(d).max())  # what rounding leaves of no spread, and of no mean
    t = mean / se if se > least else (np.nan if abs(mean) <= least else float(np.copysign(np.inf, mean)))
    p = float(scipy.stats.t.sf(t, df)) if alternative == "greater" else float(2 * scipy.stats.t.sf(abs(t), df))
    return mean, mean - half, mean + half, t, df, 1.0 if np.isnan(t) else p
