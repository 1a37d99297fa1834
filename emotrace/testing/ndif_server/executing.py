"""Executing: a block, by nnsight's own server-side calls, wherever it runs."""

from __future__ import annotations

import io
from typing import Any

import torch
from nnsight.schema.request import RequestModel

from emotrace.testing.ndif_server import inner
from emotrace.testing.ndif_server.jobs import Refusal


def unpacked(blob: bytes, objects: dict[str, Any], compress: bool) -> Any:
    """The tracer of a request.

    Args:
        blob: as it was sent.
        objects: what stands for the model, its modules, its tokenizer.
        compress: whether it is compressed.

    Raises:
        Refusal: for what is no request.
    """
    inner.forget_blocks()
    try:
        return RequestModel.deserialize(blob, objects, compress)
    except Exception as error:
        raise Refusal(f"Your request payload could not be read ({type(error).__name__}: {error})") from error


def executed(tracer: Any) -> bytes:
    """Runs a block; the saved values as torch writes them."""

    def run() -> Any:
        tracer.execute(tracer.info.code)
        return tracer.info.frame.f_locals

    saved = inner.saved(run)
    with io.BytesIO() as file:
        torch.save(saved, file)
        return file.getvalue()
