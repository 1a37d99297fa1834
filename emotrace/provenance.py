"""Provenance: which model a thing was made with, and whether a model is that one.

Directions, vectors, scores and circuits carry the entries `KEYS` of their model's identity. The same weights in another folder,
dtype or on another device are the same model. A thing without these entries (numbers of the user's own) fits every model of its
width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

import xarray as xr

from emotrace.labels import EmotraceError
from emotrace.signatures import typed

KEYS: Final = ("model_id", "revision", "dtype", "config_hash", "weights_hash", "weights_sample")
"""Entries of a model's identity that tell it from others."""
ROWS: Final = (
    "source", "selection", "plan_digest", "edits", "prompts_digest", "tokens_digest", "accepted_digest", "n_accepted"
)  # fmt: skip
"""Entries that say which rows a result was made of: the store, what it was narrowed to, its plan and prompts, and of these the
accepted ones. Results that differ in one of them are of other rows."""
ADOPTED: Final = "adopted_from"
"""Entry that `adopt` leaves: the model that a thing was made with before; it stays with what is made of the thing."""
ALIKE: Final = 0.85
"""Least share of sampled weights that are equal in bfloat16 where dtypes differ; float16 rounds a few to the other side."""


T = TypeVar("T")


class HasIdentity(Protocol):
    """What says which model it belongs to, as ``model.sites`` does."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Entries `KEYS`, and others."""
        ...


class HasSites(Protocol):
    """A model as `emotrace.load` returns it."""

    @property
    def sites(self) -> HasIdentity:
        """Its sites, which say which model they are of."""
        ...


def of(thing: object) -> dict[str, Any]:
    """What a thing says of the model that it was made with; empty where it says nothing.

    Args:
        thing: what has attrs, a meta or a model that say it, an edit, or a mapping.
    """
    about = _said(thing)
    return {k: about[k] for k in (*KEYS, ADOPTED) if k in about}


def rows_of(thing: object) -> dict[str, Any]:
    """What a thing says of the rows that it was made of (`ROWS`); empty where it says nothing.

    Args:
        thing: what has attrs, a meta or a model that say it, an edit, or a mapping.
    """
    about = _said(thing)
    return {k: about[k] for k in ROWS if k in about}


def _said(thing: object) -> Mapping[str, Any]:
    """The attrs, meta or other entries of a thing that say what it was made with."""
    about = thing
    for name in ("origin", "attrs", "meta", "model"):
        found = getattr(thing, name, None)
        if isinstance(found, Mapping) and found:
            about = found
            break
    else:
        vector = getattr(thing, "vector", None)
        if vector is not None:
            return _said(vector)
    return about if isinstance(about, Mapping) else {}


def check(thing: object, sites: HasIdentity, what: str) -> None:
    """Refuse a thing that was made with another model.

    Args:
        thing: labelled array, Dataset, circuit, edit, or a mapping with entries of an identity.
        sites: ``model.sites``.
        what: the thing, for the message, e.g. ``head_contributions(directions=…)``.

    Raises:
        EmotraceError: naming both models, and how to use it all the same.
    """
    was, now = of(thing), dict(sites.identity)
    if _known(was) and now and not same(was, now):
        raise EmotraceError(
            f"{what}: made with the model {_named(was)}, not for this model, {_named(now)}. If that is meant, say so: "
            "emotrace.adopt(…, model), or `emotrace adopt FOLDER --model MODEL --out FOLDER` for files."
        )


def together(place: str, /, **things: object) -> None:
    """Refuse things that were made with different models where they are compared or put together.

    Args:
        place: the function, for the message.
        things: by the name of their argument; one that names no model goes with every other.

    Raises:
        EmotraceError: naming both arguments and both models.
    """
    known = {name: was for name, thing in things.items() if _known(was := of(thing))}
    first, *others = known or ("",)
    for name in others:
        if not same(known[first], known[name]):
            raise EmotraceError(
                f"{place}: {first} was made with the model {_named(known[first])}, {name} with another, "
                f"{_named(known[name])}. If that is meant, say so: emotrace.adopt(…, model)."
            )


def same(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two identities are of the same weights.

    Where both were sampled the numbers decide: hashes in one dtype, sampled weights across dtypes. Where weights are elsewhere,
    or were not sampled by an older version, an equal hash or else the last part of the names does.
    """
    hashes = (was.get("weights_hash"), now.get("weights_hash"))
    samples = (str(was.get("weights_sample") or ""), str(now.get("weights_sample") or ""))
    if all(samples):
        if was.get("dtype") == now.get("dtype") and all(hashes):
            return hashes[0] == hashes[1]
        mine, other = ([s[i : i + 4] for i in range(0, len(s), 4)] for s in samples)
        equal = sum(a == b for a, b in zip(mine, other, strict=False))
        return len(mine) == len(other) and equal >= ALIKE * len(mine)
    if any(samples) and all(hashes) and hashes[0] == hashes[1]:
        return True
    names = [str(one.get("model_id") or "").rstrip("/").rsplit("/", 1)[-1].lower() for one in (was, now)]
    revisions = [str(one.get("revision") or "") for one in (was, now)]
    return not all(names) or (names[0] == names[1] and (not all(revisions) or revisions[0] == revisions[1]))


@typed
def adopt(thing: T, model: HasSites) -> T:
    """A thing that was made with one model, declared fit for another: the deliberate way to use foreign directions or circuits.

    Args:
        thing: labelled array, Dataset, circuit, masks, soft prompt, edit, or a list of edits.
        model: from `emotrace.load`, which it shall be used with; its width is checked at use.

    Returns:
        A copy that names ``model`` as its own, and under ``adopted_from`` the one that it was made with.

    Raises:
        EmotraceError: for a thing that names no model and needs none.
    """
    identity = {k: model.sites.identity[k] for k in KEYS if k in model.sites.identity}
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return cast(T, [adopt(one, model) for one in thing])
    before = of(thing).get("model_id")
    about = {**identity, **({ADOPTED: before} if before else {})}
    if isinstance(thing, (xr.DataArray, xr.Dataset)):
        return cast(T, thing.assign_attrs(about))
    fields = {f.name for f in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
    replace: Any = dataclasses.replace
    if "origin" in fields:
        return replace(thing, origin=about)
    if "masked" in fields:
        return replace(thing, masked=adopt(vars(thing)["masked"], model))
    for name in ("meta", "model"):
        if name in fields:
            return replace(thing, **{name: {**getattr(thing, name), **about}})
    raise EmotraceError(
        f"adopt takes labelled arrays, circuits, masks, soft prompts and edits, not {type(thing).__name__}."
    )


def _known(about: Mapping[str, Any]) -> bool:
    """Whether a model is told apart; a name alone, in files of other tools, says too little."""
    return "weights_hash" in about or "config_hash" in about


def _named(about: Mapping[str, Any]) -> str:
    shown = [f"{n} {about[k]}" for n, k in (("revision", "revision"), ("weights", "weights_hash")) if about.get(k)]
    return f"{about.get('model_id') or '(unnamed)'}" + (f" ({', '.join(shown)})" if shown else "")
