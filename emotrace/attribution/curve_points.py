"""Curve points: the projections of many prompts under many sets of edited components, kept batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from emotrace import aligned, disk, provenance
from emotrace.attribution.files import kept
from emotrace.attribution.ranks import feature
from emotrace.attribution.sets import Set, choose
from emotrace.datasets import Prompt, Prompts
from emotrace.disk import plain
from emotrace.edits import Edit
from emotrace.forwards.entering import keeping
from emotrace.forwards.reruns import Reruns
from emotrace.identity import made_by
from emotrace.labels import COUNTED, EmotraceError, unknown
from emotrace.planned import DryReruns
from emotrace.runlog import Log
from emotrace.shown import progress as progress_bar
from emotrace.sites import LanguageModel
from emotrace.stats import bootstrap_ci

if TYPE_CHECKING:
    from tqdm.auto import tqdm

Edits = Callable[[Any, Set, list[str]], Sequence[Edit]]
"""(label, set, keys of the prompts) → edits at the last token."""


class CurvePlan:
    """What is read, and which components each set has, checked against the model.

    Args:
        model: from `emotrace.load`.
        directions: ``[label, layer, (sublayer,) dim]``.
        contributions: Dataset ``[label, layer, unit or head]``.
        by: its variable that ranks.
        label: what the directions are of.
        readout_layer: layer that is read; None for the last one that has directions.
        choice: arguments of `sets.choose`.

    Attributes:
        labels: label values of the contributions.
        layer: that is read.
        vectors: unit directions there, ``[label, dim]`` float64.
        dim: ``unit`` or ``head``.
        site: ``neuron`` or ``z``.
        layers: with components before the read-out.
        sets: of `sets.choose`.
    """

    def __init__(
        self, model: LanguageModel, directions: xr.DataArray, contributions: xr.Dataset, by: str, label: str,
        readout_layer: int | None, **choice: Any,
    ) -> None:  # fmt: skip
        if by not in contributions.data_vars:
            raise unknown("score", by, contributions.data_vars, "curve(by=…)")
        scores = contributions[by]
        for name, array in (("contributions", scores), ("directions", directions)):
            if not {label, "layer"} <= set(array.dims):
                raise EmotraceError(f"the {name} of a curve need the dims {label!r} and 'layer', not {array.dims}.")
            provenance.check(array, model.sites, f"the {name} of a curve")
        provenance.check(contributions, model.sites, "the contributions of a curve")
        self.model, self.label = model, label
        self.dim = feature(scores)
        self.component = COUNTED[self.dim]
        self.site = self.component.site
        self.labels: list[Any] = scores[label].values.tolist()
        self.layer, self.vectors = self._readout(directions, readout_layer)
        scores = scores.sel(layer=[i for i in scores["layer"].values.tolist() if i < self.layer])
        self.layers: list[int] = [int(i) for i in scores["layer"].values]
        if not self.layers:
            raise EmotraceError(
                f"no layer of the contributions lies before the read-out layer {self.layer}; read a later one."
            )
        for layer in self.layers:
            width = model.sites.size(self.site, layer)[self.dim]
            if width != scores.sizes[self.dim]:
                raise EmotraceError(
                    f"the contributions have {scores.sizes[self.dim]} {self.dim}s in a layer; layer {layer} of "
                    f"{model.sites.model_class} has {width}."
                )
        scores = aligned.numbered(scores, self.dim, range(scores.sizes[self.dim]), "the contributions of a curve")
        self.sets = choose(scores, **choice)
        self.names = list(next(iter(self.sets.values())))
        self.settings = {
            "label": label, "by": by, "site": self.site, "readout_site": "resid_post", "readout_layer": self.layer,
            "positions": "last", **choice, "ks": sorted({s.k for s in self.names}),
            "directions": disk.digest(self.vectors), "scores": disk.digest(scores.transpose(label, "layer", self.dim).values),
            "weights": model.sites.identity.get("weights_hash"), "model": disk.digest(made_by(model)),
        }  # fmt: skip

    def _readout(self, directions: xr.DataArray, readout_layer: int | None) -> tuple[int, np.ndarray]:
        if "sublayer" in directions.dims:
            names = directions["sublayer"].values.tolist()
            if "resid_post" not in names:
                raise unknown("sublayer of the directions", "resid_post", names, "curve")
            directions = directions.sel(sublayer="resid_post")
        for name, wanted in ((self.label, self.labels), ("layer", [] if readout_layer is None else [readout_layer])):
            held = directions[name].values.tolist()
            for value in wanted:
                if value not in held:
                    raise unknown(f"{name} of the directions", value, held, "curve")
        layer = int(max(directions["layer"].values)) if readout_layer is None else int(readout_layer)
        width = self.model.sites.address("resid_post", layer).width
        chosen = directions.sel({"layer": layer, self.label: self.labels}).transpose(self.label, "dim")
        v = np.asarray(chosen.values, dtype=np.float64)
        norms = np.linalg.norm(v, axis=-1, keepdims=True)
        if v.shape[1] != width or not np.isfinite(norms).all() or not (norms > 0).all():
            raise EmotraceError(f"the directions at layer {layer} must be {width} wide, finite and not zero.")
        return layer, v / norms


class LabelledPart(NamedTuple):
    """Prompts that run together, by index, and the labels that they are measured for."""

    labels: list[Any]
    rows: list[int]


def _cluster(prompt: Prompt, cluster: str) -> Any:
    """What a prompt is drawn with; None where it lacks the label."""
    return prompt.key if cluster == "key" else prompt.labels.get(cluster)


class CurvePoints:
    """Projections of every prompt, un-edited and under every set; computed once, continued from a folder.

    Args:
        plan: what to measure.
        prompts: all prompts.
        parts: which prompts, by index, are measured for which labels.
        settings: what the result depends on beyond the plan.
        batch_size: prompts per forward.
        cluster: label that the bootstrap draws as a whole; ``key`` for each prompt by itself.
        out: folder of ``settings.json``, ``scores.jsonl`` and the result; None keeps nothing.

    Raises:
        EmotraceError: for prompts without the cluster label, or a folder with other settings.
    """

    def __init__(
        self, plan: CurvePlan, prompts: Prompts, parts: Sequence[LabelledPart], settings: dict[str, Any],
        batch_size: int, cluster: str, out: str | Path | None,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise EmotraceError(f"curve(batch_size={batch_size}): at least 1.")
        if any(_cluster(p, cluster) is None for p in prompts):
            raise unknown("label", cluster, prompts.label_names, "curve(cluster=…), which every prompt needs")
        self.plan, self.prompts, self.cluster = plan, prompts, cluster
        self.reruns = Reruns(plan.model, prompts, "resid_post", plan.layer)
        asked = {"batch_size": batch_size, "prompts": prompts.digest, "tokens": disk.digest(self.reruns.ids)}
        self.settings = plain({**settings, **plan.settings, **asked})
        self.batches = [LabelledPart(p.labels, rows) for p in parts for rows in self.reruns.batches(p.rows, batch_size)]
        total = sum(len(part.labels) * len(part.rows) for part in self.batches) * len(plan.names)
        self.dry = DryReruns(len(prompts), len(plan.names), total)
        self.out = None if out is None else Path(out)
        if self.out is not None:
            disk.settle_file(self.out / "settings.json", self.settings, note=False)
        self._made = disk.digest(self.settings)

    def run(self, make: Callable[[], Edits], progress: bool) -> xr.Dataset:
        """The curve; ``make`` is called only if something is left to compute."""
        with keeping(self.plan.model, self.out):
            return self._run(make, progress)

    def _run(self, make: Callable[[], Edits], progress: bool) -> xr.Dataset:
        if self.out is None:
            return self._summary(self._rows([], None, make, progress))
        disk.settle_file(self.out / "settings.json", self.settings, note=False)
        with Log(self.out / "scores.jsonl", ("batch", "label")) as log:
            self._check(log.rows(), log.path)  # before settings are written that are not those of the rows
            disk.settle_file(self.out / "settings.json", self.settings)
            return self._summary(self._rows(log.rows(), log, make, progress))

    def keep(self, curve: xr.Dataset) -> xr.Dataset:
        """Write the result beside the scores, where there is a folder."""
        return kept(curve, self.out, "curve")

    def _check(self, rows: list[dict], path: Path) -> None:
        """Refuse scores that other settings or other prompts made."""
        for row in rows:
            members = self.batches[row["batch"]].rows if row["batch"] < len(self.batches) else None
            was = None if "made" not in row else {"rows": row.get("rows"), "settings": row["made"]}
            disk.settle(path, was, {"rows": members, "settings": self._made}, what=f"batch {row['batch']}")

    def _rows(self, rows: list[dict], log: Log | None, make: Callable[[], Edits], progress: bool) -> list[dict]:
        """Rows of all batches and labels: those that are there, and the others as they are computed."""
        done = {(row["batch"], row["label"]) for row in rows}
        todo = {
            number: LabelledPart([e for e in part.labels if (number, e) not in done], part.rows)
            for number, part in enumerate(self.batches)
        }
        todo = {number: part for number, part in todo.items() if part.labels}
        left = sum(len(part.labels) * len(part.rows) for part in todo.values()) * len(self.plan.names)
        edits = make() if todo else None
        with progress_bar(total=self.dry.reruns, desc="curve", unit="prompt", enabled=progress) as bar:
            bar.update(self.dry.reruns - left)
            for number, part in todo.items():
                assert edits is not None
                for row in self._batch(number, part, edits, bar):
                    rows.append(row)
                    if log is not None:
                        log.append(row)
        return rows

    def _batch(self, number: int, part: LabelledPart, edits: Edits, bar: tqdm[Any]) -> Iterable[dict]:
        plan, batch = self.plan, self.reruns.batch(part.rows)
        keys = [self.prompts[i].key for i in part.rows]

        for e in part.labels:
            v = plan.vectors[plan.labels.index(e)]
            scores: list[list[float]] = []
            for found in batch.scores([[], *(edits(e, name, keys) for name in plan.names)], v):
                bar.update(len(part.rows) if scores else 0)
                scores.append(found.tolist())
            row = {"batch": number, "label": e, "rows": part.rows, "by_token": batch.by_token}
            yield row | {"base": scores[0], "scores": scores[1:], "made": self._made}

    def _summary(self, rows: list[dict[str, Any]]) -> xr.Dataset:
        """Means over prompts with bootstrap intervals over clusters."""
        plan = self.plan
        ks, which = self.settings["ks"], list(dict.fromkeys(s.which for s in plan.names))
        draws = 1 + max((s.draw for s in plan.names if s.which == "random"), default=-1)
        shape = (len(plan.labels), len(which), len(ks))
        delta, low, high = (np.full(shape, np.nan) for _ in range(3))
        random = np.full((len(plan.labels), draws, len(ks)), np.nan)
        base, spread, n = (np.zeros(len(plan.labels)) for _ in range(3))
        size = np.zeros((len(plan.labels), len(ks)), dtype=np.int64)
        for i, e in enumerate(plan.labels):
            mine = [row for row in rows if row["label"] == e]
            order = np.argsort(np.concatenate([row["rows"] for row in mine]), kind="stable")
            members = np.concatenate([row["rows"] for row in mine])[order]
            before = np.concatenate([row["base"] for row in mine])[order]
            change = np.concatenate([row["scores"] for row in mine], axis=1)[:, order].T - before[:, None]
            base[i], spread[i], n[i] = before.mean(), before.std(), len(before)
            clusters = np.array([str(_cluster(self.prompts[int(m)], self.cluster)) for m in members])
            for j, name in enumerate(which):
                at = [[c for c, s in enumerate(plan.names) if (s.which, s.k) == (name, k)] for k in ks]
                values = np.stack([change[:, columns].mean(1) for columns in at], axis=1)
                delta[i, j] = values.mean(0)
                low[i, j], high[i, j] = bootstrap_ci(values, clusters, seed=self.settings["seed"])
                if name == "random":
                    random[i] = np.stack([change[:, columns].mean(0) for columns in at], axis=1)
            for j, k in enumerate(ks):
                size[i, j] = sum(map(len, plan.sets[e][Set("top", 0, k)].values()))
        dims = (plan.label, "which", "k")
        data: dict[str, Any] = {
            "delta": (dims, delta), "ci_low": (dims, low), "ci_high": (dims, high), "size": (dims[::2], size),
            "base": (plan.label, base), "base_std": (plan.label, spread), "n": (plan.label, n.astype(np.int64)),
        }  # fmt: skip
        coords: dict[str, Any] = {plan.label: plan.labels, "which": which, "k": ks}
        if draws:
            data["random"] = ((plan.label, "draw", "k"), random)
            coords["draw"] = np.arange(draws)
        attrs = {
            **self.settings,
            "cluster": self.cluster,
            "level": 0.95,
            **provenance.of(plan.model.sites.identity),
        }
        attrs["forward"] = "last token" if all(row["by_token"] for row in rows) else "whole prompt"
        return xr.Dataset(data, coords, {k: int(v) if isinstance(v, bool) else v for k, v in attrs.items()})
