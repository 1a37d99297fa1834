"""Tables: the numbers of a report as data frames, unrounded, for CSV files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import xarray as xr

from emotrace.replies.arms import SCORES
from emotrace.report import asking, components, style
from emotrace.report.parts import CircuitParts


def accuracy(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per score, method and group, with value, bounds, n, n_unjudged and worst_case.

    ``by`` is overall, emotion or valence; ``mean`` and ``draws`` (a JSON list) are filled for controls drawn several times.
    """
    out = []
    for score in SCORES:
        part = report.get(score) or {}
        for method in style.methods_of(part):
            leaves = [("overall", "overall", part[method].get("overall"))]
            for by in ("emotion", "valence"):
                groups = part[method].get(f"by_{by}") or {}
                leaves += [(by, name, groups[name]) for name in style.in_order(groups)]
            for by, name, leaf in leaves:
                if leaf is not None:
                    out.append({"score": score, "method": method, "by": by, "group": name, **_leaf(leaf)})
    return pd.DataFrame(out)


def lift(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method and emotion (and overall): difference in accuracy to ``none``, interval, permutation p, n."""
    found = style.lifts_of(report)
    return pd.DataFrame(
        [{"method": m, "group": name, **_leaf(leaf, ("p", "n"))} for m in found for name, leaf in found[m].items()]
    )


def sweep(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per tried point; ``layers`` as text, ``chosen`` marks the point that was used."""
    chosen, out = report.get("chosen") or {}, []
    for point in report.get("sweep") or []:
        low, high = style.interval(point)
        plain = {k: v for k, v in point.items() if k not in ("layers", "ci95")}
        used = all(point.get(k) == chosen.get(k) for k in ("layers", "dose", "positions"))
        layers = " ".join(map(str, point["layers"]))
        out.append({"layers": layers, **plain, "ci_low": low, "ci_high": high, "chosen": used})
    return pd.DataFrame(out)


def confusion(report: Mapping[str, Any]) -> pd.DataFrame:
    """Long form: ``method, emotion, answer, count``."""
    tables = report.get("confusion") or {}
    return pd.DataFrame(
        [
            {"method": m, "emotion": e, "answer": a, "count": tables[m][e][a]}
            for m in style.methods_of(tables)
            for e in style.emotions_of(tables[m])
            for a in style.in_order(tables[m][e])
        ]
    )


def fluency(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method: median perplexity, mean length and repetition, share of fluent replies."""
    found = (report.get("fluency") or {}).get("by_method") or {}
    return pd.DataFrame([{"method": m, **found[m]} for m in style.methods_of(found)])


def agnosticism(found: xr.Dataset | None) -> pd.DataFrame:
    """Held-out accuracy ``factor × level × layer × sublayer`` with intervals; level ``all`` pools the levels and has the null."""
    if found is None:
        return pd.DataFrame()
    label = str(found.attrs.get("label", "emotion"))
    pooled = found[[v for v in ("accuracy", "null_mean", "null_max") if v in found]].to_dataframe().reset_index()
    pooled = pooled.merge(_bounds(found["accuracy_ci"])).assign(level="all")
    by = found["accuracy_by_level"].to_dataframe().reset_index().rename(columns={"accuracy_by_level": "accuracy"})
    if "accuracy_by_level_ci" in found:
        by = by.merge(_bounds(found["accuracy_by_level_ci"]))
    cosines = found["cosine"].mean(label).to_dataframe("mean_cosine").reset_index()
    lowest = found["cosine"].min(label).to_dataframe("min_cosine").reset_index()
    by = by.merge(cosines).merge(lowest).rename(columns={"held_out_factor": "factor", "held_out_level": "level"})
    both = pd.concat([pooled, by.drop(columns="held_out")], ignore_index=True)
    first = ["factor", "level", *(d for d in ("layer", "sublayer") if d in both), "accuracy", "ci_low", "ci_high"]
    return both.reindex(columns=[*[c for c in first if c in both], *[c for c in both if c not in first]])


def comparison(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per point of the comparison at equal KL."""
    return pd.DataFrame([_flat(point) for point in report.get("comparison") or []])


def paired(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per paired test: ``a, b, difference, p, n_skeletons, ci_low, ci_high`` and whatever else a test says."""
    return pd.DataFrame([_flat(test) for test in report.get("paired") or []])


def agreement(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method, first all of them: of how many replies two judges gave one answer, κ and α with their bounds."""
    out = []
    for line in report.get("judge_agreement") or []:
        bounds = {
            f"{name}_{side}": line[f"{name}_ci95"][i]
            for name in ("kappa", "alpha")
            for i, side in enumerate(("low", "high"))
        }
        out.append({k: v for k, v in line.items() if not isinstance(v, list)} | bounds)
    return pd.DataFrame(out)


def claims(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per claim: its name, whether it holds (empty where it was not tested), the sentence, and what it rules out."""
    return pd.DataFrame(
        [
            {k: claim[k] for k in ("name", "holds", "sentence", "control", "figure")}
            for claim in report.get("claims") or []
        ]
    )


def refits(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per score and figure with the interval that includes the fit, and what each refit gave as a JSON list."""
    found = report.get("refits") or {}
    return pd.DataFrame(
        [
            {"score": score, "figure": name, **_flat({**leaf, "refits": json.dumps(leaf["refits"])})}
            for score in ("accuracy", "accuracy_fluent")
            for name, leaf in (found.get(score) or {}).items()
        ]
    )


def frontiers(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method, dose and what it reached and cost there."""
    return pd.DataFrame([_flat(point) for point in (report.get("frontiers") or {}).get("points") or []])


def areas(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method and axis: area under its frontier, with bounds."""
    found = (report.get("frontiers") or {}).get("area") or {}
    return pd.DataFrame([{"method": m, "axis": axis, **_flat(leaf)} for m in found for axis, leaf in found[m].items()])


def frames(
    report: Mapping[str, Any], found: xr.Dataset | None = None, parts: CircuitParts | None = None
) -> dict[str, pd.DataFrame]:
    """``accuracy, lift, sweep, confusion, fluency, layer_profile, agnosticism, comparison, paired, claims, refits, frontiers,
    areas, judge_agreement`` and those of `components.frames`, as far as there is data.

    Args:
        report: content of report.json.
        found: of `directions.context_agnosticism`.
        parts: of a circuit.
    """
    named = {
        "accuracy": accuracy(report),
        "lift": lift(report),
        "sweep": sweep(report),
        "confusion": confusion(report),
        "fluency": fluency(report),
        "layer_profile": pd.DataFrame(report.get("layer_profile") or []),
        "agnosticism": agnosticism(found),
        "comparison": comparison(report),
        "paired": paired(report),
        "elicitation": asking.ways(report),
        "claims": claims(report),
        "refits": refits(report),
        "frontiers": frontiers(report),
        "areas": areas(report),
        "judge_agreement": agreement(report),
        **components.frames(parts or CircuitParts()),
    }
    return {name: frame for name, frame in named.items() if len(frame)}


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of an entry, and its interval as two columns."""
    low, high = style.interval(entry)
    plain = {k: v for k, v in entry.items() if not isinstance(v, (list, tuple, Mapping))}
    return {**plain, "ci_low": low, "ci_high": high}


def _leaf(
    leaf: Mapping[str, Any], extra: tuple[str, ...] = ("n", "n_unjudged", "worst_case", "mean")
) -> dict[str, Any]:
    low, high = style.interval(leaf)
    out = {"value": leaf.get("value"), "ci_low": low, "ci_high": high, **{k: leaf.get(k) for k in extra}}
    if "draws" in leaf:
        out["draws"] = json.dumps(leaf["draws"])
    return out


def _bounds(ci: xr.DataArray) -> pd.DataFrame:
    wide = ci.to_dataset(dim="bound").rename(lo="ci_low", hi="ci_high")
    return wide.to_dataframe().reset_index()
