"""The stages of ``emotion_circuits.py``: one model, one judge, one folder; every stage continues where it stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from circuit_protocol import Protocol, Setting

import emotrace as et
from emotrace import attribution, evaluation, judges, scoring, stats
from emotrace.datasets import Prompts
from emotrace.labels import METHODS
from emotrace.run import Run
from emotrace.runlog import Log
from emotrace.sites import LanguageModel

Rows = list[dict[str, Any]]
PAIRS = (("circuit", "prompt"), ("circuit", "steer"), ("steer", "prompt"), ("circuit", "none"), ("steer", "none"))
"""Methods whose difference is tested, pair by pair."""
FIRST = 4
"""The first sample of a search is so many times smaller than the middle one."""
KEEP = 5
"""So many times as many settings as finalists go on to the middle sample."""


class Study:
    """What every stage shares.

    Args:
        lm: the model.
        judge: the blind judge.
        run: output folder.
        protocol: decoding, settings to search, and what else the paper did otherwise.
        batch_size: prompts per batch.
        target_aware: ask the published target-aware question as well.
    """

    def __init__(
        self, lm: LanguageModel, judge: Any, run: Run, protocol: Protocol, batch_size: int, target_aware: bool
    ) -> None:
        self.lm, self.judge, self.run, self.protocol = lm, judge, run, protocol
        self.batch_size, self.target_aware = batch_size, target_aware
        self.bounds: dict[str, Any] = {}

    # -- replies ------------------------------------------------------------------------------------------------

    def generated(self, name: str, prompts: Prompts, method: str, edits: Any = (), draw: int = 0) -> Rows:
        """Replies as rows."""
        return et.generate(
            self.lm, prompts, edits, method=method, draw=draw, batch_size=self.batch_size,
            out=self.run.path("parts", f"{name}.jsonl"), **self.protocol.decoding_of(method),
        )  # fmt: skip

    def judged(self, name: str, rows: Rows) -> Rows:
        """Rows with verdicts, where an emotion was aimed at."""
        log = Log(self.run.path("parts", f"{name}.verdicts.jsonl"))
        return judges.judge_rows(rows, self.judge, log=log, target=self.target_aware)

    def replies(self, name: str, prompts: Prompts, method: str, edits: Any = (), draw: int = 0) -> Rows:
        """Generated and judged rows."""
        return self.judged(name, self.generated(name, prompts, method, edits, draw))

    def ablated(self, name: str, prompts: Prompts, method: str, circuit: et.Circuit, draw: int = 0) -> Rows:
        """Replies to prompts that ask for an emotion, its components set to 0 from the last prompt token on."""
        rows: Rows = []
        for emotion in circuit.labels:
            edits = circuit.ablations(emotion, how="zero")
            rows += self.replies(f"{name}_zero_{emotion}", prompts.where(emotion=emotion), method, edits, draw)
        return rows

    def score(self, rows: Rows, plain: Prompts) -> Rows:
        """The rows with the perplexity of every reply after the prompt without the emotion sentence, and what is fluent."""
        scoring.add_perplexity(self.lm, rows, {p.key: p for p in plain}, self.batch_size)
        for row in rows:
            row["meta"]["repetition"] = stats.repetition(row["token_ids"])
            row["meta"]["length"] = len(row["token_ids"])
        if self.bounds:
            evaluation.mark_fluent(rows, self.bounds)
        return rows

    # -- edits --------------------------------------------------------------------------------------------------

    def steering(self, dirs: xr.DataArray, setting: Setting) -> list[Any]:
        """One addition per layer at ``resid_post``, ``dose`` · ‖h‖ long."""
        strength = setting["dose"] * math.sqrt(self.lm.sites.d_model)
        where: dict[str, Any] = {k: setting[k] for k in ("layers", "positions")}
        return [et.Add("resid_post", vector=dirs, strength=strength, scale="rms", **where)]

    def modulated(self, circuit: et.Circuit, setting: Setting) -> list[Any]:
        """λ times the circuit's difference vectors at its neurons and heads."""
        where: dict[str, Any] = {k: setting[k] for k in ("neuron_positions", "head_positions")}
        return circuit.edits(setting["lambda"], by_label=self.protocol.by_label, **where)

    # -- choices on held-out training skeletons -----------------------------------------------------------------

    def point(self, name: str, aimed: Prompts, plain: Prompts, method: str, edits: Any) -> dict[str, Any]:
        """Accuracy and fluency of one setting."""
        rows = self.score(self.replies(name, aimed, method, edits), plain)
        blind, both = evaluation.accuracy(rows)["overall"], evaluation.accuracy(rows, fluent=True)["overall"]
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
    ) -> tuple[Rows, Setting, Rows]:
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

        points, best = evaluation.search(lines, measure, sizes, (KEEP * finalists, finalists))
        of_best = next(line for line in lines if any(s.items() <= best.items() for s in line))
        line = [measure(setting, sizes[1]) for setting in of_best]
        largest: dict[str, dict[str, Any]] = {}
        for point in (*points, *line):  # of each setting that on its largest sample
            name = str([v for k, v in point.items() if k in of_best[0]])
            if name not in largest or point["skeletons"] > largest[name]["skeletons"]:
                largest[name] = dict(point)
        return list(largest.values()), dict(best), line

    def divergence(self, points: Rows, aimed: Prompts, base: Rows, edits: Any) -> Rows:
        """The points with KL(base ‖ edited): mean over the un-edited model's replies to the same prompts, in nats a token.

        Args:
            points: a line of `search`.
            aimed: prompts, one for each emotion.
            base: the un-edited model's rows, one per plain prompt.
            edits: point → edits.
        """
        replies = {row["key"]: row for row in base}
        rows = [{**replies[p.key.rsplit("__", 1)[0]], "key": p.key} for p in aimed]
        prompts = aimed.with_replies(rows)
        out = []
        for point in points:
            found = scoring.kl(self.lm, prompts, edits(point), self.batch_size)
            out.append({**point, "kl": float(np.nanmean(found))})
        return out

    # -- what a reader looks at first ---------------------------------------------------------------------------

    def views(self, prompts: Prompts, dirs: xr.DataArray, neurons: xr.Dataset | None, heads: xr.Dataset | None) -> Any:
        """Top tokens of the directions, patterns of the top heads, prompts that activate the top neurons most."""
        out: dict[str, Any] = {"tokens": attribution.top_tokens(self.lm, dirs.sel(sublayer="resid_post"), k=8)}
        if heads is not None and self.lm.sites.has("attn_pattern"):
            patterns = []
            for emotion in heads["emotion"].values.tolist():
                layer, head = _best(heads["contrast"].sel(emotion=emotion))
                prompt = prompts.where(emotion=emotion)[0]
                patterns.append(attribution.attention(self.lm, prompt, layer, head).assign_attrs(emotion=emotion))
            out["attention"] = patterns
        if neurons is not None:
            some = prompts.limit(16)
            frames = []
            for emotion in neurons["emotion"].values.tolist():
                layer, unit = _best(neurons["contrast"].sel(emotion=emotion))
                found = attribution.top_prompts(self.lm, some, layer, [unit], k=4, progress=False)
                weight = float(neurons["beta"].sel(emotion=emotion, layer=layer, unit=unit))
                frames.append(found.rename(columns={"emotion": "asked"}).assign(emotion=emotion, beta=weight))
            out["top_prompts"] = pd.concat(frames, ignore_index=True)
        return out


def paired(rows: Rows, bounds: dict[str, Any]) -> list[dict[str, Any]]:
    """Differences between methods on the same prompts, fluent matches only, tested over skeletons."""
    by_method = {m: [r for r in rows if r["method"] == m] for m in METHODS}
    found = []
    for a, b in PAIRS:
        if by_method.get(a) and by_method.get(b):
            test = stats.paired_test(by_method[a], by_method[b], bounds=bounds)
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
