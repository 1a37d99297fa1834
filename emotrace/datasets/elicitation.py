"""Elicitation: how a prompt asks for an emotion, as a value with a name and a digest; each way has its plain counterpart.

The published way is ``instruct``, a system message. A model that no instruction moves may be shown worked examples instead:
``fewshot`` and the other sets of ``elicitation.json``, synthetic text written for this project. The plain counterpart asks the
same without an emotion and ends in the same token, so that what is read or edited at the last token is comparable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from emotrace import disk, shipped, shown
from emotrace.files import read_json
from emotrace.labels import EmotraceError, unknown
from emotrace.signatures import typed

SYSTEM: Final = "Keep the reply to at most two sentences."
INSTRUCTION: Final = "Always reply in {emotion}.\n" + SYSTEM
AUTO: Final = "auto"
OWN: Final = shipped.folder(shipped.DATA) / "elicitation.json"
"""The sets of worked examples that come with the project."""
FIELDS: Final = ("asked", "plain", "about", "words", "stop", "example", "examples", "sets", "chosen_on")
"""Of a file; the first two it must have."""
_PLACE: Final = re.compile(r"\{([A-Za-z_]+)\}")
_ALWAYS: Final = {"scenario", "event"}
_EMOTION: Final = {"emotion", "Emotion"}

Template = str | tuple[tuple[str, str], ...]
"""A plain text, or chat messages as (role, content), with places to fill in braces."""


class Example(NamedTuple):
    """A worked example: what happened, and a reply that shows the emotion."""

    emotion: str
    scenario: str
    event: str
    reply: str


@dataclass(frozen=True)
class Elicitation:
    """How a prompt asks for an emotion.

    Attributes:
        name: ``instruct``, ``fewshot``, or whatever a file calls it.
        asked: template with ``{scenario}``, ``{event}`` and the emotion as ``{emotion}`` or, with a capital, ``{Emotion}``.
        plain: its counterpart without the emotion.
        words: emotion → the word that stands for it; the others stand for themselves.
        stop: texts that end a reply (`emotrace.generate`).
        examples: worked examples that stand in the templates.
        chosen_on: ids of the skeletons on whose replies it was chosen among drafts; acceptance there is optimistic.
    """

    name: str
    asked: Template
    plain: Template
    words: Mapping[str, str] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    chosen_on: tuple[str, ...] = ()
    __repr__ = shown.brief

    def __post_init__(self) -> None:
        where = f"elicitation {self.name!r}"
        for name, template, emotions in (("asked", self.asked, True), ("plain", self.plain, False)):
            found = set(_PLACE.findall("\n".join(_texts(template))))
            allowed = _ALWAYS | (_EMOTION if emotions else set())
            if found - allowed:
                choices = ", ".join(f"{{{place}}}" for place in sorted(allowed))
                raise EmotraceError(f"{where}: {name} has {{{min(found - allowed)}}}; places to fill are {choices}.")
            if not found >= _ALWAYS or (emotions and not found & _EMOTION):
                raise EmotraceError(
                    f"{where}: {name} needs {{scenario}}, {{event}}{' and {emotion} or {Emotion}' if emotions else ''}."
                )
        if isinstance(self.asked, str) != isinstance(self.plain, str) or _last(self.asked) != _last(self.plain):
            raise EmotraceError(
                f"{where}: asked ends in {_last(self.asked)!r} and plain in {_last(self.plain)!r}; both are a text or both are "
                "messages, and end alike, so that their last tokens are comparable."
            )

    @property
    def chat(self) -> bool:
        """Whether it makes chat messages, for which a model needs a chat template."""
        return not isinstance(self.asked, str)

    @property
    def digest(self) -> str:
        """Of all that the prompts are made of, not of the name."""
        return disk.digest([self.asked, self.plain, dict(self.words), self.stop])

    @property
    def label(self) -> str | None:
        """What its prompts carry as the label ``elicitation``: name and digest; nothing where it is the published way."""
        return None if self == instruct() else f"{self.name}@{self.digest}"

    @property
    def record(self) -> dict[str, Any]:
        """For a manifest."""
        return {"name": self.name, "digest": self.digest, "stop": list(self.stop), "n_examples": len(self.examples)}

    def content(self, scenario: str, event: str, emotion: str | None = None) -> dict[str, Any]:
        """``{"text": …}`` or ``{"messages": …}`` of a prompt; without an emotion of its plain counterpart."""
        told = {"scenario": scenario, "event": event}
        if emotion is not None:
            word = self.words.get(emotion, emotion)
            told |= {"emotion": word, "Emotion": word[:1].upper() + word[1:]}
        template = self.plain if emotion is None else self.asked
        if isinstance(template, str):
            return {"text": _filled(template, told)}
        return {"messages": tuple({"role": role, "content": _filled(text, told)} for role, text in template)}


@cache
def instruct() -> Elicitation:
    """The published way: "Always reply in {emotion}." as a system message."""
    user = ("user", "{scenario}\n{event}")
    return Elicitation("instruct", (("system", INSTRUCTION), user), (("system", SYSTEM), user))


@typed
def elicitation(name: str | Path) -> Elicitation:
    """A way to ask by its name, or the (first) one of a file.

    Args:
        name: ``instruct``, ``fewshot`` or another set of `OWN`, or a JSON file (`read_elicitations`).

    Raises:
        EmotraceError: for a name that is neither, and as `read_elicitations`.
    """
    return _named(name)[0]


@typed
def elicitations(name: str | Path = AUTO) -> list[Elicitation]:
    """The ways that compete for a model.

    Args:
        name: ``auto`` (``instruct`` and every set of worked examples), ``fewshot`` (every set), one of `elicitation`, or a file
            (all that it holds).

    Raises:
        EmotraceError: as `elicitation`.
    """
    if name == AUTO:
        return [instruct(), *_own()]
    return list(_own()) if name == "fewshot" else _named(name)


def _named(name: str | Path) -> list[Elicitation]:
    known = {one.name: one for one in (instruct(), *_own())}
    if str(name) in known:
        return [known[str(name)]]
    if Path(name).is_file():
        return read_elicitations(name)
    raise unknown("elicitation", str(name), [AUTO, *known, "a JSON file"], "--elicit")


@cache
def _own() -> tuple[Elicitation, ...]:
    return tuple(read_elicitations(OWN))


@typed
def read_elicitations(path: str | Path) -> list[Elicitation]:
    """The ways to ask that a JSON file holds.

    ``{"asked": …, "plain": …}``: each a text, or a list of ``{"role", "content"}``, with places as in `Elicitation`. Optional:
    ``words`` (emotion → word), ``stop`` (texts that end a reply), ``about``, and worked examples: ``example``, a template with
    ``{scenario}``, ``{event}``, ``{reply}`` and the emotion, is filled with each of ``examples`` (a list of ``{"emotion",
    "scenario", "event", "reply"}``), or of each list of ``sets`` (name → list), and stands for ``{examples}``. ``chosen_on``:
    the ids of skeletons on whose replies the examples were chosen.

    Returns:
        One, named as the file is, or one of each set.

    Raises:
        EmotraceError: naming the file, for a field that is missing, unknown, or of another kind.
    """
    found = read_json(path)
    if not isinstance(found, Mapping):
        raise EmotraceError(
            f"{path}: an elicitation is a JSON object with asked and plain, not {type(found).__name__}."
        )
    for name in found:
        if name not in FIELDS:
            raise unknown("field", name, FIELDS, str(path))
    for name in FIELDS[:2]:
        if name not in found:
            raise EmotraceError(f"{path}: field {name!r} is missing (it has: {', '.join(found) or 'nothing'}).")
    words, stop = found.get("words", {}), found.get("stop", [])
    if not isinstance(words, Mapping) or not all(isinstance(w, str) and w for w in words.values()):
        raise EmotraceError(f"{path}: words maps emotions to words, not {words!r}.")
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise EmotraceError(f"{path}: stop is a list of texts, not {stop!r}.")
    chosen_on = found.get("chosen_on", [])
    if not isinstance(chosen_on, list) or not all(map(_is_text, chosen_on)):
        raise EmotraceError(f"{path}: chosen_on is a list of ids of skeletons, not {chosen_on!r}.")
    sets = found.get("sets", {Path(path).stem: found.get("examples", [])})
    if not isinstance(sets, Mapping) or not sets or ("sets" in found and "examples" in found):
        raise EmotraceError(f"{path}: give examples (a list) or sets (name → list of examples), one of them.")
    out = []
    for name, rows in sets.items():
        where = f"{path}, {name}"
        worked = _examples(rows, where)
        shown = _shown(found.get("example"), worked, words, where)
        asked, plain = (_template(found[side], shown, f"{where}: {side}") for side in FIELDS[:2])
        out.append(Elicitation(name, asked, plain, dict(words), tuple(stop), worked, tuple(chosen_on)))
    return out


def _examples(rows: object, where: str) -> tuple[Example, ...]:
    if not isinstance(rows, list):
        raise EmotraceError(f"{where}: examples are a list, not {rows!r}.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or set(row) != set(Example._fields) or not all(map(_is_text, row.values())):
            raise EmotraceError(
                f"{where}: example {number} needs the texts {', '.join(Example._fields)}, and has {row!r}."
            )
    return tuple(Example(**row) for row in rows)


def _shown(example: object, worked: Sequence[Example], words: Mapping[str, str], where: str) -> str:
    """The worked examples as they stand in the templates."""
    if not worked:
        return ""
    if not isinstance(example, str) or "{reply}" not in example:
        raise EmotraceError(f"{where}: examples need example, a text with {{reply}}, not {example!r}.")
    parts = []
    for one in worked:
        word = words.get(one.emotion, one.emotion)
        told = {**one._asdict(), "emotion": word, "Emotion": word[:1].upper() + word[1:]}
        parts.append(_filled(example, told))
    return "".join(parts)


def _template(given: object, shown: str, where: str) -> Template:
    if isinstance(given, str):
        return _filled(given, {"examples": shown})
    if (
        isinstance(given, list)
        and given
        and all(isinstance(m, Mapping) and set(m) == {"role", "content"} for m in given)
    ):
        return tuple((str(m["role"]), _filled(str(m["content"]), {"examples": shown})) for m in given)
    raise EmotraceError(f"{where} is a text or a list of {{'role': …, 'content': …}}, not {given!r}.")


def _filled(template: str, told: Mapping[str, str]) -> str:
    """A template with its places filled, each once: what fills one is not looked at again."""
    return _PLACE.sub(lambda found: told.get(found[1], found[0]), template)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(template: Template) -> list[str]:
    return [template] if isinstance(template, str) else [text for _, text in template]


def _last(template: Template) -> str:
    """What a template ends in: its last character, or the last place to be filled."""
    text = _texts(template)[-1]
    found = re.search(r"\{[A-Za-z_]+\}$", text)
    return found[0] if found else text[-1:]
