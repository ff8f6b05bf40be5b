"""The C library's allocator: few arenas, however many threads allocate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys, threading
from exporter.core.allocator import return_memory_early
if sys.argv[1] == "early":
    return_memory_early()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(6)
def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def arenas(tmp_path: Path, when: str, **environment: str) -> int:
    """Return how many arenas six threads have made that allocate at once."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    path = tmp_path / "malloc_info.xml"
    subprocess.run([sys.executable, "-c", PROGRAM, when, str(path)], env={**known, **environment}, check=True)
    return path.read_text().count("<heap nr=")


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library than glibc")
def test_threads_share_two_arenas_unless_the_environment_decides(tmp_path: Path) -> None:
    assert arenas(tmp_path, "never") > 2
    assert arenas(tmp_path, "early") == 2
    assert arenas(tmp_path, "early", MALLOC_ARENA_MAX="3") == 3
