"""Create and verify the time-series collection; its retention, period and schema."""

from exporter.storage.mongo import Document

_TIMESERIES = {"timeField": "timestamp", "metaField": "worker_id", "granularity": "minutes"}
_MIN_WIRE_VERSION = 13  # MongoDB 5.0, the first with time-series collections
_SCHEMA = 1
_NAMESPACE_EXISTS, _INDEX_EXISTS = 48, 85


def _check_granularity(namespace: str, options: Document) -> str | None:
    """Another granularity costs space, not truth: worth a notice, not a refusal."""
    found = options["timeseries"].get("granularity")
    if found == "minutes":
        return None
    return f"{namespace} has granularity {found}; samples pack best with minutes"
