"""The least MongoDB privileges of the exporter and of `purge`."""

from collections.abc import Mapping
from types import MappingProxyType

from exporter.storage.inventory import INVENTORY
from exporter.storage.mongo import STATE, Document

LEAST_PRIVILEGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "workers": ("find",),
        "worker_metrics_timeseries": (
            "find",
            "insert",
            "createCollection",
            "createIndex",
            "collMod",
            "listIndexes",
            "collStats",
        ),
        INVENTORY: ("find", "insert", "update"),
        STATE: ("find", "insert", "update"),
        "": ("listCollections",),
    }
)
"""The actions the exporter's MongoDB role needs on each collection; "" is the database itself. See `least_role`."""

PURGE_PRIVILEGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"worker_metrics_timeseries": ("remove",), INVENTORY: ("remove",)}
)
"""The actions `purge` needs beyond LEAST_PRIVILEGES. The exporter itself deletes nothing, so its role has none of them."""


def least_role(database: str, *, workers: str = "workers", history: str = "worker_metrics_timeseries") -> list[Document]:
    """Return LEAST_PRIVILEGES for these names, as the `privileges` of MongoDB's createRole."""
    names = {"workers": workers, "worker_metrics_timeseries": history}
    return [
        {"resource": {"db": database, "collection": names.get(collection, collection)}, "actions": list(actions)}
        for collection, actions in LEAST_PRIVILEGES.items()
    ]
