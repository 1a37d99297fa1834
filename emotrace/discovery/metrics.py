"""Metrics: one number per prompt that a circuit is found for.

Sign everywhere: positive means that the component raises the metric; removing it lowers it. A score is therefore an
estimate of ``metric(clean) − metric(clean without the component)``.

A metric reads sites at the last prompt token. `Projection`, `LogitDifference`, `KL` and `SiteFunction` are the ones there
are; anything with the same three members is one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import xarray as xr

from emotrace import arguments, provenance, shown
from emotrace.forwards.metrics import LabelledPrompt
from emotrace.labels import EmotraceError, Label, unknown
from emotrace.sites import LanguageModel
from emotrace.traced import circuits
from emotrace.traced.circuits import LoweredMetric


@dataclass(frozen=True, eq=False, repr=False)
class Projection:
    """⟨h, v̂⟩ at one site: how far the state points along the direction of an emotion.

    Args:
        directions: ``[emotion, layer, sublayer, dim]`` of `emotrace.directions`, or without dims that are chosen already.
        layer: 0-based; None takes the last that the directions have.
        site: a sublayer.
        emotion: whose direction; None for that of each clean prompt's own label.
        against: None; ``"counterfactual"`` takes off the projection on the direction of the counterfactual's label; or the
            name of one emotion.
        label: dim of the directions and label of the prompts.
    """

    directions: xr.DataArray
    layer: int | None = None
    site: str = "resid_post"
    emotion: Any = None
    against: Any = None
    label: str = "emotion"

    def __repr__(self) -> str:
        return shown.called("Projection", **{f.name: getattr(self, f.name) for f in fields(self)})

    @property
    def name(self) -> str:
        """``projection on anger at resid_post 4``."""
        what = self.emotion if self.emotion is not None else f"the prompt's {self.label}"
        off = "" if self.against is None else f" minus {self.against}"
        return f"projection on {what}{off} at {self.site} {self._layer()}"

    def reads(self, model: LanguageModel) -> tuple[tuple[str, int | None], ...]:
        """The site of the direction."""
        provenance.check(self.directions, model.sites, self.name)
        address = model.sites.address(self.site, self._layer())
        if self.directions.sizes.get("dim") != address.width:
            raise EmotraceError(
                f"{self.name}: the directions are {self.directions.sizes.get('dim')} wide, {self.site!r} has {address.width}."
            )
        return ((self.site, self._layer()),)

    def lower(
        self, model: LanguageModel, pairs: Sequence[LabelledPrompt], clean: Sequence[torch.Tensor]
    ) -> LoweredMetric:
        """Unit direction of each pair, minus that of its counterfactual where asked."""
        rows = []
        for p in pairs:
            v = self._unit(self.emotion if self.emotion is not None else _labelled(p, "labels", self.label, self.name))
            if self.against is not None:
                other = self.against
                v = v - self._unit(
                    _labelled(p, "against", self.label, self.name) if other == "counterfactual" else other
                )
            rows.append(v)
        return LoweredMetric(circuits.linear, (torch.tensor(np.stack(rows), dtype=torch.float32),))

    def _layer(self) -> int:
        if self.layer is not None:
            return arguments.whole("Projection(layer)", self.layer, 0)
        if "layer" not in self.directions.coords:
            raise EmotraceError("Projection(layer=None): the directions have no layer, so say which.")
        return int(np.max(self.directions["layer"].values))

    def _unit(self, emotion: Label) -> np.ndarray:
        found = self.directions
        for dim, value in ((self.label, emotion), ("layer", self._layer()), ("sublayer", self.site)):
            if dim in found.dims:
                if value not in found[dim].values:
                    raise unknown(f"{dim} of the directions", value, found[dim].values.tolist(), "Projection")
                found = found.sel({dim: value})
        if found.dims != ("dim",):
            raise EmotraceError(f"Projection: the directions keep the dims {found.dims}; one vector is left to choose.")
        values = np.asarray(found.values, dtype=np.float64)
        size = np.linalg.norm(values)
        if not np.isfinite(size) or size == 0:
            raise EmotraceError(f"Projection: the direction of {emotion!r} has norm {size}.")
        return values / size


@dataclass(frozen=True, eq=False)
class LogitDifference:
    """Mean logit of one set of tokens minus that of another, at the last prompt token.

    Args:
        tokens: value of the label → token ids (an int, ids, or one text that is a single token each).
        label: label of the prompts.
        against: ``"counterfactual"`` takes the set of the counterfactual's label off; a value takes that one off; None none.
    """

    tokens: Mapping[Any, Any]
    label: str = "emotion"
    against: Any = "counterfactual"

    @property
    def name(self) -> str:
        """``logit difference by emotion``."""
        return f"logit difference by {self.label}" + (f" against {self.against}" if self.against else "")

    def reads(self, model: LanguageModel) -> tuple[tuple[str, int | None], ...]:
        """The logits."""
        model.sites.address("logits")
        return (("logits", None),)

    def lower(
        self, model: LanguageModel, pairs: Sequence[LabelledPrompt], clean: Sequence[torch.Tensor]
    ) -> LoweredMetric:
        """Covectors on the logits."""
        ids = {value: self._ids(model, value) for value in self.tokens}
        rows = torch.zeros(len(pairs), model.sites.address("logits").width)
        for row, p in zip(rows, pairs, strict=True):
            mine = _labelled(p, "labels", self.label, self.name)
            signs = [(mine, 1.0)]
            if self.against is not None:
                by = (
                    _labelled(p, "against", self.label, self.name) if self.against == "counterfactual" else self.against
                )
                signs.append((by, -1.0))
            for value, sign in signs:
                if value not in ids:
                    raise unknown(self.label, value, ids, "LogitDifference(tokens=…)")
                for i in ids[value]:
                    row[i] += sign / len(ids[value])
        return LoweredMetric(circuits.linear, (rows,))

    def _ids(self, model: LanguageModel, value: object) -> list[int]:
        given, size = self.tokens[value], model.sites.address("logits").width
        found: list[int] = []
        for item in given if isinstance(given, Iterable) and not isinstance(given, str) else [given]:
            if isinstance(item, str):
                coded = model.sites.encoder.tokenizer(item, add_special_tokens=False)["input_ids"]
                if len(coded) != 1:
                    raise EmotraceError(
                        f"LogitDifference: {item!r} of {value!r} is {len(coded)} tokens, not one. Give token ids."
                    )
                found += coded
            else:
                found.append(arguments.whole(f"LogitDifference(tokens): an id of {value!r}", item, 0))
        wrong = [i for i in found if not 0 <= i < size]
        if wrong or not found:
            raise EmotraceError(f"LogitDifference: {value!r} has the ids {found}; the model knows 0 to {size - 1}.")
        return found


@dataclass(frozen=True)
class KL:
    """−KL(clean ‖ now), in nats, between the next-token distributions: 0 for the clean run, negative for any other.

    Its slope at the clean run is zero, so a method that looks at nothing else (``eap``, ``eap_ig_activations`` of one step)
    finds nothing; `scores` refuses that.
    """

    flat_at_clean = True

    @property
    def name(self) -> str:
        """``−KL to the clean run``."""
        return "−KL to the clean run"

    def reads(self, model: LanguageModel) -> tuple[tuple[str, int | None], ...]:
        """The logits."""
        model.sites.address("logits")
        return (("logits", None),)

    def lower(
        self, model: LanguageModel, pairs: Sequence[LabelledPrompt], clean: Sequence[torch.Tensor]
    ) -> LoweredMetric:
        """The clean run's own logits are what is compared with."""
        return LoweredMetric(circuits.divergence, (torch.log_softmax(clean[0].float(), -1),))


@dataclass(frozen=True, eq=False)
class SiteFunction:
    """A function of your own.

    Args:
        sites: ``(site, layer)`` in order of execution; layer None for global sites.
        function: takes a list of tensors ``[row, width]``, one per site, at the last prompt token; returns ``[row]``. Each
            row may depend on its own prompt only. It runs inside a trace: torch alone.
        called: its name in attrs.
    """

    sites: Sequence[tuple[str, int | None]]
    function: Callable[[list[torch.Tensor]], torch.Tensor]
    called: str = "function"

    @property
    def name(self) -> str:
        """As it was called."""
        return self.called

    def reads(self, model: LanguageModel) -> tuple[tuple[str, int | None], ...]:
        """The sites given."""
        found = [model.sites.address(site, layer) for site, layer in self.sites]
        orders = [a.order for a in found]
        if not found or orders != sorted(orders):
            raise EmotraceError(f"SiteFunction(sites={list(self.sites)}): at least one site, in order of execution.")
        return tuple((str(s), k) for s, k in self.sites)

    def lower(
        self, model: LanguageModel, pairs: Sequence[LabelledPrompt], clean: Sequence[torch.Tensor]
    ) -> LoweredMetric:
        """The function, after a look at what it returns."""
        found = self.function([v.clone() for v in clean])
        if not isinstance(found, torch.Tensor) or found.shape != (len(pairs),):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise EmotraceError(f"metric {self.name!r} returned {shape} for {len(pairs)} prompts, not ({len(pairs)},).")
        return LoweredMetric(self.function, ())


def _labelled(pair: LabelledPrompt, which: str, label: str, name: str) -> Label:
    found = getattr(pair, which)
    if label not in found:
        whose = "prompt" if which == "labels" else "counterfactual"
        raise EmotraceError(f"{name}: the {whose} of pair {pair.key!r} has no label {label!r}.")
    return found[label]
