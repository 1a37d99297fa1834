"""Circuit discovery: which heads carry the emotion word to the reply, where the valence of the event enters, how both meet.

1. Directions of emotions and of valences at the last prompt token, fitted on one half of the skeletons.
2. Two sets of pairs from the other half: the same scenario with another emotion word; with the event of another valence. Of the
   skeletons there, a quarter is kept back: on their pairs circuits are tried that were chosen on those of the others.
   The metric is the projection on the direction of the prompt's own label minus that of its counterfactual's.
3. Every head, MLP and edge is scored by four approximate methods (``--methods``); nodes also exactly (``--patched-pairs``: on
   some pairs; tables are then of the best approximate method), and edges on some pairs (``--edges 0``: nodes alone). Rank
   correlations say how good the approximations are here; CPR and CMD say how well circuits of growing size do, beside
   random ones and ones chosen by magnitude.
4. The circuit: how stable it is over skeletons, themes and valences; how faithful on skeletons it was not chosen on; drawn.
5. Where on the prompt each node acts; which nodes are in both circuits; what the emotion circuit's nodes do to valence.

With ``--remote`` edges are patched, not differentiated, and the circuit of edges, which is chosen by slopes, is left out; so are
slopes of nodes where the server keeps no graph of the model: they are patched there, one after the other.

Run it again with the same arguments to continue it: stages that are done are read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import discovery_figures as figures
import numpy as np
import pandas as pd
import typer
import xarray as xr
from scipy.stats import spearmanr

import emotrace as et
from emotrace import discovery, report, shipped, stats
from emotrace.cli.groups import LoadingAnywhere, grouped
from emotrace.cli.options import CausalModel, Folder, Seed, SevFile, Steps, names
from emotrace.disk import write_json
from emotrace.forwards.metrics import differentiable
from emotrace.labels import unknown
from emotrace.report.figures import Shown
from emotrace.report.style import Picture
from emotrace.run import Run
from emotrace.sites import LanguageModel
from emotrace.stats.permutation import p_said
from emotrace.store import Activations

APPROXIMATE = ("eap", "eap_ig_inputs", "ceap", "eap_ig_activations")
BEST = ("eap_ig_activations", "ceap", "eap_ig_inputs", "eap")
"""Methods of slopes, the one first whose scores choose the circuit."""
KEPT_BACK = 0.25
"""Share of the scored skeletons on which circuits are tried, not chosen."""
LABELS = {"emotion": ("skeleton_id", "valence"), "valence": ("skeleton_id", "emotion")}
"""What is swapped, and what a pair has in common."""


@grouped
def main(
    *,
    model: CausalModel = "data/tiny_model",
    train: SevFile = Path("data/sev.jsonl"),
    out: Folder = Path("runs/circuit_discovery"),
    limit: Annotated[int | None, typer.Option(help="skeletons, spread over themes; half fit, half are scored")] = 32,
    pairs_per_skeleton: Annotated[int, typer.Option(help="pairs of each scored skeleton")] = 3,
    exact_pairs: Annotated[int, typer.Option(help="pairs on which every edge is patched exactly; 0 for none")] = 2,
    patched_pairs: Annotated[
        int | None, typer.Option(help="pairs on which every node is; 0 for none; default all")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="of slopes, for nodes and edges; eap_ig_activations is dear in a deep model")
    ] = ",".join(APPROXIMATE),
    layer: Annotated[int | None, typer.Option(help="where the metric reads; default the last but one")] = None,
    edges: Annotated[int, typer.Option(help="edges of the circuit; 0: no edges at all")] = 50,
    nodes: Annotated[int, typer.Option(help="nodes of the circuit")] = 10,
    steps: Steps = 4,
    batch_size: Annotated[int, typer.Option(help="pairs per batch")] = 16,
    loading: LoadingAnywhere,
    seed: Seed = 0,
) -> None:
    """Nodes and edges that carry emotion and valence, with the projection on a direction as the metric."""
    wanted = names(methods)
    for method in wanted:
        if method not in APPROXIMATE:
            raise unknown("method", method, APPROXIMATE, "--methods")
    prompts = et.datasets.sev(train, limit=limit)
    lm = loading.load(model)
    at = lm.sites.n_layers - 2 if layer is None else layer
    lm.sites.address("resid_post", at)  # refuses a layer that there is not
    settings = {
        "experiment": "circuit_discovery", "model": lm.sites.identity, "template": lm.sites.encoder.record,
        "train": {"file": train.name, "digest": prompts.digest}, "limit": limit,
        "kept_back": KEPT_BACK, "pairs_per_skeleton": pairs_per_skeleton,
        "exact_pairs": exact_pairs, "patched_pairs": patched_pairs, "methods": wanted,
        "layer": at, "edges": edges, "nodes": nodes, "steps": steps, "batch_size": batch_size,
        "seed": seed,
    }  # fmt: skip
    run = Run(out, settings)
    run.keep_jobs(lm)
    print(lm.sites.describe())
    here, slopes = lm.sites.remote is None, tuple(wanted) if differentiable(lm) else ()
    if not slopes and patched_pairs is not None:
        raise et.EmotraceError("without slopes every node is patched on every pair: leave --patched-pairs out.")

    # 1. Directions.
    fit, scored = et.datasets.split(prompts, 0.5, seed)
    acts = et.capture(
        lm, prompts.where(skeleton_id=sorted(fit)), "resid_post", layers=[at], positions="last",
        out=run.path("activations.zarr"), batch_size=32, seed=seed,
    )  # fmt: skip
    directions = {name: et.directions.centered_mean(acts, label=name, within=within) for name, within in LABELS.items()}
    apart = {
        by: {str(v): _apart(acts.where(**{by: v}), directions["emotion"]) for v in sorted(set(acts.column(by)))}
        for by in ("valence", "theme")
    }

    # 2. Pairs and metrics.
    inside = prompts.where(skeleton_id=sorted(scored))
    choosing, trying = et.datasets.split(inside, KEPT_BACK, seed)
    metrics = {
        name: discovery.Projection(directions[name], layer=at, against="counterfactual", label=name) for name in LABELS
    }
    swaps = {
        "emotion": discovery.other_emotion(lm, inside, align="spans", seed=seed),
        "valence": discovery.other_valence(lm, inside, seed=seed),
    }
    chosen, held = {}, {}
    for name, found in swaps.items():
        rng, by_skeleton = np.random.default_rng(seed), {}
        for pair in found:
            by_skeleton.setdefault(pair.labels["skeleton_id"], []).append(pair)
        drawn = {s: [some[i] for i in rng.permutation(len(some))] for s, some in by_skeleton.items()}
        chosen[name], held[name] = (
            discovery.Pairs([p for s in sorted(drawn) if s in part for p in drawn[s][:pairs_per_skeleton]])
            for part in (choosing, trying)
        )

    # 3. Scores.
    scores: dict[str, xr.Dataset] = {}

    def score(swap: str, level: discovery.Level, method: str, some: discovery.Pairs) -> None:
        scores[f"{swap} {level} {method}"] = _kept(
            run,
            f"{swap}_{level}_{method}",
            lambda: discovery.scores(
                lm, some, metrics[swap], method=method, level=level, steps=steps, batch_size=batch_size, seed=seed
            ),
        )

    for method in (*slopes, *(["patching"] if patched_pairs != 0 else []), "magnitude", "random"):
        for name in LABELS:
            score(name, "node", method, chosen[name][: patched_pairs if method == "patching" else None])
        if edges and method != "patching" and (here or method not in slopes):
            score("emotion", "edge", method, chosen["emotion"])
    if exact_pairs and edges:
        score("emotion", "edge", "path_patching", chosen["emotion"][:exact_pairs])
    agreement = _agreement(scores)
    exact = {"node": () if slopes else ("patching",), "edge": () if here else ("path_patching",)}
    by_slopes = next((m for m in BEST if m in slopes), None)
    told = {"node": "patching" if patched_pairs is None else by_slopes, "edge": by_slopes}
    curves = {
        f"emotion {level} {method}": _kept(
            run,
            f"curve_{level}_{method}",
            lambda v=level, m=method: discovery.curve(
                lm,
                held["emotion"],
                metrics["emotion"],
                scores[f"emotion {v} {m}"],
                batch_size=batch_size,
                points=discovery.POINTS if v == "edge" else (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
            ),
        )
        for level in ("node", "edge")
        for method in dict.fromkeys(["eap", by_slopes, "magnitude", "random", *exact[level]])
        if f"emotion {level} {method}" in scores
    }

    # 4. The circuit.
    found = (
        _circuit(
            run, lm, chosen["emotion"], held["emotion"], metrics["emotion"], scores, by_slopes, edges, batch_size, seed
        )
        if here and edges
        else None
    )

    # 5. Where emotion and valence meet.
    best = {name: scores[f"{name} node {told['node']}"] for name in LABELS}
    both = {name: discovery.select(best[name], nodes) for name in LABELS}
    shared = [n for n in discovery.nodes_of(both["emotion"]) if n in discovery.nodes_of(both["valence"])]
    rng = np.random.default_rng(seed)
    null = [
        discovery.jaccard(discovery.random_like(both["emotion"], rng), discovery.random_like(both["valence"], rng))
        for _ in range(1000)
    ]
    met = discovery.jaccard(both["emotion"], both["valence"])
    tables = {name: _nodes(best[name], scores.get(f"{name} node {by_slopes}"), nodes) for name in LABELS}
    result = {
        "model": lm.sites.identity, "layer": at, "n_pairs": {name: len(chosen[name]) for name in LABELS},
        "metric": {name: _change(best[name], seed) for name in LABELS}, "scored_by": told,
        "agreement": agreement,
        "areas": {name: _areas(found) for name, found in curves.items()},
        **({} if found is None else found.said),
        "nodes": tables, "apart": apart,
        "meet": {"shared": shared, "jaccard": met, "random": float(np.mean(null)),
                 "p": float((1 + sum(x >= met for x in null)) / (1 + len(null))), "p_floor": 1 / (1 + len(null))},
        "warnings": _warnings(lm),
    }  # fmt: skip
    write_json(run.path("report.json"), result)
    run.finish()
    title = f"The {edges} edges that carry the emotion word to resid_post {at}"
    graph = None if found is None else report.circuit_graph(found.circuit, found.scores, title)
    about = report.Page(title="Circuit discovery")
    page = report.publish(run.out, result, _shown(result, curves, graph), _tables(result), run.manifest, about)
    _tell(result)
    print(f"report: {page}")


class Found(NamedTuple):
    """The circuit of edges: which, their scores, and what is said of it."""

    circuit: xr.DataArray
    scores: xr.Dataset
    said: dict[str, Any]


def _circuit(
    run: Run, lm: LanguageModel, chosen: discovery.Pairs, held: discovery.Pairs, metric: discovery.Metric,
    scores: dict[str, xr.Dataset], method: str | None, edges: int, batch_size: int, seed: int,
) -> Found:  # fmt: skip
    """How stable it is, and how faithful on skeletons it was not chosen on."""
    edge_scores = scores[f"emotion edge {method}"]
    circuit = discovery.select(edge_scores, edges, rule="greedy")
    discovery.save_discovery(circuit, run.path("circuit"), "circuit")
    stable = discovery.bootstrap_circuits(edge_scores, edges, rule="greedy", seed=seed)
    overlap = {
        by: discovery.across(edge_scores, edges, by, rule="greedy", draws=200, seed=seed)
        for by in ("theme", "valence", "emotion")
        if len({pair.labels[by] for pair in chosen}) > 1  # a few pairs may all be of one emotion
    }
    significant = discovery.significance(edge_scores, seed=seed)
    judged = _kept(
        run,
        "evaluated",
        lambda: discovery.evaluate(lm, held, metric, circuit, minimality=False, batch_size=batch_size),
    )
    drawn = [discovery.random_like(circuit, np.random.default_rng(seed + i)) for i in range(5)]
    controls = _kept(run, "controls", lambda: discovery.run_circuits(lm, held, metric, drawn, batch_size=batch_size))
    said = {
        "circuit": {
            "edges": circuit["edge"].values[circuit.values].tolist(), "faithfulness": float(judged["faithfulness"]),
            "completeness": float(judged["completeness"]), "n": int(circuit.sum()),
            "random": [float(v) for v in discovery.faithfulness(controls).values], "n_pairs": len(held),
            "skeletons": {"chosen_on": _skeletons(chosen), "tried_on": _skeletons(held)},
        },
        "stability": {
            "consensus": stable["edge"].values[stable["consensus"].values].tolist(), "draws": 200,
            "jaccard": float(stable["jaccard"]), "random": float(stable["null"]),
            "significant": int((significant["q"] < 0.05).sum()), "of": int(significant.sizes["edge"]),
            "across": {by: {"mean": float(o["mean"]), "random": float(o["null"].mean()), "p": float(o["p"])}
                       for by, o in overlap.items()},
        },
    }  # fmt: skip
    return Found(circuit, edge_scores, said)


def _apart(acts: Activations, directions: xr.DataArray) -> float:
    """How far emotions are apart in a slice of what is stored: projection on the own direction less that on the others', mean."""
    p = et.directions.project(acts, directions).squeeze(("layer", "sublayer"), drop=True)
    own = p.where(p["direction"] == p["emotion"]).mean("direction")
    others = p.where(p["direction"] != p["emotion"]).mean("direction")
    return float((own - others).mean())


def _skeletons(pairs: discovery.Pairs) -> list[str]:
    return sorted({str(pair.labels["skeleton_id"]) for pair in pairs})


def _kept(run: Run, name: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """A Dataset read from the run's folder, or made and written there."""
    folder = run.path("scores", f"{name}.json").parent
    if not (folder / f"{name}.json").is_file():
        discovery.save_discovery(make(), folder, name)
    found = discovery.load_discovery(folder, name)
    assert isinstance(found, xr.Dataset)
    return found


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's ρ to four places."""
    found: Any = spearmanr(a, b)  # what it returns is built at run time, out of sight of types
    return round(float(found.statistic), 4)


def _agreement(scores: dict[str, xr.Dataset]) -> dict[str, dict[str, float]]:
    """Spearman correlation of each method with its exact twin, on the pairs that both have."""
    found: dict[str, dict[str, float]] = {}
    for name, table in scores.items():
        swap, level, method = name.split()
        twin = scores.get(f"{swap} {level} {'patching' if level == 'node' else 'path_patching'}")
        if twin is not None and "patching" not in method:
            mine = table["score"].sel(pair=twin["pair"].values).mean("pair").values
            theirs = twin["score"].mean("pair").values
            found.setdefault(f"{swap} {level}", {})[method] = _spearman(mine, theirs)
            found[f"{swap} {level}"][f"{method} (magnitudes)"] = _spearman(np.abs(mine), np.abs(theirs))
    return found


def _nodes(best: xr.Dataset, where: xr.Dataset | None, n: int) -> list[dict[str, Any]]:
    """The nodes with the largest effect, in units of the metric, and where on the prompt they act (approximate)."""
    tested = discovery.significance(best)
    order = np.argsort(-np.abs(best["score"].mean("pair").values), kind="stable")[:n]
    spans = None if where is None else where["by_span"].mean("pair")
    return [
        {
            "node": str(best["node"].values[i]), "effect": float(best["score"][:, i].mean()), "q": float(tested["q"][i]),
            **({} if spans is None else {str(s): float(spans.sel(span=s)[i]) for s in spans["span"].values}),
        }
        for i in order
    ]  # fmt: skip


def _change(found: xr.Dataset, seed: int) -> dict[str, Any]:
    """What the swap changes the metric by, with its interval over skeletons."""
    change = (found["clean"] - found["counterfactual"]).values.astype(float)
    low, high = stats.bootstrap_ci(change, found["skeleton_id"].values, seed=seed)
    means = {name: float(found[name].mean()) for name in ("clean", "counterfactual")}
    return {**means, "value": float(change.mean()), "ci95": [float(low), float(high)], "n": len(change)}


def _areas(found: xr.Dataset) -> dict[str, float]:
    return {
        f"{area}_{order}_{axis}": round(float(found[area].sel(order=order, axis=axis)), 4)
        for area in ("cpr", "cmd")
        for order in found["order"].values
        for axis in found["axis"].values
    }


def _warnings(lm: LanguageModel) -> list[str]:
    return [shipped.CAVEAT] if shipped.is_shipped(lm.sites.identity) else []


def _shown(result: dict[str, Any], curves: dict[str, xr.Dataset], graph: Picture | None) -> list[Shown]:
    """Figures of the page."""
    effects = [
        Shown(f"nodes_{name}", f"What carries the {name}",
              figures.node_effects(result["nodes"][name], result["metric"][name], name, result["scored_by"]["node"]))
        for name in LABELS
    ]  # fmt: skip
    agreed = result["agreement"]
    return [
        *([] if graph is None else [Shown("circuit", "The circuit", graph)]),
        *effects,
        *([Shown("agreement", "Approximate against exact", figures.agreement(agreed))] if agreed else []),
        Shown("faithfulness", "How small a circuit may be", figures.faithfulness_curves(curves)),
    ]


def _tables(result: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Tables of the folder."""
    nodes = [{"swapped": name, **row} for name, rows in result["nodes"].items() for row in rows]
    ranks = [
        {"scored": n, "method": m, "spearman": v} for n, row in result["agreement"].items() for m, v in row.items()
    ]
    areas = [{"scored": n, "area": a, "value": v} for n, row in result["areas"].items() for a, v in row.items()]
    return {name: pd.DataFrame(rows) for name, rows in {"nodes": nodes, "agreement": ranks, "areas": areas}.items()}


def _tell(result: dict[str, Any]) -> None:
    for name, rows in result["nodes"].items():
        change = result["metric"][name]
        low, high = change["ci95"]
        told = "" if low > 0 or high < 0 else ", not to be told from none"
        print(f"{name}: another one changes the metric by {change['value']:+.2f} [{low:+.2f}, {high:+.2f}]{told}")
        by = result["scored_by"]["node"]
        print(
            f"  effects of nodes ({'exact' if by == 'patching' else by}), and by where on the prompt they act (approximate)"
        )
        for row in rows:
            spans = ", ".join(f"{s} {row[s]:+.2f}" for s in ("before", "changed", "after", "last") if s in row)
            print(
                f"  {row['node']:>6} {row['effect']:+.3f} (q = {row['q']:.3f}): {spans or 'not known without slopes'}"
            )
    for by, row in result["apart"].items():
        told = ", ".join(f"{v} {gap:.2f}" for v, gap in row.items())
        print(f"emotions apart where directions were fitted (own projection less that on the others), by {by}: {told}")
    for name, row in result["agreement"].items():
        print(f"rank correlation with the exact effect, {name}: " + ", ".join(f"{m} {v:.3f}" for m, v in row.items()))
    m = result["meet"]
    if "circuit" in result:
        c, s = result["circuit"], result["stability"]
        print(
            f"circuit of {c['n']} edges: faithfulness {c['faithfulness']:.3f}, without it {c['completeness']:.3f}, "
            f"random ones of the same layers at most {max(c['random']):.3f}; {len(s['consensus'])} edges in 95 % of the samples"
        )
    print(f"emotion and valence share {len(m['shared'])} nodes ({', '.join(m['shared']) or 'none'}): Jaccard {m['jaccard']:.3f}, "
          f"random {m['random']:.3f}, p {p_said(m['p'], m['p_floor'])}")  # fmt: skip


if __name__ == "__main__":
    et.cli.experiment(main)
