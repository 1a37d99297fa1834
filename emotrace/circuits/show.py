"""Show: a circuit as a table, for the terminal and for notebooks."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd

from emotrace.circuits.members import Members
from emotrace.labels import KINDS

ACROSS = 8
"""Most layers that a table has side by side: more are wider than a terminal."""


def summary(circuit: Members) -> str:
    """One line: how many components of how many labels in which layers, of which model, ranked how."""
    kinds = circuit.components["kind"].value_counts()
    layers = sorted(set(circuit.components["layer"]))
    where = f"layers {layers[0]}–{layers[-1]}" if layers else "no layer"
    parts = [f"{kinds.get(k, 0):,} {k}s" for k in KINDS]
    about = circuit.meta
    how = "drawn at random" if about.get("method") == "random" else f"ranked by {about.get('by', 'a score not named')}"
    return (
        f"Circuit of {about.get('model_id') or 'an unnamed model'}: {' and '.join(parts)} of {len(circuit.labels)} "
        f"{circuit.label}s in {where}, {how}"
    )


def table(circuit: Members) -> pd.DataFrame:
    """One row per label, one column per layer: number of neurons, and the heads by rank."""
    cells = {
        layer: [_cell(circuit, value, layer) for value in circuit.labels]
        for layer in sorted(set(circuit.components["layer"]))
    }
    return pd.DataFrame(cells, index=pd.Index(circuit.labels, name=circuit.label)).rename_axis(columns="layer")


def upright(circuit: Members) -> pd.DataFrame:
    """The table; layers go down where there are more of them than labels and more than `ACROSS`."""
    found = table(circuit)
    return found.T if len(found.columns) > max(len(found), ACROSS) else found


def text(circuit: Members) -> str:
    """Summary, table and warnings as plain text."""
    lines = [summary(circuit)]
    if len(circuit.components):
        lines.append(upright(circuit).to_string())
    return "\n".join([*lines, *(f"Note: {w}" for w in circuit.meta.get("warnings", ()))])


def html(circuit: Members) -> str:
    """The same for notebooks."""
    body = upright(circuit).to_html(border=0) if len(circuit.components) else ""
    notes = "".join(f"<p>Note: {escape(str(w))}</p>" for w in circuit.meta.get("warnings", ()))
    return f"<div><p>{escape(summary(circuit))}</p>{body}{notes}</div>"


def _cell(circuit: Members, value: Any, layer: int) -> str:
    neurons, heads = (circuit.members(value, kind, layer) for kind in KINDS)
    parts = [f"{len(neurons)} n"] if neurons else []
    if heads:
        parts.append("h " + " ".join(map(str, heads)))
    return " · ".join(parts) or "–"
