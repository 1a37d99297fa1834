"""Ratings: the user's own concepts, attributes and similarity judgements from CSV files, checked cell by cell."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from emotrace.labels import EmotraceError, unknown
from emotrace.rsa.matrices import labelled
from emotrace.signatures import typed


@typed
def read_ratings(
    path: str | Path,
    attributes: Sequence[str] | None = None,
    *,
    concept: str = "emotion",
    rater: str | None = None,
) -> xr.DataArray:
    """Ratings of concepts, one column per attribute: ``score[emotion, attribute]``.

    Args:
        path: CSV with a header, a column of concepts, and a column of numbers per attribute.
        attributes: the columns to read; None: all but ``concept`` and ``rater``.
        concept: the column of the concepts, and the name of the dim.
        rater: the column of the raters, where there is a row per rater and concept. The score is then the mean over those who
            rated it, and their number stands in ``n_raters[emotion, attribute]``. None: one row per concept.

    Raises:
        EmotraceError: for a missing file or column (with the closest name), a concept given twice, fewer than 3 concepts, or a
            cell that is empty or no number (with its line). With ``rater`` an empty cell is a missing rating; a concept that
            nobody rated is an error.
    """
    table, columns = _table(path, [concept, *([rater] if rater else []), *(attributes or [])])
    chosen = list(attributes) if attributes is not None else [c for c in columns if c not in (concept, rater)]
    if not chosen:
        raise EmotraceError(f"{path} has no column of ratings besides {concept!r}.")
    names, _ = _names(table, concept, path)
    keys = [concept, rater] if rater else [concept]
    _once(table, keys, path)
    values = np.stack([_numbers(table, a, path, blank=rater is not None) for a in chosen], axis=1)
    coords = {concept: names, "attribute": chosen}
    attrs = {"source": Path(path).name}
    if rater is None:
        return xr.DataArray(values, dims=(concept, "attribute"), coords=coords, name="score", attrs=attrs)
    rows = [np.flatnonzero((table[concept] == n).to_numpy()) for n in names]
    n_raters = np.stack([np.isfinite(values[r]).sum(0) for r in rows])
    for i, j in np.argwhere(n_raters == 0):
        raise EmotraceError(f"{path}: nobody rated {names[i]!r} for {chosen[j]!r}.")
    means = np.stack([np.nanmean(values[r], axis=0) for r in rows])
    coords["n_raters"] = ((concept, "attribute"), n_raters)  # type: ignore[assignment]
    attrs["averaged"] = f"over {rater}"
    return xr.DataArray(means, dims=(concept, "attribute"), coords=coords, name="score", attrs=attrs)


@typed
def read_dissimilarities(
    path: str | Path,
    *,
    first: str = "first",
    second: str = "second",
    value: str = "dissimilarity",
    subject: str | None = None,
    fill: bool = False,
) -> xr.DataArray:
    """Judged dissimilarities of pairs, one row each: ``dissimilarity[pair]`` or ``[subject, pair]``.

    Args:
        path: CSV with a header.
        first: column of the one concept.
        second: column of the other; the order within a pair does not matter.
        value: column of the dissimilarity.
        subject: column of the subjects, whose RDMs then stay apart (average with ``.mean("subject")``).
        fill: replace a pair that a subject did not judge by the mean of the others (published); ``attrs["filled"]`` counts them.

    Raises:
        EmotraceError: for a missing file or column, a pair that is missing, given twice or of one concept, or a cell that is
            no number.
    """
    table, _ = _table(path, [first, second, value, *([subject] if subject else [])])
    table = table.assign(**{value: _numbers(table, value, path, blank=fill)})
    sides = [_names(table, column, path, 1)[1] for column in (first, second)]
    names = list(dict.fromkeys(name for row in zip(*sides, strict=True) for name in row))
    at = {n: i for i, n in enumerate(names)}
    i, j = (np.array([at[n] for n in table[c]]) for c in (first, second))
    if (i == j).any():
        raise EmotraceError(
            f"{path}: line {table.index[np.argmax(i == j)]} compares {names[i[np.argmax(i == j)]]!r} with itself."
        )
    pairs = list(itertools.combinations(range(len(names)), 2))
    where = {pair: n for n, pair in enumerate(pairs)}
    column = [where[min(a, b), max(a, b)] for a, b in zip(i, j, strict=True)]
    subjects = list(dict.fromkeys(table[subject].tolist())) if subject else [""]
    row = [subjects.index(s) for s in table[subject]] if subject else [0] * len(table)
    out = np.full((len(subjects), len(pairs)), np.nan)
    given = np.zeros(out.shape, dtype=np.int64)
    np.add.at(given, (row, column), 1)
    out[row, column] = table[value]
    what = np.argwhere(given > 1)
    if len(what):
        raise EmotraceError(f"{path}: {_pair(names, pairs[what[0][1]])} occurs twice{_of(subjects[what[0][0]])}.")
    missing = np.isnan(out)
    if missing.any() and not (fill and subject and not missing.all(0).any()):
        s, p = np.argwhere(missing)[0] if not fill else (0, int(np.argmax(missing.all(0))))
        raise EmotraceError(
            f"{path}: {_pair(names, pairs[p])} is missing{_of(subjects[s]) if not fill else ''} ({int(missing.sum())} in all)."
        )
    if missing.any():
        out = np.where(missing, np.nanmean(out, axis=0), out)
    found = labelled(out, names, ["subject"], {"subject": np.array(subjects)})
    found.attrs.update(source=Path(path).name, filled=int(missing.sum()))
    return found if subject else found.isel(subject=0, drop=True)


def _table(path: str | Path, needed: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The cells as text, and the columns."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise EmotraceError(f"{path}: no such file.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise EmotraceError(f"{path} is no CSV table: {error}.") from error
    rows = {number: [c.strip() for c in line] for number, line in enumerate(lines, start=1) if line}
    if len(rows) < 2:
        raise EmotraceError(f"{path} has no rows below its header.")
    columns = rows.pop(min(rows))
    twice = [c for c in columns if columns.count(c) > 1]
    if twice:
        raise EmotraceError(f"{path}: column {twice[0]!r} occurs twice.")
    for name in needed:
        if name not in columns:
            raise unknown("column", name, columns, str(path))
    for number, row in rows.items():
        if len(row) != len(columns):
            raise EmotraceError(f"{path}: line {number} has {len(row)} cells, the header {len(columns)}.")
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows)), columns=pd.Index(columns)), columns


def _names(table: pd.DataFrame, column: str, path: str | Path, least: int = 3) -> tuple[list[str], list[str]]:
    """The different names of a column, and the column."""
    values = table[column].tolist()
    if "" in values:
        raise EmotraceError(f"{path}: line {table.index[values.index('')]} has no {column!r}.")
    names = list(dict.fromkeys(values))
    if len(names) < least:
        raise EmotraceError(f"{path}: {len(names)} different values of {column!r}; {least} are the least.")
    return names, values


def _once(table: pd.DataFrame, keys: list[str], path: str | Path) -> None:
    twice = table.duplicated(keys).to_numpy()
    if twice.any():
        what = ", ".join(table[k].iloc[int(np.argmax(twice))] for k in keys)
        hint = "" if len(keys) > 1 else " Where there are several raters, name their column (rater=…)."
        raise EmotraceError(
            f"{path}: {what} occurs twice, the second time in line {table.index[np.argmax(twice)]}.{hint}"
        )


def _numbers(table: pd.DataFrame, column: str, path: str | Path, blank: bool) -> np.ndarray:
    out = np.full(len(table), np.nan)
    for i, cell in enumerate(table[column]):
        if cell == "" and blank:
            continue
        try:
            out[i] = float(cell)
        except ValueError:
            out[i] = np.nan
        if not np.isfinite(out[i]):
            said = f"is {cell!r}, no number" if cell else "is empty"
            raise EmotraceError(f"{path}: line {table.index[i]}, column {column!r} {said}.")
    return out


def _pair(names: list[str], pair: tuple[int, int]) -> str:
    return f"the pair {names[pair[0]]!r}, {names[pair[1]]!r}"


def _of(subject: str) -> str:
    return f" for {subject!r}" if subject else ""
