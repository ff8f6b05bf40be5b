"""The commit that the exporter was built from."""

import os
import re
from contextlib import suppress
from importlib import resources
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
"""The folder around the package: the repository's, if it runs from a checkout."""


def revision() -> str:
    """Return the variable REVISION, else what was written into the package at its build, else a checkout's commit; or ""."""
    if given := os.environ.get("REVISION", ""):
        return given
    file = resources.files("exporter") / "revision.txt"
    return file.read_text().strip() if file.is_file() else checked_out(_CHECKOUT)


def checked_out(folder: Path) -> str:
    """Return the commit that a checkout is at, with or without changes since; an empty text where there is none.

    Its files are read instead of running git, which takes longer and may not be there; `deploy/revision` does so for the image.
    """
    git = folder / ".git"
    with suppress(OSError):
        if git.is_file():  # one of several worktrees
            git = folder / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        branch = head.removeprefix("ref: ")
        with suppress(FileNotFoundError):
            git /= (git / "commondir").read_text().strip()
        with suppress(FileNotFoundError):
            return (git / branch).read_text().strip()
        packed = re.search(rf"^(\w+) {re.escape(branch)}$", (git / "packed-refs").read_text(), re.MULTILINE)
        return packed[1] if packed else ""
    return ""
