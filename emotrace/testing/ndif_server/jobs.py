"""Jobs: a request, from its arrival to its result."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

LOST = "LOST"


@dataclass
class ServedJob:
    """One request, from its arrival to its result."""

    id: str
    model_key: str
    blocking: bool
    bytes_in: int
    state: str = Status.RECEIVED.value
    states: list[str] = field(default_factory=list)
    runs: int = 0
    served: int = 0
    polls: int = 0
    bytes_out: int = 0
    payload: int = 0
    error: str = ""


@dataclass
class KeptResult:
    """What the server keeps of a job beside its entry in the log."""

    job: ServedJob
    request: RequestModel
    blob: bytes
    stored: ResponseModel | None = None
    result: bytes = b""
    expires: float = float("inf")
