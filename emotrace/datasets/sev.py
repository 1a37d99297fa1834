"""SEV: scenario–event skeletons with three valences, in our files, the authors' files and any file of the user's.

The format is that of EmotionCircuits (arXiv 2510.11328): one JSON per line with ``theme``, ``scenario``,
``event {positive, neutral, negative}`` and a unique ``skeleton_id``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emotrace import labels
from emotrace.datasets.elicitation import Elicitation, elicitation
from emotrace.datasets.prompts import Prompt, Prompts
from emotrace.files import read_jsonl
from emotrace.labels import EMOTIONS, VALENCES, EmotraceError
from emotrace.signatures import typed


@dataclass(frozen=True)
class Skeleton:
    """A scenario and the events that may follow it.

    Attributes:
        skeleton_id: unique id, e.g. ``work_00``.
        theme: one of `emotrace.labels.THEMES`, or the user's own.
        scenario: what happened, in the first person.
        events: valence → event.
    """

    skeleton_id: str
    theme: str
    scenario: str
    events: Mapping[str, str]


@typed
def read_sev(path: str | Path) -> list[Skeleton]:
    """The skeletons of a SEV file, checked line by line.

    Reads the data files (``event`` a mapping of valences) and the authors' generated, labelled and steered rows (one
    event per row, as ``valence`` + ``event`` or ``event_valence`` + ``event``), whose rows are gathered by skeleton.

    Raises:
        EmotraceError: naming file and line, for a missing file, broken JSON, a missing or empty field, an unknown
            valence, or a skeleton that contradicts itself.
    """
    scenarios: dict[str, tuple[str, str]] = {}
    events: dict[str, dict[str, str]] = {}
    whole: set[str] = set()
    for where, row in read_jsonl(path):
        ident, scenario = _field(row, "skeleton_id", where), _field(row, "scenario", where)
        theme = str(row.get("theme") or _theme_of(ident, where))
        if scenarios.setdefault(ident, (theme, scenario)) != (theme, scenario):
            raise EmotraceError(f"{where}: skeleton {ident!r} has another theme or scenario than before.")
        event = row.get("event")
        if isinstance(event, Mapping):
            if not event:
                raise EmotraceError(
                    f"{where}: field 'event' of {ident!r} is empty; it maps {', '.join(VALENCES)} to text."
                )
            if ident in whole:
                raise EmotraceError(f"{where}: skeleton_id {ident!r} occurs twice.")
            whole.add(ident)
            found = {str(v): e for v, e in event.items()}
        elif isinstance(row.get("event_valences"), Mapping):
            raise EmotraceError(f"{where}: these are steered outputs without their events; give the data file.")
        else:
            valence = row.get("valence") or row.get("event_valence")
            if valence is None or event is None:
                name = "event" if event is None else "valence"
                have = ", ".join(row)
                raise EmotraceError(f"{where}: field {name!r} of {ident!r} is missing (the row has: {have}).")
            found = {str(valence): event}
        for valence, text in found.items():
            if valence not in VALENCES:
                raise labels.unknown("valence", valence, VALENCES, where)
            if not isinstance(text, str) or not text.strip():
                raise EmotraceError(f"{where}: the {valence} event of {ident!r} is missing or empty.")
            if events.setdefault(ident, {}).setdefault(valence, text) != text:
                raise EmotraceError(f"{where}: the {valence} event of {ident!r} differs from an earlier row.")
    if not scenarios:
        raise EmotraceError(f"{path} has no rows.")
    return [Skeleton(i, theme, scenario, events[i]) for i, (theme, scenario) in scenarios.items()]


@typed
def sev(
    path: str | Path | Sequence[Skeleton],
    emotions: Sequence[str] = EMOTIONS,
    valences: Sequence[str] = VALENCES,
    instruction: bool = True,
    limit: int | None = None,
    elicit: Elicitation | str | Path = "instruct",
) -> Prompts:
    """SEV as prompts, in the order skeleton → valence → emotion.

    Args:
        path: a SEV file, or skeletons.
        emotions: emotions to ask for (``instruction=True``): the six, or any names of your own.
        valences: events to take.
        instruction: ask for the emotion. Without it there is one prompt per skeleton and valence, and no ``emotion`` label:
            the plain counterpart.
        limit: number of skeletons, spread evenly over themes.
        elicit: how the emotion is asked for: an `Elicitation`, or what `elicitation` takes. ``instruct`` puts "Always reply in
            {emotion}." into the system message, ``fewshot`` goes on after worked examples.

    Returns:
        Prompts with the labels ``skeleton_id, theme, valence, (emotion,) scenario, event`` (and ``elicitation``, name and
        digest, where it is not ``instruct``), and the key ``{skeleton_id}__{valence}__{emotion}`` (without the last part if no
        emotion is asked).
    """
    for name, given in (("emotions", emotions), ("valences", valences)):
        if isinstance(given, str):
            raise EmotraceError(f"sev({name}={given!r}) takes a list of names, e.g. [{given!r}].")
        if len(set(given)) != len(given) or not given:
            raise EmotraceError(f"sev({name}={list(given)}) needs at least one name, each once.")
    skeletons = read_sev(path) if isinstance(path, (str, Path)) else list(path)
    wanted = [labels.emotion(e, EMOTIONS, "sev(emotions=…)", own=True) for e in emotions] if instruction else [None]
    for valence in valences:
        if valence not in VALENCES:
            raise labels.unknown("valence", valence, VALENCES, "sev(valences=…)")
    way = elicit if isinstance(elicit, Elicitation) else elicitation(elicit)
    asked_by = {} if way.label is None else {"elicitation": way.label}
    prompts = []
    for s in skeletons:
        for valence in valences:
            if valence not in s.events:
                continue
            for emotion in wanted:
                key = "__".join(x for x in (s.skeleton_id, valence, emotion) if x).replace("/", "_")
                content = way.content(s.scenario, s.events[valence], emotion)
                about = {"skeleton_id": s.skeleton_id, "theme": s.theme, "valence": valence}
                about |= {"emotion": emotion} if emotion else {}
                about |= {"scenario": s.scenario, "event": s.events[valence], **asked_by}
                prompts.append(Prompt(key, **content, labels=about))
    return Prompts(prompts).limit(limit)


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        have = ", ".join(row) or "nothing"
        raise EmotraceError(f"{where}: field {name!r} is missing, empty or no text (the row has: {have}).")
    return value


def _theme_of(ident: str, where: str) -> str:
    prefix = ident.split("_", 1)[0]
    if prefix not in labels.THEMES:
        raise EmotraceError(
            f"{where}: field 'theme' is missing and the id {ident!r} does not begin with a known theme."
        )
    return labels.THEMES[prefix]
