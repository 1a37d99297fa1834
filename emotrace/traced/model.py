"""Model: what emotrace asks of a model that nnsight traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class TracedModel(Protocol):
    """nnsight's ``TransformersModel``, in so far as emotrace uses it; whatever else it has is there too.

    Attributes:
        _module: the model of transformers that is traced.
        tokenizer: as the model was loaded with it.
    """

    _module: Any
    tokenizer: Any

    def trace(self, *inputs: object, **options: object) -> Any:
        """Opens a trace: a with-block that runs the model once, and whose reads and writes take place in that run."""
        ...

    def generate(self, *inputs: object, **options: object) -> Any:
        """Opens a trace of a generation, of which every forward is a step."""
        ...

    def session(self, *, backend: object = None, remote: bool | str = False) -> Any:
        """Opens a block of several traces that are one job."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The weights."""
        ...

    def to_model_key(self) -> str:
        """What a server knows the model by."""
        ...

    def __getattr__(self, name: str) -> Any:
        """Modules by their names, and everything else that nnsight's models have."""
        ...
