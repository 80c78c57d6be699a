"""How the C library treats memory that is freed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys

# Of malloc.h: from how many free bytes on memory goes back to the system, never at -1; and how many
# pieces may be borrowed from it one by one.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
                "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for what is allocated next; return whether it does.

    By itself it borrows each large tensor from the system and gives it back, which clears all of it
    again for the next step: on two cores a sixth of a training. Nothing is changed where the user
    has set it, or where the C library is another.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SET_BY_USER):
        return False
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        # musl has neither.
        library.gnu_get_libc_version  # noqa: B018
        return bool(library.mallopt(_MMAP_MAX, 0)
                    and library.mallopt(_TRIM_THRESHOLD, -1))
    return False


def give_back_memory() -> None:
    """Return what is kept and free to the system."""
    if keep_freed_memory.cache_info().currsize and keep_freed_memory():
        ctypes.CDLL(None).malloc_trim(0)
