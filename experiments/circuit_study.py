"""The stages of ``emotion_circuits.py``: one model, one judge, one folder; every stage continues where it stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from circuit_protocol import Protocol, Setting

import emotrace as et
from emotrace import attribution, directions, replies
from emotrace.datasets import Prompts
from emotrace.evaluation import Evaluation
from emotrace.replies import Row
from emotrace.replies.frontiers import Point

Points = list[dict[str, Any]]
"""Settings with what they scored."""
FIRST = 4
"""The first sample of a search is so many times smaller than the middle one."""
KEEP = 5
"""So many times as many settings as finalists go on to the middle sample."""
READ = 8
"""Training skeletons whose accepted prompted replies are read token by token."""
NEURONS, TOKENS = 3, 4
"""Of each emotion's circuit so many neurons are shown, with so many tokens each."""
TRAINING = "prompt (training)"
"""What the page calls the method of the replies that are read token by token."""


class Searched(NamedTuple):
    """What a search found.

    Attributes:
        points: every setting tried, on its largest sample.
        best: the chosen one.
        line: settings of the chosen one's line, all doses on the same skeletons.
    """

    points: Points
    best: Setting
    line: Points


class Read(NamedTuple):
    """The reply tokens at which the highest-ranked neurons of each emotion's circuit are highest.

    Attributes:
        tokens: one row per emotion, neuron and rank, of `attribution.top_prompts`; ``emotion`` says whose neuron it is, ``asked``
            what the prompt asks for.
        record: for report.json: which replies, and the tokens.
        rows: of these replies, under the method `TRAINING`.
        projection: ``[token]``: how far each token lies along the direction of the emotion that was asked for.
    """

    tokens: pd.DataFrame
    record: dict[str, Any]
    rows: list[Row]
    projection: xr.DataArray


@dataclass(frozen=True)
class Study(Evaluation):
    """The arms of one run, the edits of a setting, and the choice among settings.

    Attributes:
        protocol: decoding, settings to search, and what else the paper did otherwise.
        bounds: of what is fluent; empty until it was measured.
    """

    protocol: Protocol = field(kw_only=True)
    bounds: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def decoding_of(self, method: str) -> Mapping[str, Any]:
        """As the protocol says."""
        return self.protocol.decoding_of(method)

    def ablated(
        self, name: str, prompts: Prompts, method: str, circuit: et.Circuit, draw: int = 0, *, how: Any, positions: Any,
        reference: et.Activations | None = None, donor: Mapping[str, str] | None = None,
    ) -> list[Row]:  # fmt: skip
        """Replies to prompts that ask for an emotion, its components taken away.

        Args:
            name: of the files.
            prompts: that ask.
            method: label of the rows.
            circuit: whose components.
            draw: of random ones.
            how: of `Circuit.ablations`, as are the others.
            positions: where.
            reference: with ``resample``, the donors' activations.
            donor: with ``resample``, prompt → donor.
        """
        rows: list[Row] = []
        for emotion in circuit.labels:
            asked = prompts.where(emotion=emotion)
            mine = None if donor is None else {key: donor[key] for key in asked.keys}
            edits = circuit.ablations(emotion, how=how, positions=positions, reference=reference, donor=mine)
            rows += self.replies(f"{name}_{emotion}", asked, edits, method=method, draw=draw)
        return rows

    def scored(self, name: str, rows: list[Row], plain: Prompts) -> list[Row]:
        """`measured` against the bounds, kept under a name."""
        return self.measured(rows, plain, self.bounds or None, name)

    # -- edits --------------------------------------------------------------------------------------------------

    def steering(self, dirs: xr.DataArray, setting: Setting) -> list[Any]:
        """One addition per layer at ``resid_post``, ``dose`` · ‖h‖ long."""
        strength = setting["dose"] * math.sqrt(self.model.sites.d_model)
        where: dict[str, Any] = {k: setting[k] for k in ("layers", "positions")}
        return [et.Add("resid_post", vector=dirs, strength=strength, scale="rms", **where)]

    def modulated(self, circuit: et.Circuit, setting: Setting) -> list[Any]:
        """λ times the circuit's difference vectors at its neurons and heads."""
        where: dict[str, Any] = {k: setting[k] for k in ("neuron_positions", "head_positions")}
        return circuit.edits(setting["lambda"], by_label=self.protocol.by_label, **where)

    # -- choices on held-out training skeletons -----------------------------------------------------------------

    def tried(self, method: str, setting: Setting, held: Prompts, size: int, plain: Prompts, edits: Any) -> list[Row]:
        """Replies under one setting to the first skeletons, measured; again, they are read from their file."""
        name, some = _named(method, setting, size), held.limit(size).for_each(emotion=et.EMOTIONS)
        return self.scored(name, self.replies(name, some, edits(setting), method=method), plain)

    def search(
        self,
        held: Prompts,
        plain: Prompts,
        method: str,
        lines: Sequence[Sequence[Setting]],
        edits: Any,
        middle: int,
        finalists: int,
        wide: Prompts,
    ) -> Searched:
        """Settings by successive halving: all on a few held-out skeletons, the best on ``middle``, the best of these on all.

        Where an end of a line is best, doses beyond it are tried: half of the smallest, or twice the largest.

        Args:
            held: plain prompts of the held-out training skeletons.
            plain: prompts that perplexity is measured after.
            method: the arm.
            lines: settings that differ in dose only, by growing dose.
            edits: setting → edits.
            middle: skeletons of the middle sample.
            finalists: settings that go on to all held-out skeletons.
            wide: plain prompts of the skeletons on which every dose of the chosen line is measured.
        """
        skeletons = len({p.labels["skeleton_id"] for p in held})
        sizes = [min(skeletons, n) for n in (-(-middle // FIRST), middle, skeletons)]
        if sum(map(len, lines)) == 1:
            sizes = [sizes[-1]] * 3  # nothing to choose

        def measure(setting: Setting, size: int, prompts: Prompts = held) -> dict[str, Any]:
            rows = self.tried(method, setting, prompts, size, plain, edits)
            return {**_scores(rows, method), **setting, "skeletons": size}

        further: list[Setting] = []

        def beyond(setting: Setting, up: bool) -> Setting:
            name = size_of(setting)
            further.append({**setting, name: setting[name] * (2 if up else 0.5)})
            return further[-1]

        points, best = replies.search(lines, measure, sizes, (KEEP * finalists, finalists), beyond)
        of_best = next(line for line in lines if _place(line[0]).items() <= best.items())
        doses = sorted([*of_best, *further], key=lambda setting: float(setting[size_of(setting)]))
        of_line = len({p.labels["skeleton_id"] for p in wide})
        line = [measure(setting, of_line, wide) for setting in doses]
        largest: dict[str, dict[str, Any]] = {}
        for point in (*points, *line):  # of each setting that on its largest sample
            name = str([v for k, v in point.items() if k in of_best[0]])
            if name not in largest or point["skeletons"] > largest[name]["skeletons"]:
                largest[name] = dict(point)
        return Searched(list(largest.values()), dict(best), line)

    def cost(
        self, method: str, lines: Sequence[Sequence[Setting]], found: Searched, base: list[Row], prompts: Prompts, plain: Prompts,
        edits: Any,
    ) -> list[Point]:  # fmt: skip
        """The doses of the chosen line, with their replies and what each costs: `divergence` from the un-edited model.

        Args:
            method: the arm.
            lines: that were searched.
            found: of `search`.
            base: the un-edited model's rows, one per plain prompt.
            prompts: the plain prompts of the skeletons of its line.
            plain: prompts that perplexity is measured after.
            edits: setting → edits.
        """
        aimed, out = prompts.for_each(emotion=et.EMOTIONS), []
        for point in found.line:
            setting = {name: point[name] for name in lines[0][0]}
            rows = self.tried(method, setting, prompts, point["skeletons"], plain, edits)
            name = _named(method, setting, point["skeletons"])
            cost = self.divergence(aimed, base, prompts, edits(setting), name)
            size = float(setting[size_of(setting)])
            out.append(Point(method, size, rows, cost, setting.items() <= found.best.items()))
        return out

    # -- what a reader looks at first ---------------------------------------------------------------------------

    def read(
        self,
        prompts: Prompts,
        prompted: Sequence[Row],
        circuit: et.Circuit,
        neurons: xr.Dataset | None,
        dirs: xr.DataArray,
        out: Path,
        seed: int,
    ) -> Read | None:
        """Where in accepted replies the neurons of a circuit are highest, and how far each token lies along its direction.

        The layers of these neurons are captured once, at the reply tokens of the first `READ` skeletons (spread over themes); the
        projection is on the residual stream after the last of them. None for a circuit without neurons, or no such reply.
        """
        table = circuit.components.query("kind == 'neuron'").rename(columns={"index": "unit"})
        shown = table.sort_values("score", ascending=False, kind="stable").groupby("emotion", sort=False).head(NEURONS)
        some, good = prompts.limit(READ), set(directions.accepted(prompted))
        rows = [r for r in prompted if r["key"] in good & set(some.keys) and r["token_ids"]]
        if neurons is None or not len(shown) or not rows:
            return None
        replied = some.with_replies(rows)
        skeletons = sorted({str(p.labels["skeleton_id"]) for p in replied})
        of = f"{len(replied)} accepted prompted replies to {len(skeletons)} training skeletons of the part fitted on"
        units = {
            int(i): sorted({int(u) for u in shown["unit"][shown["layer"] == i]}) for i in sorted(set(shown["layer"]))
        }
        where: dict[str, Any] = {
            "layers": list(units), "positions": "generated", "out": out, "batch_size": self.batch_size, "seed": seed
        }  # fmt: skip
        sites = ["neuron", "resid_post"]
        print(f"neurons at the reply tokens of {of}: {et.capture.plan(self.model, replied, sites, **where)}")
        acts = et.capture(self.model, replied, sites, **where)
        found = [attribution.top_prompts(acts, layer, some_units, k=TOKENS) for layer, some_units in units.items()]
        named = shown.filter(["emotion", "layer", "unit", "score"])
        named = named.sort_values(["emotion", "score"], ascending=[True, False])
        tokens = named.merge(pd.concat(found).rename(columns={"emotion": "asked"}), on=["layer", "unit"])
        at = {name: xr.DataArray(tokens[name].to_numpy(), dims="row") for name in ("emotion", "layer", "unit")}
        tokens["beta"] = neurons["beta"].sel(at).values
        kept = ["emotion", "layer", "unit", "score", "beta", "rank", "activation", "key", "asked", "position_from_end"]
        lines = tokens.filter([*kept, "before", "token_text", "after"]).to_dict("records")
        record = {
            "of": of, "n_replies": len(replied), "n_tokens": len(acts), "skeletons": skeletons, "store": out.name,
            "selection": acts.selection, "plan_digest": acts.attrs["plan_digest"], "tokens": lines,
        }  # fmt: skip
        record["projected"] = {"site": "resid_post", "layer": max(units)}
        along = directions.project(acts, dirs.sel(sublayer=["resid_post"], layer=[max(units)]))
        along = along.squeeze([d for d in along.dims if d in ("layer", "sublayer")])
        own = along.sel(direction=xr.DataArray(along["emotion"].values, dims="token"))
        return Read(tokens, record, [{**row, "method": TRAINING} for row in rows], own)

    def views(
        self,
        prompts: Prompts,
        acts: et.Activations,
        dirs: xr.DataArray,
        neurons: xr.Dataset | None,
        heads: xr.Dataset | None,
    ) -> dict[str, Any]:
        """Top tokens of the directions, patterns of the top heads, prompts that activate the top neurons most."""
        out: dict[str, Any] = {"tokens": attribution.top_tokens(self.model, dirs.sel(sublayer="resid_post"), k=8)}
        if heads is not None and self.model.sites.has("attn_pattern"):
            patterns = []
            for emotion in heads["emotion"].values.tolist():
                layer, head = _best(heads["contrast"].sel(emotion=emotion))
                prompt = prompts.where(emotion=emotion)[0]
                patterns.append(attribution.attention(self.model, prompt, layer, head).assign_attrs(emotion=emotion))
            out["attention"] = patterns
        if neurons is not None:
            texts = {p.key: f"{p.labels['scenario']}\n{p.labels['event']}" for p in prompts.limit(16)}
            some = acts.where(key=list(texts))
            frames = []
            for emotion in neurons["emotion"].values.tolist():
                layer, unit = _best(neurons["contrast"].sel(emotion=emotion))
                found = attribution.top_prompts(some, layer, [unit], k=4)
                found["text"] = [texts[key] for key in found["key"]]
                weight = float(neurons["beta"].sel(emotion=emotion, layer=layer, unit=unit))
                frames.append(found.rename(columns={"emotion": "asked"}).assign(emotion=emotion, beta=weight))
            out["top_prompts"] = pd.concat(frames, ignore_index=True)
        return out


def comparison(points: Points, costs: Sequence[Point]) -> Points:
    """The points of a line with ``kl``, the mean over prompts."""
    return [
        {**point, "kl": float(np.nanmean(list(cost.kl.values())) if cost.kl else np.nan)}
        for point, cost in zip(points, costs, strict=True)
    ]


def _scores(rows: list[Row], method: str) -> dict[str, Any]:
    """Accuracy and fluency of one setting."""
    blind, both = (replies.accuracy_over_draws(rows, fluent=fluent)["overall"] for fluent in (False, True))
    known = sorted(r["meta"]["perplexity"] for r in rows if r["meta"]["perplexity"] is not None)
    return {
        "method": method, "accuracy": blind["value"], "accuracy_fluent": both["value"], "ci95": both["ci95"],
        "perplexity": known[len(known) // 2] if known else None, "n": blind["n"],
    }  # fmt: skip


def size_of(setting: Setting) -> str:
    """What is its size: the dose of steering, or λ."""
    return "dose" if "dose" in setting else "lambda"


def _place(setting: Setting) -> Setting:
    """All of a setting but its size."""
    return {name: value for name, value in setting.items() if name != size_of(setting)}


def _named(method: str, setting: Setting, size: int) -> str:
    """Stem of the files of a setting."""
    return "_".join([method, *map(_short, setting.values()), str(size)])


def _short(value: Any) -> str:
    """A part of a setting in a file name."""
    return f"{value[0]}-{value[-1]}" if isinstance(value, (list, tuple)) else str(value)


def _best(contrast: xr.DataArray) -> tuple[int, int]:
    """Layer and index of the component with the highest contrast."""
    layer, index = np.unravel_index(int(contrast.values.argmax()), contrast.shape)
    return int(contrast["layer"].values[layer]), int(contrast[contrast.dims[1]].values[index])
