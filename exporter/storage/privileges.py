"""The least MongoDB privileges of the exporter, of `purge`, of `verify --repair` and of `import-events`."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from exporter.core.settings import WORKER_COLLECTIONS
from exporter.storage.inventory import INVENTORY
from exporter.storage.mongo import STATE, Document

LEAST_PRIVILEGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(WORKER_COLLECTIONS, ("find",)),
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

REPAIR_PRIVILEGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"worker_metrics_timeseries": ("remove",), "worker_metrics_timeseries_repair": ("find", "insert", "dropCollection")}
)
"""The actions `verify --repair` needs beyond LEAST_PRIVILEGES."""

IMPORT_PRIVILEGES: Mapping[str, tuple[str, ...]] = MappingProxyType({"domain_events": ("find",)})
"""The actions `import-events` needs beyond LEAST_PRIVILEGES, on the collection of the setting `events.collection`."""


def least_role(
    database: str, *, workers: Sequence[str] = WORKER_COLLECTIONS, history: str = "worker_metrics_timeseries"
) -> list[Document]:
    """Return LEAST_PRIVILEGES for these names, as the `privileges` of MongoDB's createRole."""
    actions = dict.fromkeys(workers, ("find",)) | {
        history if name == "worker_metrics_timeseries" else name: actions
        for name, actions in LEAST_PRIVILEGES.items()
        if name not in WORKER_COLLECTIONS
    }
    return [{"resource": {"db": database, "collection": name}, "actions": list(each)} for name, each in actions.items()]
