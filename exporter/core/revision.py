"""The commit that the exporter was built from."""

import os
from importlib import resources


def revision() -> str:
    """Return the variable REVISION, else what deploy/Dockerfile has written into the package, else an empty text."""
    if given := os.environ.get("REVISION", ""):
        return given
    file = resources.files("exporter") / "revision.txt"
    return file.read_text().strip() if file.is_file() else ""
