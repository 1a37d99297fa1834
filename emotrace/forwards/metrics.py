"""Metrics: one number per prompt that can be differentiated, what it must offer, and where a model can give its gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from emotrace import disk
from emotrace.forwards import caches
from emotrace.forwards.entering import backend, enter, inputs
from emotrace.labels import AGAINST, EmotraceError
from emotrace.sites import LanguageModel, Sites
from emotrace.traced import gradients
from emotrace.traced.steps import Shift

Lowered = tuple[Callable[..., torch.Tensor], tuple[Any, ...]]
"""``(function, args)``, as a `LoweredMetric` is: ``function(values, *args)``, values ``[row, width]`` of each place read, gives
``[row]``."""


class LabelledPrompt(Protocol):
    """What a metric may know of a prompt: a pair of `emotrace.discovery`, or a prompt that is captured."""

    @property
    def key(self) -> str:
        """Of the prompt."""
        ...

    @property
    def labels(self) -> dict[str, Any]:
        """Of the prompt."""
        ...

    @property
    def against(self) -> dict[str, Any]:
        """Labels of what it is compared with."""
        ...


class Captured(NamedTuple):
    """A prompt whose activations are captured, as a metric knows it.

    Attributes:
        key: of the prompt.
        labels: of the prompt.
        against: of what it is compared with: as those of the prompt, but for its labels ``against_NAME``; nothing without these.
    """

    key: str
    labels: dict[str, Any]
    against: dict[str, Any]

    @classmethod
    def of(cls, key: str, labels: Mapping[str, Any]) -> Captured:
        """What is known of a prompt."""
        given = {name.removeprefix(AGAINST): value for name, value in labels.items() if name.startswith(AGAINST)}
        own = {name: value for name, value in labels.items() if not name.startswith(AGAINST)}
        return cls(key, own, {**own, **given} if given else {})


@runtime_checkable
class Metric(Protocol):
    """One number per prompt, read at its last token."""

    @property
    def name(self) -> str:
        """For attrs and figures."""
        ...

    def reads(self, model: LanguageModel) -> tuple[tuple[str, int | None], ...]:
        """Sites (and layers) that it reads, in order of execution; checked against the model."""
        ...

    def lower(self, model: LanguageModel, pairs: Sequence[LabelledPrompt], clean: Sequence[torch.Tensor]) -> Lowered:
        """The function for a batch of pairs, given what the places hold in the clean run."""
        ...


class Clean(Sequence[torch.Tensor]):
    """What the places of a metric hold in the clean run, which is made when somebody looks: most metrics do not.

    Args:
        run: makes the values.
        n: places.
    """

    def __init__(self, run: Callable[[], list[torch.Tensor]], n: int) -> None:
        self._run, self._n, self._values = run, n, None

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if self._values is None:
            self._values = self._run()
        return self._values[index]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self[:])


def differentiable(model: LanguageModel) -> bool:
    """Whether a trace can differentiate through the model where it lives; a server is asked once."""
    where = backend(model)
    if where.gradients is None:
        sites: Sites = model.sites
        layer = max(sites.layers("mlp_out"))
        start, end = sites.address("mlp_out", layer), sites.address("resid_post", layer)
        program = [Shift(start.order, start.lower(model), 1.0), end.read(model)]
        fed = inputs(model, [[i % sites.vocab_size for i in range(5, 9)]]) | caches.options(model)
        where.gradients = enter(model, gradients.available, fed, program, sites.d_model)
    return bool(where.gradients)


def digest(metric: Metric) -> str:
    """What tells a metric from another: its class and everything it holds; of a function its code, defaults and closure.

    A metric that holds something else says what it is by an attribute ``digest`` of its own.

    Raises:
        EmotraceError: for a metric that neither says it nor holds what has a canonical form.
    """
    own = getattr(metric, "digest", None)
    if isinstance(own, str):
        return own
    kind = type(metric)
    held = (
        {f.name: getattr(metric, f.name) for f in dataclasses.fields(metric)}
        if dataclasses.is_dataclass(metric)
        else dict(getattr(metric, "__dict__", {}))
    )
    try:
        return disk.digest([kind.__module__, kind.__qualname__, metric.name, _canonical(held)])
    except EmotraceError as error:
        raise EmotraceError(
            f"metric {metric.name!r} holds what cannot be told from another ({error}). Give it an attribute `digest`: a text "
            "that names what it computes."
        ) from None


def _canonical(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().float().numpy()
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return ["function", _code(value.__code__), _canonical([value.__defaults__, value.__kwdefaults__, cells])]
    return value


def _code(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), list(code.co_names), [_constant(c) for c in code.co_consts]]


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
