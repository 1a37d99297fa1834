"""Executing: a block, by nnsight's own server-side calls, wherever it runs."""

from __future__ import annotations

import io
from typing import Any

import nnsight.tracing.globals
import torch
from nnsight.schema.request import RequestModel
from nnsight.tracing.tracer import _saves, dec, inc

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
    nnsight.tracing.globals.SOURCES.clear()  # line numbers of another job's file would be read for this one's
    nnsight.tracing.globals.BLOCKS.clear()
    try:
        return RequestModel.deserialize(blob, objects, compress)
    except Exception as error:
        raise Refusal(f"Your request payload could not be read ({type(error).__name__}: {error})") from error


def executed(tracer: Any) -> bytes:
    """Runs a block; the saved values as torch writes them."""
    inc()
    try:
        tracer.execute(tracer.info.code)
        saved = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
    finally:
        dec()
    with io.BytesIO() as file:
        torch.save(saved, file)
        return file.getvalue()
