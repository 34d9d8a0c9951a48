"""How the process treats memory that tensors have freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER, _STEP = 2**31 - 1, 64 * 2**20


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next update instead of returning them to the system.

    By default it maps every block above 32 MiB anew, and an update then spends up to a third of
    its time on page faults of its tapes. The setting holds for the whole process; elsewhere than
    on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
        mallopt(_TOP_PAD, _STEP)
