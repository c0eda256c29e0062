"""How a process that trains on the CPU gets its memory."""

from __future__ import annotations

import ctypes
import platform

# Names in malloc.h of glibc, and in the kernel's mman.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MADV_HUGEPAGE = 14

_NEVER = -1
_TOP_PAD = 1 << 28
_LARGE_PAGE = 1 << 21
_LARGE_PAGE_REGION = 1 << 32
"""Address space, not memory: what a step of a detector needs is usually less."""


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, instead of returning it to the system and asking anew in every step.

    A training step frees and allocates the same large maps over and over. glibc maps each of more than 32 MB for itself
    and unmaps it when it is freed, so that the system clears its pages again in each step; with wide maps (depthwise
    networks, large batches) that is a third of the step. Call it before anything large is allocated; the process then
    holds its peak for good, some 10 to 20 % above what it would peak at otherwise. Memory comes in large pages where
    the system gives them to those who ask. No result changes.

    Returns:
        Whether it is in force; only glibc can be told.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD))
    if [libc.mallopt(name, value) for name, value in settings] != [1] * len(settings):
        return False
    _ask_for_large_pages(libc)
    return True


def _ask_for_large_pages(libc: ctypes.CDLL) -> None:
    """Mark address space that the allocator will use from now on; nothing happens where that is refused."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    region = libc.malloc(_LARGE_PAGE_REGION)
    if region is None:
        return
    start = -(-region // _LARGE_PAGE) * _LARGE_PAGE
    libc.madvise(start, _LARGE_PAGE_REGION - _LARGE_PAGE, _MADV_HUGEPAGE)
    libc.free(region)
