"""Deployments: what each model is called, how far up it is, and what /status says of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from typing import Any

from nnsight import TransformersModel
from nnsight.schema.response import Status

from emotrace.testing.ndif_server.jobs import KeptResult

WRAPPER = "nnsight.modeling.transformers.TransformersModel"
STATES = ("RUNNING", "DEPLOYING", "WARM", "COLD")
"""The first two are HOT; WARM lies in memory and is restored, COLD lies on disk and is deployed, by the first request."""


class Deployment:
    """One model of a server.

    Args:
        name: repository that clients ask for.
        model: what runs its jobs.

    Attributes:
        state: of `STATES`.
        key: what jobs must call it, to the letter; of a COLD one nobody knows it before it is asked for.
        adopted: whether the queue has found it running.
        phase: what it waits for, till then.
        waiting: jobs that came before it was up.
    """

    def __init__(self, name: str, model: TransformersModel) -> None:
        self.name, self.model = name, model
        self.lock = threading.Lock()
        self.waiting: list[KeptResult] = []
        self.order("RUNNING", None)

    def order(self, state: str, revision: str | None) -> None:
        """Bring it into a state, under a revision as its operator wrote it."""
        if state not in STATES:
            raise ValueError(f"{self.name}: {state!r} is not one of {', '.join(STATES)}")
        self.state, self.adopted, self.phase = state, False, Status.PROVISIONING
        self.key = f"{WRAPPER}:" + json.dumps({"repo_id": self.name, "revision": revision, "task": self.model.task})

    @property
    def words(self) -> str:
        """What those who wait for it are told."""
        finding = self.phase == Status.PROVISIONING
        return "A place for the model is being found." if finding else "The model is being loaded."

    def up(self, model_key: str) -> list[KeptResult]:
        """It runs, under the key of whoever asked for it; the jobs that waited."""
        with self.lock:
            self.key, self.state, self.adopted = model_key, "RUNNING", True
            waited, self.waiting = self.waiting, []
            return waited

    def takes(self, model_key: str) -> bool:
        """Whether jobs of this key are for it: the same string, or one that it can be deployed under."""
        if self.state != "COLD":
            return model_key == self.key
        wrapper, _, rest = model_key.partition(":")
        try:
            wanted = json.loads(rest)
            return wrapper == WRAPPER and (wanted["repo_id"], wanted["task"]) == (self.name, self.model.task)
        except (ValueError, KeyError, TypeError):
            return False

    def entry(self) -> tuple[str, dict[str, Any]]:
        """Its name and entry in /status, whoever asks."""
        if self.state == "COLD":
            return self.name, {"repo_id": self.name, "deployment_level": "COLD"}
        dtype = next(self.model._module.parameters()).dtype
        about: dict[str, Any] = {
            "repo_id": self.name,
            "model_key": self.key,
            "dtype": str(dtype).removeprefix("torch."),
            "trusted": False,  # it was not deployed for a key that runs code of its own
        }
        if self.state == "WARM":
            return self.key, about | {"deployment_level": "WARM"}
        return self.key, about | {"deployment_level": "HOT", "application_state": self.state}


def named(deployments: Iterable[Deployment], model_key: str) -> Deployment | None:
    """The deployment that takes jobs of a key; another spelling of a key is another model, for which there is no room."""
    return next((d for d in deployments if d.takes(model_key)), None)


def status(deployments: Iterable[Deployment]) -> dict[str, Any]:
    """What /status says."""
    return {"deployments": dict(d.entry() for d in deployments)}
