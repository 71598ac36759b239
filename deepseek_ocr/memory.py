"""How a process that computes on a CPU treats memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's <malloc.h>."""


def keep_memory() -> None:
    """Have memory that is freed stay with the process.

    glibc gives large tensors back to the system and takes the next ones anew, page by page. In virtual machines, where
    a page fault is slow, that was up to three quarters of the time in training and a tenth in an engine. Without glibc
    it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
