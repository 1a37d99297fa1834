"""Memory: whether a model fits where it is to be loaded, asked before its weights are read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import torch
from transformers.initialization import no_init_weights

from emotrace.labels import EmotraceError

ROOM: Final = 256 * 2**20
"""Bytes for a forward of a small batch and what Python needs, beside the weights."""
_LIMITS: Final = (  # of a container: the limit, what is used, and the files among it that may go
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
_CONTAINER: Final = Path("/sys/fs/cgroup")


class Size(NamedTuple):
    """How large a model is."""

    numel: int
    """Numbers: parameters, and buffers that checkpoints hold; tied ones once."""
    largest: int
    """Numbers of the largest matrix."""

    def needed(self, dtype: torch.dtype, unpacked: bool = False) -> int:
        """Bytes while it is loaded: weights, the matrix that is being converted, and `ROOM`.

        Args:
            dtype: of the weights.
            unpacked: whether they are de-quantised on the way, which holds the largest matrix in float32 as well, twice.
        """
        return self.numel * dtype.itemsize + self.largest * (8 if unpacked else dtype.itemsize) + ROOM


def size(auto: Any, config: Any, trust: bool) -> Size:
    """Of the model of a configuration, which is built without weights."""
    with torch.device("meta"), no_init_weights():
        module = auto.from_config(copy.deepcopy(config), trust_remote_code=trust)
        module.tie_weights()
    tensors = [*module.parameters()]
    for part in module.modules():
        tensors += [
            b for name, b in part._buffers.items() if b is not None and name not in part._non_persistent_buffers_set
        ]
    return Size(sum(t.numel() for t in tensors), max((t.numel() for t in tensors), default=0))


def available(where: torch.device) -> int:
    """Bytes that can be had there: of a CUDA device what is free, of the machine what it and its container leave."""
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0])
    left = int(psutil.virtual_memory().available)
    for limit, used, files in _LIMITS:
        try:
            most = (_CONTAINER / limit).read_text().strip()
            now = int((_CONTAINER / used).read_text())
            about = (_CONTAINER / used).with_name("memory.stat").read_text().split()
        except (OSError, ValueError):  # no container, or one of the other kind
            continue
        if most.isdigit() and files in about:
            left = min(left, int(most) - now + int(about[about.index(files) + 1]))
    return max(left, 0)


def held(where: torch.device) -> int:
    """Bytes that are in use there: of a CUDA device by torch, of the machine by this process."""
    if where.type == "cuda":
        return int(torch.cuda.memory_allocated(where))
    return int(psutil.Process().memory_info().rss)


def check(name: str, size: Size, dtype: torch.dtype, where: torch.device, unpacked: bool = False) -> None:
    """Refuse a model that does not fit.

    Raises:
        EmotraceError: with what it needs, what there is, and what would fit.
    """
    there = available(where)
    needed = size.needed(dtype, unpacked)
    if needed <= there:
        return
    half = [d for d in (torch.bfloat16,) if d.itemsize < dtype.itemsize]
    fitting = [
        f"dtype={_name(d)!r} ({_gib(size.needed(d, unpacked))})" for d in half if size.needed(d, unpacked) <= there
    ]
    here = torch.device("cpu")
    if where.type != "cpu" and size.needed(dtype, unpacked) <= available(here):
        fitting.append("device='cpu'")
    smallest = min(dtype.itemsize, torch.bfloat16.itemsize)
    count = max(there - ROOM, 0) / smallest
    smaller = f"a model of at most {count / 1e9:.1f} billion parameters in {smallest * 8} bits"
    raise EmotraceError(
        f"model {name!r} ({size.numel / 1e9:.2f} billion parameters) needs {_gib(needed)} in {_name(dtype)}, and {where} has "
        f"{_gib(there)} left. What would fit: {' or '.join(fitting or [smaller])}."
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
