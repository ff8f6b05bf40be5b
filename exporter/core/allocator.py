"""Settings of the C library's allocator that suit a process whose work is done in bursts, once per period."""

import ctypes
import os
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""mallopt(3)."""
MAX_ARENAS = 2
"""By default each thread gets an arena of its own, up to eight per core, and keeps what its largest answer took."""
LARGE_BYTES = 256 * 1024
"""From this size on an allocation is a mapping of its own, which is returned when it is freed. By default the limit grows with
each one that is freed, up to 32 MiB."""


def return_memory_early() -> None:
    """Let the process keep less of the memory that a collection cycle took; call it before threads are started.

    Does nothing where the C library is another than glibc, or the environment sets any of its MALLOC_ variables.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in (
            (_M_ARENA_MAX, MAX_ARENAS),
            (_M_MMAP_THRESHOLD, LARGE_BYTES),
            (_M_TRIM_THRESHOLD, LARGE_BYTES),
        ):
            mallopt(parameter, value)
