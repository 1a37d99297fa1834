"""Vocabulary: emotions, sites, dims, positions, and the one error that names value, place and choices.

Every other room takes its words from here, so that one thing has one name in code, flags, columns and docs.
"""

from __future__ import annotations

import difflib
import operator
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, SupportsIndex

from emotrace.secrets import redacted

if TYPE_CHECKING:
    import numpy as np

    Column = Callable[[], np.ndarray]

EMOTIONS: Final = ("anger", "sadness", "happiness", "fear", "surprise", "disgust")
EMOTIONS_EV: Final = ("anger", "disgust", "fear", "joy", "sadness")
"""The published five-tuple of Emotion Vectors (arXiv 2502.04075); the only place where an order matters."""
NEUTRAL: Final = "neutral"
ANSWERS: Final = (*EMOTIONS, NEUTRAL)
"""What a blind judge may answer; the seventh means *neutral or unclear*."""
ALIASES: Final = {"joy": "happiness"}
JUDGES: Final = {
    "lexicon": "lexicon.LexiconJudge",
    "fitted:FOLDER": "fitted.load_judge",
    "likelihood:ID_OR_DIR": "likelihood.LikelihoodJudge",
    "classifier:ID_OR_DIR": "classifier.ClassifierJudge",
    "openai[:MODEL]": "openai_compatible.OpenAIJudge",
}
"""How a judge is named (`emotrace.judges.make`) → what makes it, in the room of judges."""

TOKEN_COLUMNS: Final = ("prompt", "key", "position", "position_from_end", "prompt_length", "token_id", "token_text")
"""Columns that the rows of every store have, before the labels of their prompts."""
VALENCES: Final = ("positive", "neutral", "negative")
THEMES: Final = {
    "work": "Work/Job",
    "school": "School/Academia",
    "relation": "Personal relationships",
    "shopping": "Customer service/Shopping",
    "administration": "Public services/Administration",
    "health": "Health/Medical",
    "living": "Housing/Living facilities",
    "travel": "Travel/Transportation",
}
"""Prefix of the skeleton id → theme, as in SEV (arXiv 2510.11328)."""

SUBLAYERS: Final = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""The five sites of width d_model that every layer may have, in order of execution."""
LAYER_SITES: Final = (*SUBLAYERS, "o_proj_out", "z", "neuron_pre", "neuron", "attn_pattern")
GLOBAL_SITES: Final = ("embed", "final_norm", "logits")
SITES: Final = (*LAYER_SITES, *GLOBAL_SITES)
SITE_DIMS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(SITES, ("dim",)), "z": ("head", "head_dim"), "neuron_pre": ("unit",), "neuron": ("unit",),
}  # fmt: skip
"""Site → dims of one token's value there."""


class Component(NamedTuple):
    """A kind of component that a layer has.

    Attributes:
        site: what it writes: there it is read and edited.
        keyword: of an edit, that picks some of a layer's; None where a layer has one.
        sublayer: to which it adds.
        residual: the stream right after that sublayer.
        projection: a site at the map that follows; its own site where none does.
        name: pattern of the names of its nodes, for layer and number.
    """

    site: str
    keyword: str | None
    sublayer: str
    residual: str
    projection: str
    name: str

    @property
    def dims(self) -> tuple[str, ...]:
        """Dims of one token's value at its site."""
        return SITE_DIMS[self.site]

    @property
    def dim(self) -> str:
        """The dim that counts the components of a layer, where it has several."""
        return self.dims[0]

    def per_layer(self, sizes: Mapping[str, int]) -> int:
        """How many a layer has, by the sizes of its site's dims (`emotrace.sites.Sites.size`)."""
        return 1 if self.keyword is None else sizes[self.dim]

    def picked(self, chosen: Iterable[int]) -> dict[str, Any]:
        """The argument of an edit at its site that acts on some of a layer's components; nothing where a layer has one."""
        return {} if self.keyword is None else {self.keyword: list(chosen)}


COMPONENTS: Final = {
    "head": Component("z", "heads", "attn_out", "resid_mid", "o_proj_out", "a{}.h{}"),
    "neuron": Component("neuron", "units", "mlp_out", "resid_post", "neuron", "n{}.{}"),
    "attn": Component("attn_out", None, "attn_out", "resid_mid", "attn_out", "attn{}"),
    "mlp": Component("mlp_out", None, "mlp_out", "resid_post", "mlp_out", "m{}"),
    "resid": Component("resid_post", None, "resid_post", "resid_post", "resid_post", "r{}"),
}
"""Kind of component → where it is, how an edit picks it, and what its nodes are called: the only place that says so."""
GRADIENT: Final = "_gradient"
"""What the name of a stored variable of gradients ends in: ``z_gradient`` is d metric / d ``z``."""
METRIC: Final = "metric"
"""Stored variable that holds the metric of each row's prompt."""
AGAINST: Final = "against_"
"""What a label of a prompt's counterfactual begins with, beside the labels of the prompt."""
KINDS: Final = ("neuron", "head")
"""The kinds of which a layer has several; circuits are made of them, and files number them in this order."""
RUN_ORDER: Final = ("head", "attn", "neuron", "mlp", "resid")
"""All kinds in the order in which a layer runs them; figures and sentences name them in this one."""
COUNTED: Final = {COMPONENTS[kind].dim: COMPONENTS[kind] for kind in KINDS}
"""Dim that counts components → its kind's `Component`."""
PROJECTED: Final = {COMPONENTS[kind].site: COMPONENTS[kind] for kind in RUN_ORDER if kind in KINDS}
"""Site before the last linear map of a sublayer → the `Component` that is there."""
AFTER: Final = {c.sublayer: c.residual for c in (COMPONENTS["attn"], COMPONENTS["mlp"])}
"""Output of a sublayer → the residual right after it, in order of execution."""

_FROM_END: Final[dict[str, tuple[int | None, int | None]]] = {
    "last": (-1, 0), "generated": (0, None), "steer": (-1, None), "prompt": (None, 0), "all": (None, None),
}  # fmt: skip
"""Policy → half-open span, counted from the end of the prompt; None is an end of the sequence."""
POLICIES: Final = tuple(_FROM_END)
Label = str | int
"""Value of a label."""
Positions = str | tuple[int, int]
"""A policy name or a half-open, 0-based span ``(start, stop)`` of the un-padded sequence."""


SLIP: Final = 0.75
"""Likeness (`difflib`) from which a name is taken for a misspelt one."""
NAME_BYTES: Final = 150
"""Longest label in a file's name; with what is put before and after it stays below what file systems take."""
_DEVICES: Final = {"CON", "PRN", "AUX", "NUL", *(f"{d}{i}" for d in ("COM", "LPT") for i in range(10))}


class EmotraceError(ValueError):
    """The one error of emotrace: says which value, at which place, and what would have been right; never a key or a password."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks print: the message, which says all, in one line."""
        return [f"{type(self).__name__}: {' '.join(str(self).split())}"]


def unknown(what: str, value: object, choices: Iterable[object], place: str = "") -> EmotraceError:
    """The error for a value outside its choices, with the closest choice first.

    Args:
        what: the kind of thing asked for, e.g. ``"site"``.
        value: what was asked.
        choices: everything that would have been right.
        place: where it was asked, e.g. ``"capture(sites=…)"``.

    Returns:
        The error, to be raised by the caller.
    """
    names = [str(c) for c in choices]
    other = {**ALIASES, **{v: k for k, v in ALIASES.items()}}.get(str(value))
    close = [other] if other in names else difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    where = f" in {place}" if place else ""
    return EmotraceError(f"unknown {what} {value!r}{where}.{hint} Choices: {', '.join(names) or 'none'}.")


def filename(label: object, place: str) -> str:
    """A label as (part of) a file's name, as it is: nothing that points elsewhere, or that a system reads otherwise.

    Args:
        label: any text, in any script.
        place: who asks, for the message.

    Raises:
        EmotraceError: for an empty label, one with ``/``, ``\\``, ``: * ? " < > |`` or control characters, one that begins or
            ends with a dot or a blank, a name that Windows keeps for devices, or more than `NAME_BYTES` bytes.
    """
    name = str(label)
    why = None
    if not name.strip() or name != name.strip() or name.startswith(".") or name.endswith("."):
        why = "it is empty, or begins or ends with a dot or a blank"
    elif bad := sorted({c for c in name if c in '/\\:*?"<>|' or not c.isprintable()}):
        why = f"it has {', '.join(map(repr, bad))}"
    elif name.split(".")[0].upper() in _DEVICES:
        why = "some systems keep it for a device"
    elif len(name.encode()) > NAME_BYTES:
        why = f"it is longer than {NAME_BYTES} bytes"
    if why is not None:
        shown = repr(name) if len(name) <= 80 else f"{name[:80]!r}…"
        raise EmotraceError(f"{place}: {shown} cannot be the name of a file: {why}. Rename the label.")
    return name


def filenames(labels: Iterable[object], place: str) -> list[str]:
    """Labels as names of files, each of its own also where systems do not tell cases or accents' spellings apart.

    Raises:
        EmotraceError: as `filename`, and for two labels that some systems take for one name.
    """
    names = [filename(label, place) for label in labels]
    seen: dict[str, str] = {}
    for name in names:
        alike = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if alike in seen:
            raise EmotraceError(f"{place}: {seen[alike]!r} and {name!r} would be one file on some systems. Rename one.")
        seen[alike] = name
    return names


def emotion(name: str, among: Sequence[str] = EMOTIONS, place: str = "", *, own: bool = False) -> str:
    """The emotion of ``among`` that ``name`` means, following the one alias table (joy ↔ happiness).

    Args:
        name: in any case.
        among: the choices.
        place: where it was said, for the message.
        own: any other name stands for itself (the emotions are data), unless it is so near to a choice that it is a slip.

    Raises:
        EmotraceError: if neither the name nor its alias is among the choices (with ``own``: for no text, or a slip).
    """
    if not isinstance(name, str):
        raise unknown("emotion", name, among, place)
    word = name.strip().lower()
    reverse = {v: k for k, v in ALIASES.items()}
    for candidate in (name.strip(), word, ALIASES.get(word), reverse.get(word)):
        if candidate in among:
            return str(candidate)
    if own and word and not difflib.get_close_matches(word, among, 1, SLIP):
        return name.strip()
    raise unknown("emotion", name, among, place)


def same_emotion(one: object, other: object) -> bool:
    """Whether two names mean one emotion, following the alias table."""
    return one == other or ALIASES.get(str(one)) == other or ALIASES.get(str(other)) == one


def value_dims(dims: Sequence[Hashable]) -> tuple[str, ...]:
    """Which dims of an array are those of one token's value at a site; its last where it has those of none."""
    known = sorted(dict.fromkeys(SITE_DIMS.values()), key=len, reverse=True)
    return next((own for own in known if set(own) <= set(dims)), tuple(map(str, dims[-1:])))


def check_positions(positions: Positions, place: str = "positions") -> Positions:
    """The policy itself, after checking that it is one.

    Raises:
        EmotraceError: for an unknown policy name or a span that is not ``0 <= start < stop``.
    """
    if isinstance(positions, str):
        if positions not in POLICIES:
            raise unknown("position policy", positions, (*POLICIES, "(start, stop)"), place)
        return positions
    span = tuple(positions) if isinstance(positions, (tuple, list)) else ()
    whole = [i for i in span if isinstance(i, SupportsIndex) and type(i).__name__ not in ("bool", "bool_")]
    if len(span) != 2 or len(whole) != 2:
        raise EmotraceError(
            f"{place}={positions!r} is neither a policy ({', '.join(POLICIES)}) nor a span (start, stop)."
        )
    start, stop = map(operator.index, whole)
    if not 0 <= start < stop:
        raise EmotraceError(f"{place}={span!r}: a span is half-open and 0-based, so it needs 0 <= start < stop.")
    return (start, stop)


def positions_in(positions: Positions, prompt_length: int, length: int) -> range:
    """Indices of the un-padded sequence that a policy selects.

    ``last`` = {p−1}; ``generated`` = [p, n); ``steer`` = [p−1, n); ``prompt`` = [0, p); ``all`` = [0, n);
    a span is cut to the sequence. p is the prompt length, n the length of prompt and reply together.

    Args:
        positions: policy or span.
        prompt_length: p, in tokens.
        length: n ≥ p, in tokens.
    """
    if not isinstance(positions, str):
        return range(min(positions[0], length), min(positions[1], length))
    start, stop = _FROM_END[positions]
    return range(0 if start is None else prompt_length + start, length if stop is None else prompt_length + stop)


def rows_at(positions: Positions, position: Column, from_end: Column) -> np.ndarray:
    """Which rows of a table of tokens a policy or span selects: what `positions_in` says, row by row.

    Args:
        positions: policy or span.
        position: says of every row its index in the un-padded sequence; asked for a span only.
        from_end: says of every row that index, counted from the end of the prompt (its last token is −1); asked for a policy.

    Returns:
        One boolean a row.
    """
    if not isinstance(positions, str):
        at, (start, stop) = position(), positions
    else:
        at, (start, stop) = from_end(), _FROM_END[positions]
    chosen = at == at
    if start is not None:
        chosen &= at >= start
    if stop is not None:
        chosen &= at < stop
    return chosen
