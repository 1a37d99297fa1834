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
from emotrace.labels import ARMS
from emotrace.replies import Row

Points = list[dict[str, Any]]
"""Settings with what they scored."""
PAIRS = (("circuit", "prompt"), ("circuit", "steer"), ("steer", "prompt"), ("circuit", "none"), ("steer", "none"))
"""Methods whose difference is tested, pair by pair."""
FIRST = 4
"""The first sample of a search is so many times smaller than the middle one."""
KEEP = 5
"""So many times as many settings as finalists go on to the middle sample."""
READ = 8
"""Training skeletons whose accepted prompted replies are read token by token."""
NEURONS, TOKENS = 3, 4
"""Of each emotion's circuit so many neurons are shown, with so many tokens each."""


class Read(NamedTuple):
    """The reply tokens at which the highest-ranked neurons of each emotion's circuit are highest.

    Attributes:
        tokens: one row per emotion, neuron and rank, of `attribution.top_prompts`; ``emotion`` says whose neuron it is, ``asked``
            what the prompt asks for.
        record: for report.json: which replies, and the tokens.
    """

    tokens: pd.DataFrame
    record: dict[str, Any]


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

    def ablated(self, name: str, prompts: Prompts, method: str, circuit: et.Circuit, draw: int = 0) -> list[Row]:
        """Replies to prompts that ask for an emotion, its components set to 0 from the last prompt token on."""
        rows: list[Row] = []
        for emotion in circuit.labels:
            edits, asked = circuit.ablations(emotion, how="zero"), prompts.where(emotion=emotion)
            rows += self.replies(f"{name}_zero_{emotion}", asked, edits, method=method, draw=draw)
        return rows

    def scored(self, rows: list[Row], plain: Prompts) -> list[Row]:
        """`measured` against the bounds."""
        return self.measured(rows, plain, self.bounds or None)

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

    def point(self, name: str, aimed: Prompts, plain: Prompts, method: str, edits: Any) -> dict[str, Any]:
        """Accuracy and fluency of one setting."""
        rows = self.scored(self.replies(name, aimed, edits, method=method), plain)
        blind, both = (replies.accuracy_over_draws(rows, fluent=fluent)["overall"] for fluent in (False, True))
        known = sorted(r["meta"]["perplexity"] for r in rows if r["meta"]["perplexity"] is not None)
        return {
            "method": method, "accuracy": blind["value"], "accuracy_fluent": both["value"], "ci95": both["ci95"],
            "perplexity": known[len(known) // 2] if known else None, "n": blind["n"],
        }  # fmt: skip

    def search(
        self,
        held: Prompts,
        plain: Prompts,
        method: str,
        lines: Sequence[Sequence[Setting]],
        edits: Any,
        middle: int,
        finalists: int,
    ) -> tuple[Points, Setting, Points]:
        """Settings by successive halving: all on a few held-out skeletons, the best on ``middle``, the best of these on all.

        Args:
            held: plain prompts of the held-out training skeletons.
            plain: prompts that perplexity is measured after.
            method: ``steer`` or ``circuit``.
            lines: settings that differ in dose only, by growing dose.
            edits: setting → edits.
            middle: skeletons of the middle sample.
            finalists: settings that go on to all held-out skeletons.

        Returns:
            Every setting tried, on its largest sample; the chosen one; and its line, all doses on the middle sample.
        """
        skeletons = len({p.labels["skeleton_id"] for p in held})
        sizes = [min(skeletons, n) for n in (-(-middle // FIRST), middle, skeletons)]
        if sum(map(len, lines)) == 1:
            sizes = [sizes[-1]] * 3  # nothing to choose

        def measure(setting: Setting, size: int) -> dict[str, Any]:
            some = held.limit(size).for_each(emotion=et.EMOTIONS)
            name = "_".join([method, *map(_short, setting.values()), str(size)])
            return {**self.point(name, some, plain, method, edits(setting)), **setting, "skeletons": size}

        points, best = replies.search(lines, measure, sizes, (KEEP * finalists, finalists))
        of_best = next(line for line in lines if any(s.items() <= best.items() for s in line))
        line = [measure(setting, sizes[1]) for setting in of_best]
        largest: dict[str, dict[str, Any]] = {}
        for point in (*points, *line):  # of each setting that on its largest sample
            name = str([v for k, v in point.items() if k in of_best[0]])
            if name not in largest or point["skeletons"] > largest[name]["skeletons"]:
                largest[name] = dict(point)
        return list(largest.values()), dict(best), line

    def cost(self, points: Points, aimed: Prompts, base: list[Row], prompts: Prompts, edits: Any) -> Points:
        """The points with ``kl``, the mean of `divergence` over prompts.

        Args:
            points: a line of `search`.
            aimed: prompts, one for each emotion.
            base: the un-edited model's rows, one per plain prompt.
            prompts: the plain prompts.
            edits: point → edits.
        """
        out = []
        for point in points:
            found = self.divergence(aimed, base, prompts, edits(point))
            out.append({**point, "kl": float(np.nanmean([found.get(p.key, np.nan) for p in aimed]))})
        return out

    # -- what a reader looks at first ---------------------------------------------------------------------------

    def read(
        self,
        prompts: Prompts,
        prompted: Sequence[Row],
        circuit: et.Circuit,
        neurons: xr.Dataset | None,
        out: Path,
        seed: int,
    ) -> Read | None:
        """Where in accepted replies the neurons of a circuit are highest; None for a circuit without neurons, or no such reply.

        The layers of these neurons are captured once, at the reply tokens of the first `READ` skeletons (spread over themes).
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
        print(f"neurons at the reply tokens of {of}: {et.capture.plan(self.model, replied, 'neuron', **where)}")
        acts = et.capture(self.model, replied, "neuron", **where)
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
        return Read(tokens, record)

    def views(
        self,
        prompts: Prompts,
        acts: et.Activations,
        dirs: xr.DataArray,
        neurons: xr.Dataset | None,
        heads: xr.Dataset | None,
    ) -> Any:
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
            texts = {p.key: str(p.messages[-1]["content"]) for p in prompts.limit(16) if p.messages}
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


def paired(rows: list[Row], bounds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Differences between methods on the same prompts, fluent matches only, tested over skeletons."""
    by_method = {m: [r for r in rows if r["method"] == m] for m in ARMS}
    found = []
    for a, b in PAIRS:
        if by_method.get(a) and by_method.get(b):
            test = replies.paired_test(by_method[a], by_method[b], bounds=bounds)
            found.append(
                {"a": a, "b": b, "difference": test["value"], "ci95": test["ci95"], "p": test["p"], "p_floor": test["p_floor"],
                 "n_skeletons": test["n_clusters"], "score": "accuracy_fluent"}
            )  # fmt: skip
    return found


def _short(value: Any) -> str:
    """A part of a setting in a file name."""
    return f"{value[0]}-{value[-1]}" if isinstance(value, (list, tuple)) else str(value)


def _best(contrast: xr.DataArray) -> tuple[int, int]:
    """Layer and index of the component with the highest contrast."""
    layer, index = np.unravel_index(int(contrast.values.argmax()), contrast.shape)
    return int(contrast["layer"].values[layer]), int(contrast[contrast.dims[1]].values[index])
