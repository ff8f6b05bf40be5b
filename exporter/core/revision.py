"""The commit that the exporter was built from."""

import os
from importlib import resources


def revision() -> str:
    """Return the variable REVISION, else what was written into the package when it was built, else an empty text."""
    if given := os.environ.get("REVISION", ""):
        return given
    file = resources.files("exporter") / "revision.txt"
    return file.read_text().strip() if file.is_file() else ""
