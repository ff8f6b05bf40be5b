"""Names of this process in a lease: one that no other process ever has, and one that shows that a predecessor has ended."""

import os
import socket
import uuid
from pathlib import Path
from typing import IO, Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def new_owner(prefix: str = "") -> str:
    """Return an owner of leases that is new at every call: host, process id, and a random part.

    The random part is kept nowhere, so that a copied data folder does not make one owner of two processes.

    Args:
        prefix: a word for the operator who reads the lease, such as the command.
    """
    return f"{prefix}{uuid.uuid4().hex[:12]}@{socket.gethostname()}:{os.getpid()}"


def locked_folder(lock: IO[Any]) -> str | None:
    """Return the identity of a folder by the file in it on which this process holds a lock; None where it cannot be told.

    Two processes with the same identity used the same file under the same kernel. The kernel gives up a lock only when its
    process has ended or closed it, so the earlier process no longer writes. A copy of the folder is another file, and after a
    boot, or on another host, the identity differs although the file may be the same.

    Args:
        lock: an open file that is locked exclusively.
    """
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return None
    status = os.fstat(lock.fileno())
    return f"{boot}:{status.st_dev}:{status.st_ino}"
