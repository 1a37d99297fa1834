"""Memory: room for activations that are kept, readied by the operating system while the first forwards run."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading

import numpy as np
import torch

POPULATE_WRITE = 23
"""``MADV_POPULATE_WRITE`` of Linux 5.14: give the pages of a range, leaving what they hold as it is."""
STRIDE = 32 << 20
"""Bytes readied by one call."""
WORTH = 64 << 20
"""From so many bytes on."""


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of arbitrary contents, cleared pages of which are fetched by a background thread.

    The operating system clears every page that is written for the first time; for a capture that keeps all it reads this
    takes longer than the copying. Not ``np.empty``, which asks for huge pages: finding them in fragmented memory takes
    longer still.
    """
    array = torch.empty(shape, dtype=getattr(torch, dtype.name)).numpy()
    if sys.platform == "linux" and array.nbytes >= WORTH:
        threading.Thread(target=_ready, args=(array,), name="emotrace-memory", daemon=True).start()
    return array


def _ready(array: np.ndarray) -> None:
    """Fetch the pages of an array in order of address; a system that cannot is left to fetch them one by one."""
    advise = ctypes.CDLL(None).madvise  # lets other threads run meanwhile
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    at = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    while at < end and advise(at, min(STRIDE, end - at), POPULATE_WRITE) == 0:
        at += STRIDE
