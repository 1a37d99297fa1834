"""Deployments: the models of a server as its ``/status`` lists them, and which of them is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from emotrace.labels import EmotraceError
from emotrace.texts import from_json

RUNNING: Final = "RUNNING"
COMING: Final = {
    "DEPLOYING": "it is being loaded",
    "WARM": "it lies in the server's memory and is restored on request",
    "COLD": "it lies on the server's disk and is deployed on request",
}
"""State of a model that is not up yet but will be for whoever asks → what that means."""
_ORDER: Final = (RUNNING, *COMING)
_OURS: Final = ("TransformersModel", "LanguageModel")
_NAMED: Final = ":ModelActor:"


class Deployment(NamedTuple):
    """A model of a server.

    Attributes:
        name: repository.
        key: what jobs must call it, to the letter; None where the server has none before it is asked for (COLD).
        state: RUNNING, one of `COMING`, or what else the server says.
        revision: branch, tag or commit; None where it does not matter.
        task: what nnsight calls its use; None where it is not said.
        trust: whether it runs code that came with its configuration.
        dtype: of its weights, where that is said.
    """

    name: str
    key: str | None
    state: str
    revision: str | None
    task: str | None
    trust: bool
    dtype: str | None

    def __str__(self) -> str:
        details = [self.state, *filter(None, (self.task, self.revision)), *["trust_remote_code"] * self.trust]
        return f"{self.name} ({', '.join(details)})"


def listed(status: Mapping[str, Any]) -> list[Deployment]:
    """The models of an answer to ``/status``, the best state of each; entries that name no model are left out."""
    found: dict[tuple[str, str | None], Deployment] = {}
    for model in _read(status):
        known = found.get((model.name, model.key))
        if known is None or _rank(model) < _rank(known):
            found[model.name, model.key] = model
    return list(found.values())


def chosen(
    models: list[Deployment], source: str, told: str | None, task: str, revision: str | None, trust: bool
) -> Deployment:
    """The model that is meant; of several the one that is soonest up.

    Args:
        models: of the server.
        source: hub id, or a directory, known by its path as given or by its own name.
        told: what a server called it before.
        task: its use.
        revision: None and ``main`` are one.
        trust: whether it may run code that comes with its configuration: another deployment.

    Raises:
        EmotraceError: where none is meant; those that there are are named.
    """
    own = os.path.basename(os.path.abspath(source)) if Path(source).is_dir() else None
    names = [m for m in models if m.name == told or m.name.lower() == source.lower()]
    names += [m for m in models if own is not None and m.name.rsplit("/", 1)[-1] == own and m not in names]
    fit = [m for m in names if m.task in (task, None) and m.name == names[0].name]
    if not fit:
        raise EmotraceError(f"has no model {source!r} ({task}). It has: {', '.join(map(str, models)) or 'none'}.")
    right = [m for m in fit if m.key is None or ((m.revision or "main") == (revision or "main") and m.trust == trust)]
    up = sorted((m for m in right if m.state in _ORDER), key=_rank)
    if not up:
        asked = f"revision {revision or 'main'!r}{', trust_remote_code' if trust else ''}"
        raise EmotraceError(f"has {', '.join(map(str, fit))}, not {source!r} with {asked} up or coming up.")
    return up[0]


def _rank(model: Deployment) -> int:
    return _ORDER.index(model.state) if model.state in _ORDER else len(_ORDER)


def _read(status: Mapping[str, Any]) -> Iterator[Deployment]:
    entries = status.get("deployments")
    for name, entry in entries.items() if isinstance(entries, Mapping) else ():
        if not isinstance(entry, Mapping):
            continue
        key = entry.get("model_key") or name.rpartition(_NAMED)[2]
        about = _about(key)
        repository = entry.get("repo_id") or about.get("repo_id")
        if not repository:
            continue
        level = str(entry.get("deployment_level") or "HOT")
        state = str(entry.get("application_state") or RUNNING) if level == "HOT" else level
        revision, task = (about.get(field) or entry.get(field) for field in ("revision", "task"))
        engine = key.partition(":")[0].rpartition(".")[2]
        task = engine if about and engine not in _OURS else task  # another engine serves other places
        trust = bool(about.get("trust_remote_code") or entry.get("trust_remote_code"))
        yield Deployment(str(repository), key if about else None, state, revision, task, trust, entry.get("dtype"))


def _about(key: str) -> dict[str, Any]:
    """What a model key says: JSON behind the name of a class; nothing where it is none."""
    try:
        found = from_json(key.partition(":")[2])
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "repo_id" in found else {}
