"""Circuit: the neurons and heads that write an emotion, with what to add there; from it edits, controls, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from emotrace import arguments, attribution, provenance
from emotrace.circuits import controls, files, show
from emotrace.circuits.members import Members
from emotrace.edits import Ablate, Add, Edit
from emotrace.labels import COMPONENTS, KINDS, EmotraceError, Label, Positions, unknown
from emotrace.sites import LanguageModel

if TYPE_CHECKING:
    from emotrace.attribution.ablations import Reference


@dataclass(frozen=True, eq=False)
class Circuit(Members):
    """Components of every label, and the vectors that are added at them.

    Attributes:
        components: one row per component: the label (a column of that name), ``kind`` (``neuron`` or ``head``), ``layer``,
            ``index`` (unit or query head), ``score`` (what it was ranked by; NaN where it was drawn at random) and
            ``rank`` within its label, kind and layer, from 0. Positive score: removing the component lowers the
            projection on the label's direction.
        payload: whole difference vectors ``neuron[label, layer, unit]`` and ``z[label, layer, head, head_dim]``; where they
            are known also the means ``neuron_mean[layer, unit]`` and ``z_mean[layer, head, head_dim]``.
        meta: what it came from: model, digests of directions and prompts, ranking, plan, n, seed; ``warnings``.
        label: name of the label that is contrasted.

    Raises:
        EmotraceError: for columns, kinds, labels or places that do not fit together.
    """

    def check(self, model: LanguageModel) -> None:
        """Refuse another model than the one it was found in, or one that lacks the circuit's places.

        Raises:
            EmotraceError: for another model (see `emotrace.adopt`), a site, layer, unit or head that the model does not have, or
                heads of another width.
        """
        provenance.check(self, model.sites, "the circuit")
        for kind in KINDS:
            rows, site = self._rows(kind), COMPONENTS[kind].site
            for layer in sorted(set(rows["layer"])):
                model.sites.address(site, layer)
            if len(rows):
                mine = {d: self.payload.sizes[d] for d in COMPONENTS[kind].dims}
                theirs = model.sites.size(site, sorted(set(rows["layer"])))
                if mine != theirs:
                    raise EmotraceError(f"the circuit was made for {site!r} of size {mine}; this model has {theirs}.")

    # -- what it does -------------------------------------------------------------------------------------------

    def edits(
        self,
        strength: float | Mapping[str, float] = 1.0,
        neuron_positions: Positions = "steer",
        head_positions: Positions = "steer",
        label: str | None = None,
        *,
        by_label: Mapping[Any, float] | None = None,
    ) -> list[Edit]:
        """The circuit as edits: λ·(difference vector, zero outside the circuit) added at ``neuron`` and at ``z``.

        One edit per site; each prompt gets the vector of its own label. The original adds at heads in the whole prompt
        (``head_positions="all"``), at neurons from the last prompt token on.

        Args:
            strength: λ, or λ by kind (``{"neuron": 1.0, "head": 0.5}``; a kind that is not named is left out).
            neuron_positions: policy or span.
            head_positions: policy or span.
            label: label of the prompts that says which vector they get; None for the circuit's own.
            by_label: factors of single labels, 1 for the others.

        Raises:
            EmotraceError: for a kind or label that the circuit does not have.
        """
        by_kind = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(KINDS, strength)
        for kind in by_kind:
            if kind not in KINDS:
                raise unknown("kind", kind, KINDS, "Circuit.edits(strength=…)")
        factors = xr.DataArray(np.ones(len(self.labels), dtype=np.float32), {self.label: self.labels})
        if by_label is not None and not isinstance(by_label, Mapping):
            raise EmotraceError(
                f"Circuit.edits(by_label={by_label!r}): a mapping of {self.label} to its factor is due."
            )
        for value, factor in (by_label or {}).items():
            if value not in self.labels:
                raise unknown(self.label, value, self.labels, "Circuit.edits(by_label=…)")
            factors.loc[{self.label: value}] = arguments.number(f"Circuit.edits(by_label[{value!r}])", factor)
        positions = {"neuron": neuron_positions, "head": head_positions}
        found: list[Edit] = []
        for kind, times in by_kind.items():
            layers = sorted(set(self._rows(kind)["layer"].tolist()))
            if not layers:
                continue
            vector = (
                (self.payload[COMPONENTS[kind].site] * factors).where(self.mask(kind), np.float32(0)).sel(layer=layers)
            )
            vector = vector.rename({self.label: label} if label not in (None, self.label) else {})
            found.append(Add(COMPONENTS[kind].site, layers=layers, positions=positions[kind], vector=vector, strength=times,
                             origin=provenance.of(self)))  # fmt: skip
        if not found:
            raise EmotraceError(f"the circuit has no {' or '.join(by_kind) or 'kind'} to edit.")
        return found

    def ablations(
        self,
        value: Label,
        how: Literal["zero", "mean", "resample"] = "zero",
        positions: Positions | None = None,
        *,
        reference: Reference | None = None,
        donor: Mapping[str, str] | None = None,
    ) -> list[Edit]:
        """One value's components taken away: 0, their mean over all labels, or what they are in another prompt.

        Args:
            value: of the label, whose components.
            how: ``zero``, ``mean`` (from the payload) or ``resample``.
            positions: policy or span; None is ``steer`` for ``zero`` and ``last`` for the others, because their values are
                those of a last prompt token.
            reference: with ``resample``: activations of the un-edited model at the last token of every donor.
            donor: with ``resample``: key of each prompt that is edited → key of the prompt its values come from.

        Returns:
            One edit per site and layer.

        Raises:
            EmotraceError: for an unknown value or way, a value without components, means that the circuit does not know, or
                ``resample`` without donors and their activations, or the others with them.
        """
        if how not in ("zero", "mean", "resample"):
            raise unknown("ablation", how, ("zero", "mean", "resample"), "Circuit.ablations(how=…)")
        if (how == "resample") != (reference is not None and donor is not None):
            raise EmotraceError(f"Circuit.ablations(how={how!r}): reference and donor belong to how='resample', both.")
        if positions is None:
            positions = "steer" if how == "zero" else "last"
        found: list[Edit] = []
        for kind in KINDS:
            rows, site = self._rows(kind, value), COMPONENTS[kind].site
            chosen = {int(layer): part["index"].tolist() for layer, part in rows.groupby("layer")}
            if how == "mean" and chosen and f"{site}_mean" not in self.payload:
                raise EmotraceError(f"the circuit's payload has no {site}_mean: ablate with how='zero'.")
            if how == "resample" and chosen:
                assert reference is not None
                found += attribution.resample_ablation(site, chosen, reference, donor or {}, positions=positions)
                continue
            for layer, which in chosen.items():
                vector = None if how == "zero" else self.payload[f"{site}_mean"].sel(layer=layer)
                found.append(Ablate(site, layers=[layer], positions=positions, vector=vector,
                                    **COMPONENTS[kind].picked(which), origin=provenance.of(self)))  # fmt: skip
        if not found:
            raise EmotraceError(f"the circuit of {self.label} {value!r} has no components.")
        return found

    # -- controls -----------------------------------------------------------------------------------------------

    def random(self, seed: int, matched: bool = False) -> Circuit:
        """A control: as many components of each label, kind and layer, drawn from those that are not the label's own.

        Only where too few others exist are own ones drawn too. The vectors are the label's difference vectors at the components
        drawn; with ``matched`` scaled, for each label, kind and layer, to the norm that the circuit's have.
        """
        found = controls.replaced(
            self.components, self.payload, self.label, controls.randomly(self.payload, seed), matched
        )
        return self._control("random", *found, seed=int(seed), matched=matched)

    def shared(self, scores: Mapping[str, xr.DataArray], matched: bool = False) -> Circuit:
        """A control: one set of components for all labels, each with its own difference vectors there.

        Of each label, kind and layer as many as the circuit has: those with the highest mean score over labels, so that where
        the labels have equal numbers their sets are one.

        Args:
            scores: by kind, ``score[label, layer, unit]`` or ``[label, layer, head]`` by which the circuit was ranked.
            matched: scale the vectors as `random` does.

        Raises:
            EmotraceError: for a kind, layer or dim that the scores lack.
        """
        pick = controls.best_of_all(scores, self.label)
        return self._control(
            "shared", *controls.replaced(self.components, self.payload, self.label, pick, matched), matched=matched
        )

    def whole(self) -> Circuit:
        """A control: every component of the kinds and layers that the circuit has, with the label's difference vectors."""
        pairs = self.components[["kind", "layer"]].drop_duplicates().to_numpy().tolist()
        places = [(str(kind), int(layer)) for kind, layer in pairs]
        return self._control("whole", controls.everything(self.payload, self.label, places), self.payload)

    def with_payload_of(self, of: Mapping[Label, Label]) -> Circuit:
        """A control: the components of each label with the difference vectors of another, at the norm that these have there.

        Args:
            of: label whose components → label whose difference vectors; one for each label (`replies.derangement` draws one).

        Raises:
            EmotraceError: for a label that the circuit does not have, or one that is not named.
        """
        payload = controls.exchanged(self.payload, self.label, of)
        named = {str(mine): str(theirs) for mine, theirs in of.items()}
        return self._control("wrong payload", self.components, payload, payload_of=named)

    def _control(self, method: str, components: pd.DataFrame, payload: xr.Dataset, **about: Any) -> Circuit:
        meta = {**self.meta, "method": method, **about, "control_of": self.digest}
        return replace(self, components=components, payload=payload, meta=meta)

    # -- files and show -----------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return show.text(self)

    def __repr__(self) -> str:
        return f"<{show.summary(self)}>"

    def _repr_html_(self) -> str:
        return show.html(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``circuit.safetensors`` and ``circuit.json`` into a folder; `load` gives the circuit back bit by bit."""
        return files.save(self.label, self.components, self.payload, self.meta, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Circuit:
        """The circuit that `save` wrote.

        Raises:
            EmotraceError: for a missing or damaged file, or one that holds something else.
        """
        label, components, payload, meta = files.load(folder)
        return cls(components, payload, meta, label)
