"""JSON schemas of the responses."""

from collections.abc import Mapping, Sequence

from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.model import STATUSES
from exporter.web.openapi import Schema

# -- what OpenAPI says of all this -------------------------------------------------------------------------------------


def _of(kind: str, *, null: bool = True, **more: object) -> Schema:
    return {"type": [kind, "null"] if null else kind, **more}


def _object(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    return {"type": "object", "required": [name for name in properties if name not in optional], "properties": properties}


def _list(items: Schema, more: Mapping[str, Schema] | None = None, optional: Sequence[str] = ()) -> Schema:
    properties: dict[str, Schema] = {
        "data": {"type": "array", "items": items},
        "next": _of("string", description="cursor of the next page, null on the last"),
        "source": _of("string", null=False, enum=["mongodb", "cloudwatch"]),
        "resolution_seconds": _of("integer", null=False, description="how long a sample is"),
    }
    return _object(properties | dict(more or {}), optional)


_MOMENT = _of("string", format="date-time")
_STATUS = _of("string", enum=[*STATUSES, None])
_PERCENT = _of("number", description="percent")
_INSTANCE = _object(
    {"instance_id": {"type": "string"}, "region": {"type": "string"}, "first_seen": _MOMENT, "last_seen": _MOMENT}
)
_REMEMBERED: Mapping[str, Schema] = {
    "first_seen": _MOMENT,
    "last_seen": _MOMENT,
    "instances": {"type": "array", "items": _INSTANCE},
}
_WORKER: Mapping[str, Schema] = {
    "worker_id": {"type": "string"},
    "region": {"type": "string"},
    "status": _STATUS,
    "name": _of("string"),
    "instance_type": _of("string"),
    "cml_version": _of("string"),
    "created_at": _MOMENT,
    "terminated_at": _MOMENT,
    **_REMEMBERED,
}
WORKERS_SCHEMA = _list(
    _object(
        {
            **_WORKER,
            "instance_id": _of("string"),
            "private_ip": _of("string"),
            "cpu_utilization": _PERCENT,
            "cpu_time": _MOMENT,
            "memory_utilization": _PERCENT,
            "memory_time": _MOMENT,
            "active_labs_count": _of("integer"),
            "last_activity_at": _MOMENT,
            "observed_at": _MOMENT,
            "extra": {"type": "object", "additionalProperties": {"type": "number"}},
        }
    )
)
_SAMPLE = _object(
    {
        "timestamp": _of("string", null=False, format="date-time", description="the period's start"),
        "cpu_utilization": _PERCENT,
        "memory_utilization": _PERCENT,
        "active_labs_count": _of("number"),
        "status": _of("string"),
    }
)
_FIGURES = _object(
    {"avg": _of("number"), "min": _of("number"), "max": _of("number"), "count": _of("integer", null=False, minimum=0)}
)
_INTERVAL_ROW = _object(
    {
        "timestamp": _of("string", null=False, format="date-time", description="the interval's start"),
        **dict.fromkeys(METRIC_FIELDS, _FIGURES),
        "status_share": {
            "type": "object",
            "description": "share of the samples that have a status, by status; empty where none has",
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
        },
    }
)
HISTORY_SCHEMA = _list(
    {
        "anyOf": [_SAMPLE, _INTERVAL_ROW],
        "description": "samples, or with `interval` one row for each interval that has samples",
    },
    {
        "interval_seconds": _of("integer", description="length of the intervals, null for samples"),
        "worker": _object(_WORKER),
        "note": _of("string", null=False, description="what there is to know of the page"),
    },
    ("note",),
)
RESOURCES_SCHEMA = _object(
    {
        "id": _of("string", description="the instance"),
        "region_name": {"type": "string"},
        "relative_start_time": {"type": "string"},
        "avg_cpu_utilization": _of("string", description="percent, such as 45.2"),
        "avg_memory_utilization": _of("string", description="percent"),
        "start_time": _MOMENT,
        "end_time": _MOMENT,
    }
)
READY_SCHEMA = _object(
    {
        "ready": {"type": "boolean"},
        "sources": {
            "type": "object",
            "additionalProperties": _object({"ok": {"type": "boolean"}, "error": _of("string")}),
        },
    }
)
