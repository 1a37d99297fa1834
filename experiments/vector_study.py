"""The stages of ``emotion_vectors.py`` and ``goemotions_steering.py``: one model, judge and folder; every stage continues."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import emotrace as et
from emotrace import dose, evaluation, judges, stats
from emotrace.cli.options import layer_list
from emotrace.datasets import Prompts
from emotrace.judges import measured
from emotrace.run import Run
from emotrace.runlog import Log
from emotrace.sites import LanguageModel

Rows = list[dict[str, Any]]
KL_TOLERANCE = 0.05
"""Of the strengths of equal KL, relative."""
BOUNDS = (
    "Fluent: perplexity under the un-edited model, length and repetition within the 1st to 99th percentile of the model's "
    "replies to the emotion asked in words."
)
COLLAPSE = 0.5
"""A dose above the best one that keeps less than this share of its fluent hits has collapsed."""


class Study:
    """What every stage shares.

    Args:
        lm: the model.
        judge: the blind judge.
        run: output folder.
        templates: system messages ``neutral`` and ``emotional``.
        where: ``site``, ``scale`` and ``layers`` of every addition.
        options: ``max_new_tokens``, ``batch_size`` and ``seed`` of every generation.
    """

    def __init__(
        self, lm: LanguageModel, judge: Any, run: Run, templates: Mapping[str, str], where: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.lm, self.judge, self.run, self.templates = lm, judge, run, templates
        self.where, self.options = dict(where), dict(options)

    def plain(self, queries: Prompts) -> Prompts:
        """The queries under the neutral system message, with no emotion named or aimed at."""
        system = self.templates["neutral"]
        before = [{"role": "system", "content": system}] if system else []
        return Prompts.of(
            [
                {
                    "key": p.key,
                    "messages": before + [dict(m) for m in p.messages or ()],
                    "query": p.labels["query"],
                    "written_for": p.labels["emotion"],
                }
                for p in queries
            ]
        )

    def bounds(self, fit: Prompts) -> dict[str, list[float]]:
        """What is fluent: as the emotional answers that the vectors were made from, after the prompt without the emotion."""
        answers = Log(self.run.path("extraction", "answers.jsonl")).rows()
        rows = [{**row, "prompt": row["key"].rsplit("__", 1)[0]} for row in answers if row["condition"] == "emotional"]
        return dose.fluency_of(self.lm, self.plain(fit), rows, self.options["batch_size"])

    def respond(
        self, name: str, prompts: Prompts, payload: xr.DataArray, doses: Sequence[float], method: str = "steer", kl: bool = True
    ) -> Rows:  # fmt: skip
        """Judged replies at every dose of every emotion's vector."""
        decoding = {"max_new_tokens": self.options["max_new_tokens"]}
        return dose.dose_response(
            self.lm, prompts, payload, self.judge, doses=doses, decoding=decoding, measure_kl=kl, method=method,
            batch_size=self.options["batch_size"], seed=self.options["seed"], out=self.run.path("parts", name), **self.where,
        )  # fmt: skip

    def equal_cost(
        self, prompts: Prompts, rows: Rows, sweep: pd.DataFrame, variants: Mapping[str, xr.DataArray], chosen: float, bounds: Any
    ) -> Rows:  # fmt: skip
        """One line for the whole vectors at the chosen dose, and one for each variant at the strength of equal KL."""
        (at,) = (line for line in records(every(sweep)) if line["dose"] == chosen)
        emotions = list(dict.fromkeys(row["emotion"] for row in rows))
        forced = prompts.for_each(emotion=emotions).with_replies(at_dose(rows, 0.0))
        lines = [{"variant": "whole", "strength": chosen, "reached": True, **at}]
        for name, payload in variants.items():
            cost = dose.strength_at_kl(
                self.lm, forced, payload, None, at["kl"], start=chosen, tolerance=KL_TOLERANCE,
                batch_size=self.options["batch_size"], **self.where,
            )  # fmt: skip
            part = "".join(c if c.isalnum() else "_" for c in name)
            found = self.respond(part, prompts, payload, [cost["strength"]])
            table = stats.dose_table(found, bounds=bounds, seed=self.options["seed"])
            (line,) = (r for r in records(every(table)) if r["dose"] == cost["strength"])
            lines.append({"variant": name, "strength": cost["strength"], "reached": cost["reached"], **line})
        return [{k: v for k, v in line.items() if k not in ("dose", "emotion")} for line in lines]

    def tested(
        self, queries: Prompts, vectors: xr.DataArray, chosen: float, draws: int,
        controls: Mapping[str, Sequence[xr.DataArray]] | None = None,
    ) -> tuple[Rows, dict[str, Rows]]:  # fmt: skip
        """Replies to the test queries: at every published dose and the chosen one, and by method at the chosen one.

        Args:
            queries: the test queries.
            vectors: ``[emotion, layer, dim]``.
            chosen: dose of the methods.
            draws: of random vectors of the same length, and of vectors of other emotions.
            controls: name → further arrays of vectors, one per draw.
        """
        plain, emotions = self.plain(queries), [str(e) for e in vectors["emotion"].values]
        rows = self.respond("test", plain, vectors, [*dose.DOSES, chosen])
        methods = {
            "none": at_dose(rows, 0.0),
            "prompt": self.prompted(queries, emotions),
            "steer": at_dose(rows, chosen),
        }
        seeds = [self.options["seed"] + 1 + draw for draw in range(draws)]
        noise = [evaluation.random_like(vectors, seed) for seed in seeds]
        arrays = {
            "random": [n.copy(data=n.values * vectors["norm"].values[..., None]) for n in noise],
            "shuffled": [evaluation.deranged(vectors, seed) for seed in seeds],
            **(controls or {}),
        }
        for draw, (method, payload) in ((d, (m, p)) for m, some in arrays.items() for d, p in enumerate(some)):
            found = self.respond(f"{method}_{draw}", plain, payload, [chosen], method, kl=False)
            methods[f"{method}_{draw}"] = [{**row, "draw": draw} for row in at_dose(found, chosen)]
        return rows, methods

    def prompted(self, queries: Prompts, emotions: Sequence[str], name: str = "prompt") -> Rows:
        """The queries answered with each emotion asked in words."""
        prompts = Prompts.of(
            [
                {
                    "key": f"{p.key}__{e}",
                    "messages": [
                        {"role": "system", "content": self.templates["emotional"].replace("{emotion}", e)},
                        *(dict(m) for m in p.messages or ()),
                    ],
                    "prompt": p.key,
                    "emotion": e,
                    "query": p.labels["query"],
                }
                for p in queries
                for e in emotions
            ]
        )
        out = self.run.path("parts", f"{name}.jsonl")
        rows = et.generate(self.lm, prompts, method="prompt", out=out, **self.options)
        return judges.judge_rows(rows, self.judge, log=Log(self.run.path("parts", f"{name}.verdicts.jsonl")))

    def under_base(self, prompts: Prompts, base: xr.DataArray, k: float) -> dict[str, Any]:
        """What replies look like under k times the base vector."""
        payload = base.expand_dims(emotion=["base"])
        edits = et.edits.mixture(payload, {"base": 1.0}, strength=k, **self.where)
        out = self.run.path("parts", f"base_{k:g}.jsonl")
        rows = et.generate(self.lm, prompts, edits, method="base", out=out, **self.options)
        return {"dose": k, **stats.response_statistics([row["gen_text"] for row in rows])}


def say_shared(test: Sequence[Any], fit: Sequence[Any], tested: str, fitted: str) -> None:
    """Say which test queries are in the other file, and are left out: the published ones are. Refuse where none is left."""
    both = et.datasets.shared(test, fit)
    if len(both) == len(test):
        et.datasets.refuse_shared(test, fit, tested, fitted)
    if both:
        print(
            f"warning: {len(both)} of {len(test)} queries of {tested} are in {fitted} too, and are left out",
            file=sys.stderr,
        )


def counts(queries: Any, against: Any = ()) -> dict[str, Any]:
    """The counts of `datasets.query_report`, without its lists."""
    found = et.datasets.query_report(queries, against)
    return {k: v for k, v in found.items() if not isinstance(v, list)}


def layers_of(text: str | None) -> list[int] | None:
    """Layers of a flag; None for all."""
    return None if text is None else layer_list(text)


def at_dose(rows: Rows, at: float) -> Rows:
    """The rows of one dose."""
    return [row for row in rows if row["dose"] == at]


def every(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of a dose table that are of all emotions together, doses above 0."""
    return table.loc[(table["emotion"] == "all") & (table["dose"] > 0)]


def best_dose(table: pd.DataFrame) -> float:
    """The dose with most fluent replies on target; the smallest among equals."""
    lines = every(table)
    return float(np.array(lines["dose"])[int(np.nanargmax(np.array(lines["on_target_fluent"], dtype=float)))])


def share_of(rows: Rows) -> dict[str, Any]:
    """Share of judged replies on target, with its interval over queries."""
    judged = [(row["verdict"]["match"], row["prompt"]) for row in rows if row["verdict"]["match"] is not None]
    if not judged:
        return {"n": 0, "on_target": None, "lo": None, "hi": None}
    hits, names = zip(*judged, strict=True)
    lo, hi = stats.bootstrap_ci(hits, names, shares=True)
    return {"n": len(hits), "on_target": float(np.mean(hits)), "lo": lo, "hi": hi}


def tables(methods: Mapping[str, Rows], curve: pd.DataFrame, sweep: pd.DataFrame, equal: Rows) -> dict[str, Any]:
    """Name → (table, caption) of what every study of vectors has."""
    return {
        "methods": (
            pd.DataFrame([{"method": m, **share_of(found)} for m, found in methods.items()]),
            "Test queries: replies read as the emotion aimed at; intervals: bootstrap over queries.",
        ),
        "test": (curve, "Test queries: every published dose and the chosen one."),
        "sweep": (sweep, "The queries on which the dose was chosen."),
        "equal_kl": (pd.DataFrame(equal), "The same queries: variants at equal KL."),
    }


def generations(tested: Rows, methods: Mapping[str, Rows], chosen: float) -> Rows:
    """Every reply to the test queries, its identity (``key``, ``method``, ``draw``): further doses are methods of their own."""
    name = {0.0: "none", chosen: "steer"}
    rows = [{**row, "method": name.get(row["dose"], f"dose_{row['dose']:g}")} for row in tested]
    return rows + [row for method, found in methods.items() if method not in ("none", "steer") for row in found]


def collapse_of(table: pd.DataFrame, share: float = COLLAPSE) -> dict[str, Any]:
    """The best dose, and the smallest above it that keeps less than a share of its fluent replies on target."""
    best = best_dose(table)
    fluent = {float(line["dose"]): float(line["on_target_fluent"]) for line in records(every(table))}
    later = sorted(d for d, value in fluent.items() if d > best and value < share * fluent[best])
    return {
        "best": best, "on_target_fluent": fluent[best], "at": later[0] if later else None,
        "there": fluent[later[0]] if later else None,
    }  # fmt: skip


def facts(result: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    rate = {row["method"]: row for row in result["methods"]}
    (line,) = (r for r in result["test"] if r["emotion"] == "all" and r["dose"] == result["chosen"]["dose"])
    noise, wrong = (
        max(r["on_target"] or 0.0 for m, r in rate.items() if m.startswith(name)) for name in ("random", "shuffled")
    )
    steer, collapse = rate["steer"], result["collapse"]
    most = [e for e, found in result["diagonal"].items() if found["most"]]
    return [
        f"Chosen on held-out queries: dose {result['chosen']['dose']:g}, KL {result['chosen']['kl']:.3f} nats a token.",
        f"Test queries: {steer['on_target']:.1%} read as the emotion aimed at [{steer['lo']:.1%}, {steer['hi']:.1%}], "
        f"{line['on_target_fluent']:.1%} and fluent; un-edited {rate['none']['on_target']:.1%}, asked in words "
        f"{rate['prompt']['on_target']:.1%}, random vectors of equal length at most {noise:.1%}, another emotion's vector at "
        f"most {wrong:.1%}.",
        f"{len(most)} of {len(result['diagonal'])} vectors raise their own emotion more than any other vector does: "
        f"{', '.join(most) or 'none'}.",
        f"Fluent replies on target are most at dose {collapse['best']:g} ({collapse['on_target_fluent']:.1%})"
        + (
            f" and collapse at {collapse['at']:g} ({collapse['there']:.1%})."
            if collapse["at"] is not None
            else "; no tested dose collapses."
        ),
    ]


def warnings(lm: LanguageModel, judge: Any, result: Mapping[str, Any]) -> list[str]:
    """What a reader should know before believing the numbers."""
    shipped = lm.sites.identity.get("model_id") == "tiny_model"
    out = [] if shipped else [said for said in [measured.warning(judge.name)] if said]
    leaked = result["queries"]["test"]["n_leaked"]
    if leaked:
        out.append(f"{leaked} test queries are in the file that vectors are made from; they were left out")
    lost = [e for e, found in result["diagonal"].items() if not found["most"]]
    if lost:
        out.append(f"the vector of {', '.join(lost)} does not raise its own emotion more than the other vectors do")
    if shipped:
        out.append(
            "the shipped tiny model is for teaching and testing, trained on synthetic text: its numbers are no findings"
        )
    return out


def samples(rows: Rows, seed: int, n: int = 5) -> Rows:
    """Some prompts with their replies at every dose, drawn without looking at the replies."""
    names, emotions = (sorted({str(row[k]) for row in rows}) for k in ("prompt", "emotion"))
    order = np.random.default_rng(seed).permutation(len(names))[:n]
    picked = {(names[int(i)], emotions[at % len(emotions)]) for at, i in enumerate(order)}
    return [
        {
            "query": row["query"],
            "vector": row["emotion"],
            "dose": f"{row['dose']:g}",
            "reply": row["gen_text"],
            "read as": row["verdict"]["predicted"],
        }
        for row in sorted(rows, key=lambda r: (r["prompt"], r["dose"]))
        if (row["prompt"], row["emotion"]) in picked
    ]


def records(table: pd.DataFrame) -> Rows:
    """A table as JSON rows, None where there is no number."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()} for row in rows]
