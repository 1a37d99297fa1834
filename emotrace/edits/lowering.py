"""Lower: edits checked against a model, and turned into the steps that a trace understands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from emotrace import provenance
from emotrace.edits.kinds import EDITS, Edit
from emotrace.edits.payloads import ByLabel, Spot, named, vector_at
from emotrace.edits.sizes import largest, refuse_overflow
from emotrace.labels import EmotraceError, positions_in, unknown
from emotrace.sites import Address, Site, Sites
from emotrace.traced.edits import CHANGES, Group, Operation, flags
from emotrace.traced.places import Place
from emotrace.traced.steps import Keep, ordered


@dataclass
class Lowered:
    """Edits of one batch for `emotrace.traced`, and how many there are."""

    groups: list[Group] = field(default_factory=list)
    count: int = 0

    def program(self, reads: Iterable[Any] = ()) -> list[Any]:
        """The steps of a trace: the edits, the ``resid_pre`` that they need, and what else is read in the same forward."""
        bases = [
            Keep(group.base, group.place.base)
            for group in self.groups
            if group.place.kind == "mid" and any(op.action != "add" or op.scale == "rms" for op in group.operations)
        ]
        return ordered([*bases, *self.groups, *reads])


def check(edits: Sequence[Edit], sites: Sites, labels: Sequence[Mapping[str, Any]] = ()) -> None:
    """Validate edits against a model and the labels of the prompts, before anything runs.

    Raises:
        EmotraceError: for what is not an edit, a site, layer, head or unit that the model lacks, a payload of the wrong
            width, with NaN, without a direction or more than the model's dtype holds, or a label that a prompt does not
            have.
    """
    if isinstance(edits, Edit) or not isinstance(edits, (list, tuple)):
        raise EmotraceError(f"edits is a list of edits ({', '.join(EDITS)}), not {type(edits).__name__}.")
    most = largest(sites)
    for i, edit in enumerate(edits):
        place = f"edits[{i}]"
        if not isinstance(edit, Edit) or not edit.kind:
            raise EmotraceError(f"{place} is {type(edit).__name__}, not one of {', '.join(EDITS)}.")
        if edit.kind not in CHANGES:
            raise unknown("kind", edit.kind, CHANGES, f"{place} ({type(edit).__name__})")
        provenance.check(edit, sites, place)
        for address in _addresses(edit, sites, place):
            columns = _columns(edit, address, sites, place)
            vectors = vector_at(Spot(edit, address, columns, place))
            values = vectors.values if isinstance(vectors, ByLabel) else vectors
            refuse_overflow(edit, values, columns, most, named(place, address))
            if isinstance(vectors, ByLabel):
                dim, rows, _ = vectors
                for about in labels:
                    if about.get(dim) not in rows:
                        raise unknown(
                            f"{dim} of a prompt", about.get(dim), rows, f"{place} (the payload's {dim} coordinate)"
                        )


def lower(
    edits: Sequence[Edit], sites: Sites, labels: Sequence[Mapping[str, Any]], prompt_lengths: Sequence[int],
    lengths: Sequence[int], columns: int, left: bool,
) -> Lowered:  # fmt: skip
    """Edits for one padded batch.

    Args:
        edits: checked edits, applied in order.
        sites: attached to the model.
        labels: of the prompts in the batch.
        prompt_lengths: tokens of each prompt.
        lengths: tokens of each prompt with its reply (generated tokens still to come included).
        columns: columns of the padded batch, generated ones included.
        left: whether padding is on the left.
    """
    by_place: dict[tuple, tuple[Address, list[Operation]]] = {}
    for number, edit in enumerate(edits):
        mask = torch.zeros((len(labels), columns), dtype=torch.bool)
        for row, (p, n) in enumerate(zip(prompt_lengths, lengths, strict=True)):
            chosen = positions_in(edit.positions, p, n)
            offset = columns - n if left else 0
            mask[row, chosen.start + offset : chosen.stop + offset] = True
        touched = flags(mask)
        for address in _addresses(edit, sites, f"edits[{number}]"):
            wanted = _columns(edit, address, sites, f"edits[{number}]")
            payload: Any = vector_at(Spot(edit, address, wanted, f"edits[{number}]"))
            if isinstance(payload, ByLabel):
                payload = payload.values[[payload.rows[about[payload.dim]] for about in labels]]
            if payload is not None and wanted is not None and payload.shape[-1] == address.width:
                payload = payload[..., wanted]
            width, strength = address.width, getattr(edit, "strength", 1.0)
            if edit.by_unit and payload is not None:  # a factor for every unit is a strength that broadcasts
                place = sites.place(_own(address) if address.own else address.site, address.layer)
                strength, payload = strength * _beside(payload, place), None
            operation = Operation(
                number, edit.kind, payload, strength, getattr(edit, "scale", "raw"), wanted, mask, touched, width
            )
            key = (address.path, address.side, address.index, address.kind, address.layer)
            by_place.setdefault(key, (address, []))[1].append(operation)
    lowered = Lowered(count=len(edits))
    for address, operations in sorted(by_place.values(), key=lambda pair: pair[0].order):
        place = sites.place(_own(address) if address.own else address.site, address.layer)
        base = None if address.base is None else address.base.order
        lowered.groups.append(Group(address.order, place, operations, base))
    return lowered


def _beside(payload: torch.Tensor, place: Place) -> torch.Tensor:
    """A payload as ``[batch or 1, 1, width]``, on the device of the module that it will meet."""
    weight = next(place.envoy._module.parameters(), None)
    shaped = payload[:, None, :] if payload.ndim == 2 else payload[None, None, :]
    return shaped if weight is None or weight.is_meta else shaped.to(weight.device)


def _own(address: Address) -> Site:
    return Site(address.path, address.side, address.index)


def _addresses(edit: Edit, sites: Sites, place: str) -> list[Address]:
    if isinstance(edit.site, Site):
        if edit.layers is not None:
            raise EmotraceError(
                f"{place}: a place of your own ({edit.site.name}) names its module; layers must be None."
            )
        edit.site.refuse_whole(place)
        return [sites.resolve(edit.site)]
    if edit.layers is None and edit.site in sites.addresses and sites.layers(edit.site):
        raise EmotraceError(f"{place}: site {edit.site!r} needs layers, e.g. range({sites.n_layers}).")
    found = [sites.address(edit.site, layer) for layer in (edit.layers if edit.layers is not None else [None])]
    for address in found:
        if not address.writable:
            raise EmotraceError(f"{place}: site {address.site!r} is read-only; edit z or o_proj_out instead.")
    return found


def _columns(edit: Edit, address: Address, sites: Sites, place: str) -> list[int] | None:
    """Columns of the last dim that an edit acts on, or None for all."""
    if edit.heads is not None and edit.units is not None:
        raise EmotraceError(f"{place}: heads={edit.heads} and units={edit.units}: an edit acts on one or the other.")
    if edit.heads is not None:
        if address.site != "z":
            raise EmotraceError(f"{place}: heads belong to site 'z', not to {address.site!r}; use units=.")
        try:
            n = sites.heads(int(address.layer or 0))
        except EmotraceError as error:
            raise EmotraceError(f"{place}: {error}") from None
        size = address.width // n
        wrong = [h for h in edit.heads if not 0 <= h < n]
        if wrong:
            raise EmotraceError(
                f"{place}: no head {wrong[0]}; layer {address.layer} of the model has heads 0 to {n - 1}."
            )
        return [h * size + i for h in edit.heads for i in range(size)]
    if edit.units is not None:
        wrong = [u for u in edit.units if not 0 <= u < address.width or address.width < 0]
        if wrong and address.width >= 0:
            raise EmotraceError(f"{place}: no unit {wrong[0]}; {address.site!r} has units 0 to {address.width - 1}.")
        return list(edit.units)
    return None


def reached(edits: Sequence[Edit], prompt_lengths: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """In how many sequences a token is at the positions of each edit.

    Args:
        edits: checked.
        prompt_lengths: tokens of each prompt.
        lengths: tokens that are fed for each, its reply among them.
    """
    pairs = list(zip(prompt_lengths, lengths, strict=True))
    return [sum(len(positions_in(edit.positions, p, n)) > 0 for p, n in pairs) for edit in edits]


def refuse_unreached(edits: Sequence[Edit], prompt_lengths: Sequence[int], lengths: Sequence[int]) -> None:
    """Refuse edits at spans that no sequence reaches, before anything runs.

    Args:
        edits: checked.
        prompt_lengths: tokens of each prompt.
        lengths: most tokens that are fed for each, its reply among them.

    Raises:
        EmotraceError: naming the edit, its span and the longest sequence.
    """
    for i, (edit, count) in enumerate(zip(edits, reached(edits, prompt_lengths, lengths), strict=True)):
        if not isinstance(edit.positions, str) and not count:
            raise EmotraceError(
                f"{_told(i, edit)} would never fire: the longest sequence has {max(lengths, default=0)} tokens."
            )


def refuse_silent(edits: Sequence[Edit], fired: Sequence[int]) -> None:
    """Refuse a run in which an edit was never carried out.

    Raises:
        EmotraceError: naming the edits.
    """
    silent = [i for i, n in enumerate(fired) if n == 0]
    if silent:
        told = _told(silent[0], edits[silent[0]])
        raise EmotraceError(f"{told} never fired: no token of any prompt was at these positions.")


def _told(number: int, edit: Edit) -> str:
    """An edit of a list, in messages."""
    return f"edits[{number}] ({type(edit).__name__} at {edit.site!r}, positions {edit.positions!r})"
