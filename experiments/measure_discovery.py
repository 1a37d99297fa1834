"""How well every method finds planted circuits: area under the ROC curve and average precision, nodes and edges.

Eight models are made in which the components that write the answer are known (`emotrace.testing.planted_circuits`), with
backup heads, a component that lowers the metric, and shared keys and values among them. Components are ranked by the
magnitude of their mean score. Exact methods should rank all planted ones first (1.00 / 1.00); ``magnitude`` (how much a
component's activation changes) and ``random`` are what is left without causality.

    python experiments/measure_discovery.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
import typer
from sklearn.metrics import average_precision_score, roc_auc_score

from emotrace import cli, discovery
from emotrace.cli.options import Steps
from emotrace.labels import unknown
from emotrace.testing.planted_circuits import PlantedCircuit, planted_circuit
from emotrace.testing.planted_shapes import SHAPES

Level = Literal["node", "edge"]
METHODS = {
    "node": ("patching", "eap", "eap_ig_inputs", "ceap", "eap_ig_activations", "magnitude", "random"),
    "edge": ("path_patching", "eap", "eap_ig_inputs", "ceap", "eap_ig_activations", "magnitude", "random"),
}


def main(
    shapes: Annotated[str | None, typer.Option(help=f"some of {', '.join(SHAPES)}; default all")] = None,
    steps: Steps = 4,
    out: Annotated[Path | None, typer.Option(help="also write the table, as CSV")] = None,
    seed: Annotated[int, typer.Option(help="of the random baseline")] = 1,
) -> None:
    """Print AUROC / average precision of every method on every planted circuit."""
    names = [s.strip() for s in shapes.split(",")] if shapes else list(SHAPES)
    for name in names:
        if name not in SHAPES:
            raise unknown("shape", name, SHAPES, "--shapes")
    rows = []
    for name in names:
        planted = planted_circuit(name)
        for level in get_args(Level):
            found = {m: quality(planted, level, m, steps, seed) for m in METHODS[level]}
            rows += [{"circuit": name, "level": level, "method": m, **q} for m, q in found.items()]
            print(
                f"{name:>9} {level}s: "
                + ", ".join(f"{m} {q['auroc']:.3f} / {q['precision']:.3f}" for m, q in found.items())
            )
    table = pd.DataFrame(rows)
    worst: Any = table.groupby(["level", "method"], sort=False)[["auroc", "precision"]].min()
    print(f"\nlowest over {len(names)} circuits:\n{worst.round(3).to_string()}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False)


def quality(planted: PlantedCircuit, level: Level, method: Any, steps: int = 4, seed: int = 1) -> dict[str, float]:
    """AUROC and average precision of the magnitude of one method's scores."""
    found = discovery.scores(
        planted.model, planted.pairs, planted.metric, method=method, level=level, batch_size=96, steps=steps, seed=seed,
        progress=False,
    )  # fmt: skip
    wanted = planted.nodes - planted.idle if level == "node" else planted.edges
    mask, size = np.isin(found[level].values, list(wanted)), np.abs(discovery.mean(found).values)
    return {"auroc": float(roc_auc_score(mask, size)), "precision": float(average_precision_score(mask, size))}


if __name__ == "__main__":
    cli.experiment(main)
