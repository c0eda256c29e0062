"""How a process that trains on the CPU gets its memory."""

from __future__ import annotations

import ctypes
import platform

# Names in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

_TOP_PAD = 1 << 28
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, instead of returning it to the system and asking anew in every step.

    A training step frees and allocates the same large maps over and over. glibc maps each of more than 32 MB for itself
    and unmaps it when it is freed, so that the system clears its pages again in each step; with wide maps (depthwise
    networks, large batches) that is a third of the step. Call it before training on the CPU; the process then holds
    its peak for good, some 10 to 20 % above what it would peak at otherwise. No result changes.

    Returns:
        Whether it is in force; only glibc can be told.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_TOP_PAD, _TOP_PAD))
    return [mallopt(name, value) for name, value in settings] == [1] * len(settings)
