"""The end of a process that a test has started."""

import subprocess
from typing import Any


def end(process: subprocess.Popen[Any], within: float) -> None:
    """Send SIGTERM, and SIGKILL after `within` seconds; return when it has ended. One that has ended already is left alone."""
    process.terminate()
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
