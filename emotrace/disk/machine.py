"""Machine: which one this is, and which of its processes live."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """This machine since it was started, and which of its processes are seen from here, as 12 hexadecimal digits."""
    known = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            known.append(os.readlink(path) if "/ns/" in path else Path(path).read_text().strip())
        except OSError:  # not Linux
            known.append("")
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:12]


def began(pid: int) -> float | None:
    """When a process of this machine began, which tells it from a later one of its number; None where it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None
