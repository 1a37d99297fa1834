"""Sites: the table of a model's proven sites, readable and writable inside an ordinary nnsight trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from emotrace.datasets import PromptsLike
from emotrace.labels import EmotraceError
from emotrace.sites.address import Address, envoy
from emotrace.sites.own import Site
from emotrace.sites.table import SiteTable
from emotrace.templates import Encoder
from emotrace.traced import places
from emotrace.traced.model import TracedModel
from emotrace.traced.places import Place
from emotrace.traced.table import Table

OUTSIDE = "outside of interleaving"
"""What nnsight says of values that are asked for where no model runs."""


@dataclass(repr=False)
class Sites(SiteTable):
    """The table of a model's sites, bound to the model by `attach`, so that it reads and writes inside a trace::

        with model.trace(model.sites.encode(prompts)):
            h = model.sites.read("resid_post", layer=5).save()

    Attributes:
        remote: where the model runs (`emotrace.remote.Backend`); None is here.
        twin: what the form was shown on, until more is shown on it.
        again: loads the model once more, in another process.
        kept_bytes: most bytes of keys and values of prompts' first tokens that are kept between calls; 0 shares none, and None is
            8 % of the memory held when that is first asked.
    """

    remote: Any = field(default=None, repr=False, compare=False)
    twin: nn.Module | None = field(default=None, repr=False, compare=False)
    again: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    kept_bytes: int | None = field(default=None, repr=False, compare=False)
    _model: TracedModel | None = field(default=None, repr=False, compare=False)
    _encoder: Encoder | None = field(default=None, repr=False, compare=False)
    _places: dict[tuple[Any, int | None], Place] = field(default_factory=dict, repr=False, compare=False)

    def attach(self, model: TracedModel, encoder: Encoder | None = None) -> Sites:
        """Bind the table to an nnsight model: sets ``model.sites``, so that `read` and `write` work in its traces."""
        self._model, self._encoder = model, encoder
        self._places.clear()
        object.__setattr__(model, "sites", self)
        return self

    @property
    def encoder(self) -> Encoder:
        """What turns prompts into token ids for this model.

        Raises:
            EmotraceError: for a table that is attached to no model, or was without an encoder.
        """
        if self._encoder is None:
            raise EmotraceError("this model was attached without a tokenizer, so it cannot encode text.")
        return self._encoder

    def place(self, site: str | Site, layer: int | None = None) -> Place:
        """A site or a place of the user's own as `emotrace.traced` takes it."""
        key = (site, layer)
        if key not in self._places:
            self._places[key] = self.resolve(site, layer).lower(self.model)
        return self._places[key]

    def resolve(self, site: str | Site, layer: int | None = None) -> Address:
        """The address of a named site, or of a place of the user's own (its module must exist).

        Raises:
            EmotraceError: for a path that the model does not have, and as `address` does.
        """
        if isinstance(site, Site):
            if layer is not None:
                raise EmotraceError(f"{site!r} is one place; layer={layer} does not apply to it.")
            envoy(self.model, site.path)  # refuses a path that the model does not have
            aliased = (site.path, site.side) in self.overwritten
            order = self._moment(site)
            return Address(site.name, None, site.path, site.side, site.index, False, order, -1, overwritten=aliased)
        return self.address(site, layer)

    def read(self, site: str | Site, layer: int | None = None) -> torch.Tensor:
        """Inside a trace: the value at a site, ``[batch, token, width]``.

        Reads of one trace follow the order of execution (`Address.order`). The tensor is the model's own, not a copy.

        Raises:
            EmotraceError: as `address` does; outside a trace; for a place of the user's own that holds no tensor.
        """
        place = self.place(site, layer)
        try:
            value = places.fetch(place)
        except IndexError:
            raise EmotraceError(f"{site!r}: the tuple there has no element {place.index}.") from None
        except ValueError as error:
            if OUTSIDE not in str(error):
                raise
            raise EmotraceError(
                f"read({site!r}, layer={layer}) is for the inside of a trace: with model.trace(model.sites.encode(prompts)): …"
            ) from None
        if not isinstance(value, torch.Tensor):
            raise EmotraceError(f"{site!r} holds no tensor but a {type(value).__name__}; choose another side or index.")
        return value

    def write(self, site: str | Site, value: torch.Tensor, layer: int | None = None) -> None:
        """Inside a trace: swap the value at a site; ``resid_mid`` of a sequential model is set by its attention output.

        Raises:
            EmotraceError: as `address` does; for ``attn_pattern``, which is read-only; for a value of another shape.
        """
        if not isinstance(site, Site) and not self.address(site, layer).writable:
            raise EmotraceError(f"site {site!r} is read-only; edit z or o_proj_out instead.")
        try:
            places.put(self.place(site, layer), value)
        except ValueError as error:
            raise EmotraceError(f"write({site!r}, layer={layer}): {error}") from None

    def encode(self, prompts: PromptsLike) -> dict[str, torch.Tensor]:
        """Ids and mask of prompts as `emotrace.capture` makes them: chat template, BOS as loaded, pinned date, padded.

        Args:
            prompts: `Prompts`, or whatever `Prompts.of` takes.

        Returns:
            ``input_ids`` and ``attention_mask``, ``[prompt, token]``, padded on the left, of masked models on the right.

        Raises:
            EmotraceError: for prompts that would not come out as each does alone, where padding or neighbours change them.
        """
        fed = self.encoder(prompts)
        rows, width = fed["input_ids"].shape
        if self.beginnings is not None and not self.beginnings.allows([int(n) for n in fed["attention_mask"].sum(1)]):
            raise EmotraceError(
                f"encode: in {self.model_class} {self.beginnings}: {rows} prompts of up to {width} tokens would not come out "
                "as each does alone. Encode prompts of one length, or one at a time; capture and generate do."
            )
        return fed

    def __reduce__(self) -> tuple[Any, ...]:
        """In a request the table takes its plain form, which ships with it: this class does not exist on a server."""
        rows = {site: {k: a.plain() for k, a in by_layer.items()} for site, by_layer in self.addresses.items()}
        return Table, (), {"model": self.model, "rows": rows, "changed": self.overwritten}

    def _moment(self, site: Site) -> float:
        """When a place of the user's own is there in a forward; of a module that the probe did not run (an expert that no token
        chose): just before the end of the innermost module around it that did run."""
        if site.path in self.moments:
            at = self.moments[site.path]
            return at.returned if site.side == "output" else at.called
        around = site.path
        while around:
            around = around.rpartition(".")[0]
            if around in self.moments:
                return self.moments[around].returned - 0.5
        return math.inf  # around everything

    @property
    def model(self) -> TracedModel:
        """The model that the table is attached to.

        Raises:
            EmotraceError: for a table that is attached to none.
        """
        if self._model is None:
            raise EmotraceError("these sites are not attached to a model: use the model that emotrace.load returns.")
        return self._model
