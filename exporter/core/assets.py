"""The files for other programs that the package brings: Prometheus's configuration and rules, dashboards, systemd units.

In a checkout `exporter/assets` holds links into the repository's folders, so that each file exists once; a wheel holds the
files.
"""

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

EXPORTER, ALERTMANAGER = "exporter:9877", "alertmanager:9093"
"""Addresses in prometheus.yml: the services of docker-compose.yml."""


def folder() -> Traversable:
    """Return the folder of the files."""
    return resources.files("exporter") / "assets"


def files() -> dict[str, Traversable]:
    """Return every file by its path below the folder, in the order of the paths."""
    return dict(sorted(_below(folder(), "")))


def _below(parent: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in parent.iterdir():
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry
