"""Jobs: a request, from its arrival to its result."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

if TYPE_CHECKING:
    from nnsight import TransformersModel

LOST = "LOST"


class Refusal(Exception):
    """What a server will not do: told as a sentence, without a traceback."""


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
    crossed: int = 0
    called: int = 0
    error: str = ""


@dataclass
class KeptResult:
    """What the server keeps of a job beside its entry in the log.

    Attributes:
        signature: that the address of its result holds: there is no other key to it.
        expires: when that address ends.
        model: what runs it, once there is one.
    """

    job: ServedJob
    request: RequestModel
    blob: bytes
    trusted: bool
    stored: ResponseModel | None = None
    result: bytes = b""
    expires: float = float("inf")
    signature: str = field(default_factory=lambda: secrets.token_hex(32))
    model: TransformersModel | None = None
