"""Which exporter this is."""

import platform

from exporter import __version__
from exporter.core.revision import revision


def facts() -> dict[str, str]:
    """Return version, revision and Python's version, for a log line."""
    return {"version": __version__, "revision": revision() or "unknown", "python": platform.python_version()}


def line() -> str:
    """Return the same for a person, after the name of the program."""
    found = facts()
    return f"cml-worker-exporter {found['version']} (revision {found['revision']}, Python {found['python']})"
