"""The stages of ``emotion_vectors.py`` and ``goemotions_steering.py``: one model, judge and folder; every stage continues."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
import xarray as xr

import emotrace as et
from emotrace import dose, replies, shipped
from emotrace.cli.options import layer_list
from emotrace.datasets import Prompts
from emotrace.evaluation import Evaluation, plain_of
from emotrace.judges import measured
from emotrace.replies import Row
from emotrace.replies.search import of_all
from emotrace.run import records
from emotrace.sites import LanguageModel

TestQueries = Annotated[Path, typer.Option(help="queries to measure on, once")]
TrialLimit = Annotated[
    int | None, typer.Option(min=1, help="queries of an emotion to choose the dose on, where other than --limit")
]
Scale = Annotated[str, typer.Option(help="raw (as published) | unit | rms | share of the activation's length")]
Draws = Annotated[int, typer.Option(help="draws of each control")]

PREFILLED = (1, 2, 4)
"""First tokens that the replies of the arms ``prefill_…`` are begun with."""
KL_TOLERANCE = 0.05
"""Of the strengths of equal KL, relative."""
BOUNDS = (
    "Fluent: perplexity under the un-edited model, length and repetition within the 1st to 99th percentile of the model's "
    "replies to the emotion asked in words."
)


@dataclass(frozen=True)
class Study(Evaluation):
    """The arms of one run: queries asked plainly, asked in words, and answered under vectors at many doses.

    Attributes:
        templates: system messages ``neutral`` and ``emotional``.
        where: ``site``, ``scale`` and ``layers`` of every addition.
    """

    templates: Mapping[str, str] = field(kw_only=True)
    where: Mapping[str, Any] = field(kw_only=True)

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

    def bounds(self, fit: Prompts, answered: Path) -> dict[str, list[float]]:
        """What is fluent: as the emotional answers that the vectors were made from, after the prompt without the emotion."""
        rows: list[Row] = [{**row, "prompt": row["key"].rsplit("__", 1)[0]} for row in emotional(answered)]
        return dose.fluency_of(self.model, self.plain(fit), rows, self.batch_size)

    def elicited(self, answered: Path) -> dict[str, dict[str, Any]]:
        """How many answers that vectors are made of read as their query's emotion, by condition: of all, and by emotion."""
        found: dict[str, dict[str, Any]] = {}
        for row in replies.read_rows(answered):
            found.setdefault(row["condition"], {}).setdefault("all", []).append(
                {**row, "prompt": row["key"].rsplit("__", 1)[0]}
            )
        for condition, told in found.items():
            rows = self.judged(f"answers_{condition}", told["all"])
            emotions = dict.fromkeys(row["emotion"] for row in rows)
            found[condition] = {
                "all": share_of(rows),
                **{e: share_of([row for row in rows if row["emotion"] == e]) for e in emotions},
            }
        return found

    def respond(
        self, name: str, prompts: Prompts, payload: xr.DataArray, doses: Sequence[float], method: str = "steer", kl: bool = True
    ) -> list[Row]:  # fmt: skip
        """Judged replies at every dose of every emotion's vector."""
        assert self.judge is not None
        return dose.dose_response(
            self.model, prompts, payload, self.judge, doses=doses, decoding=self.decoding, measure_kl=kl, method=method,
            batch_size=self.batch_size, seed=self.seed, out=self.file(name), **self.where,
        )  # fmt: skip

    def equal_cost(
        self, prompts: Prompts, rows: list[Row], sweep: pd.DataFrame, variants: Mapping[str, xr.DataArray], chosen: float,
        bounds: Any,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """One line for the whole vectors at the chosen dose, and one for each variant at the strength of equal KL."""
        (at,) = (line for line in records(of_all(sweep)) if line["dose"] == chosen)
        emotions = list(dict.fromkeys(row["emotion"] for row in rows))
        forced = prompts.for_each(emotion=emotions).with_replies(at_dose(rows, 0.0))
        lines = [{"variant": "whole", "strength": chosen, "reached": True, **at}]
        for name, payload in variants.items():
            cost = dose.strength_at_kl(
                self.model, forced, payload, None, at["kl"], start=chosen, tolerance=KL_TOLERANCE,
                batch_size=self.batch_size, **self.where,
            )  # fmt: skip
            part = "".join(c if c.isalnum() else "_" for c in name)
            found = self.respond(part, prompts, payload, [cost["strength"]])
            table = replies.dose_table(found, bounds=bounds, seed=self.seed)
            (line,) = (r for r in records(of_all(table)) if r["dose"] == cost["strength"])
            lines.append({"variant": name, "strength": cost["strength"], "reached": cost["reached"], **line})
        return [{k: v for k, v in line.items() if k not in ("dose", "emotion")} for line in lines]

    def tested(
        self, queries: Prompts, vectors: xr.DataArray, chosen: float, draws: int, own: Sequence[Row],
        controls: Mapping[str, Sequence[xr.DataArray]] | None = None,
    ) -> tuple[list[Row], dict[str, list[Row]]]:  # fmt: skip
        """Replies to the test queries: at every published dose and the chosen one, and by method at the chosen one.

        Those by method are judged from their third token on as well.

        Args:
            queries: the test queries.
            vectors: ``[emotion, layer, dim]``.
            chosen: dose of the methods.
            draws: of random vectors of the same length, and of vectors of other emotions.
            own: the model's own replies to other queries, the emotion asked in words, whose first tokens `begun` replies have.
            controls: name → further arrays of vectors, one per draw.
        """
        plain, emotions = self.plain(queries), [str(e) for e in vectors["emotion"].values]
        rows = self.respond("test", plain, vectors, list(dict.fromkeys([*dose.DOSES, chosen])))
        methods = {
            "none": at_dose(rows, 0.0),
            "prompt": self.prompted(queries, emotions),
            "steer": at_dose(rows, chosen),
        }
        goal = plain.for_each(emotion=emotions)
        base = plain_of(plain, goal)
        goal = Prompts(replace(p, labels={**p.labels, "prompt": base[p.key]}) for p in goal)
        for n in PREFILLED:
            name = f"prefill_{n}"
            methods[name] = self.begun(name, goal, replies.openings(own, n), method=name)
        seeds = [self.seed + 1 + draw for draw in range(draws)]
        arrays = {
            "random": [replies.random_vectors(vectors, seed) for seed in seeds],
            "wrong_emotion": [replies.deranged(vectors, seed) for seed in seeds],
            **(controls or {}),
        }
        for draw, (method, payload) in ((d, (m, p)) for m, some in arrays.items() for d, p in enumerate(some)):
            found = self.respond(f"{method}_{draw}", plain, payload, [chosen], method, kl=False)
            drawn: list[Row] = [{**row, "draw": draw} for row in at_dose(found, chosen)]
            methods[f"{method}_{draw}"] = drawn
        return rows, {name: self.from_third(name, found) for name, found in methods.items()}

    def prompted(self, queries: Prompts, emotions: Sequence[str], name: str = "prompt") -> list[Row]:
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
        return self.replies(name, prompts, method="prompt")

    def under_base(self, prompts: Prompts, base: xr.DataArray, k: float) -> dict[str, Any]:
        """What replies look like under k times the base vector."""
        payload = base.expand_dims(emotion=["base"])
        edits = et.edits.mixture(payload, {"base": 1.0}, strength=k, **self.where)
        rows = self.generated(f"base_{k:g}", prompts, edits, method="base")
        return {"dose": k, **replies.response_statistics([row["gen_text"] for row in rows])}


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


def emotional(answered: Path) -> list[Row]:
    """The answers that vectors were made from in which an emotion was asked for."""
    return [row for row in replies.read_rows(answered) if row["condition"] == "emotional"]


def at_dose(rows: list[Row], at: float) -> list[Row]:
    """The rows of one dose."""
    return [row for row in rows if row["dose"] == at]


def share_of(rows: list[Row], verdict: str = "verdict") -> dict[str, Any]:
    """Share of judged replies on target, with its interval over queries."""
    found = replies.mean_of(replies.table(rows, ("match",), cluster="prompt", verdict=verdict), "match", shares=True)
    if not found.n:
        return {"n": 0, "on_target": None, "lo": None, "hi": None}
    return {"n": found.n, "on_target": found.value, "lo": found.lo, "hi": found.hi}


def elicitation(found: Mapping[str, Mapping[str, Any]]) -> tuple[str, bool]:
    """What `Study.elicited` found in a sentence, and whether asking did something: its interval lies above the neutral share."""
    asked, neutral = found["emotional"], found["neutral"]["all"]
    told, does = asked["all"], asked["all"]["lo"] > neutral["on_target"]
    by = ", ".join(f"{e} {line['on_target']:.0%}" for e, line in asked.items() if e != "all")
    return (
        f"Asked in words, {told['on_target']:.1%} [{told['lo']:.1%}, {told['hi']:.1%}] of {told['n']} answers read as the "
        f"emotion ({by}), of neutral answers {neutral['on_target']:.1%}"
        + (
            "."
            if does
            else ": asking elicits nothing here that can be told from none, and vectors are made of these answers."
        ),
        does,
    )


def tables(
    methods: Mapping[str, list[Row]], curve: pd.DataFrame, sweep: pd.DataFrame, equal: list[dict[str, Any]]
) -> dict[str, Any]:
    """Name → (table, caption) of what every study of vectors has."""
    return {
        "methods": (
            pd.DataFrame(
                [
                    {"method": m, **share_of(found), "from_third": share_of(found, "verdict_from_third")["on_target"]}
                    for m, found in methods.items()
                ]
            ),
            "Test queries: replies read as the emotion aimed at; intervals: bootstrap over queries. from_third: judged from the "
            "third token on. prefill: the un-edited model, its reply begun with the commonest first tokens of its own.",
        ),
        "test": (curve, "Test queries: every published dose and the chosen one."),
        "sweep": (sweep, "The queries on which the dose was chosen."),
        "equal_kl": (pd.DataFrame(equal), "The same queries: variants at equal KL."),
    }


def generations(tested: list[Row], methods: Mapping[str, list[Row]], chosen: float) -> list[Row]:
    """Every reply to the test queries, its identity (``key``, ``method``, ``draw``): further doses are methods of their own."""
    name = {0.0: "none", chosen: "steer"}
    rows: list[Row] = [{**row, "method": name.get(row["dose"], f"dose_{row['dose']:g}")} for row in tested]
    return rows + [row for method, found in methods.items() if method not in ("none", "steer") for row in found]


def facts(result: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    rate = {row["method"]: row for row in result["methods"]}
    (line,) = (r for r in result["test"] if r["emotion"] == "all" and r["dose"] == result["chosen"]["dose"])
    noise, wrong = (
        max(r["on_target"] or 0.0 for m, r in rate.items() if m.startswith(name))
        for name in ("random", "wrong_emotion")
    )
    steer, collapse = rate["steer"], result["collapse"]
    begun = rate["prefill_4"]
    most = [e for e, found in result["diagonal"].items() if found["most"]]
    return [
        *([elicitation(result["elicited"])[0]] if "elicited" in result else []),
        f"Chosen on held-out queries: dose {result['chosen']['dose']:g}, KL {result['chosen']['kl']:.3f} nats a token.",
        f"Test queries: {steer['on_target']:.1%} read as the emotion aimed at [{steer['lo']:.1%}, {steer['hi']:.1%}], "
        f"{line['on_target_fluent']:.1%} and fluent; un-edited {rate['none']['on_target']:.1%}, asked in words "
        f"{rate['prompt']['on_target']:.1%}, random vectors of equal length at most {noise:.1%}, another emotion's vector at "
        f"most {wrong:.1%}.",
        f"Begun with the four commonest first tokens of its own replies, the un-edited model: {begun['on_target']:.1%}; from the "
        f"third token on {begun['from_third']:.1%}, steered {steer['from_third']:.1%}.",
        f"{len(most)} of {len(result['diagonal'])} vectors raise their own emotion more than any other vector does: "
        f"{', '.join(most) or 'none'}.",
        f"Fluent replies on target are most at dose {collapse['best']:g} ({collapse['on_target_fluent']:.1%})"
        + (
            f" and collapse at {collapse['at']:g} ({collapse['there']:.1%})."
            if collapse["at"] is not None
            else "; no tested dose collapses."
        ),
        *(claim["sentence"] for claim in result["claims"]),
    ]


def warnings(lm: LanguageModel, judge: Any, result: Mapping[str, Any]) -> list[str]:
    """What a reader should know before believing the numbers."""
    out = [said for said in [measured.warning(judge, lm.sites.identity)] if said]
    if "elicited" in result and not elicitation(result["elicited"])[1]:
        out.append(elicitation(result["elicited"])[0])
    leaked = result["queries"]["test"]["n_leaked"]
    if leaked:
        out.append(f"{leaked} test queries are in the file that vectors are made from; they were left out")
    lost = [e for e, found in result["diagonal"].items() if not found["most"]]
    if lost:
        out.append(f"the vector of {', '.join(lost)} does not raise its own emotion more than the other vectors do")
    if shipped.is_shipped(lm.sites.identity):
        out.append(shipped.CAVEAT)
    return out
