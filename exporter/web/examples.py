"""Examples of responses for the OpenAPI document; a test validates them against the models."""

from collections.abc import Mapping

from pydantic import BaseModel

from exporter.web.schemas import (
    FleetHistoryPage,
    FleetPage,
    FleetWorker,
    HistoryResponse,
    OpenApiDocument,
    Problem,
    Readiness,
    ResourceUsage,
    TargetGroups,
)

_WORKER = {
    "worker_id": "w-alpha",
    "region": "eu-west-1",
    "status": "running",
    "name": "alpha",
    "instance_id": "i-0123456789abcdef0",
    "private_ip": "10.0.0.7",
    "instance_type": "m5zn.metal",
    "cml_version": "2.8.1",
    "cpu_utilization": 45.2,
    "cpu_time": "2026-01-31T12:05:00Z",
    "memory_utilization": 61.0,
    "memory_time": "2026-01-31T12:05:00Z",
    "active_labs_count": 3,
    "last_activity_at": "2026-01-31T11:58:02Z",
    "created_at": "2026-01-05T08:00:00Z",
    "terminated_at": None,
    "observed_at": "2026-01-31T12:10:12Z",
    "nodes_running": 12,
    "nodes_total": 20,
    "ready": True,
    "uptime_seconds": 86400.0,
    "disk_used_bytes": 52000000000.0,
    "disk_total_bytes": 200000000000.0,
    "memory_total_bytes": 384000000000.0,
    "licensed": True,
    "license_status": "registered",
    "service_status": "available",
    "ec2_instance_check": "ok",
    "ec2_system_check": "ok",
    "detailed_monitoring": False,
    "auto_pauses": 2,
    "idle_pause_at": None,
    "extra": {},
    "first_seen": "2026-01-05T08:05:12Z",
    "last_seen": "2026-01-31T12:10:12Z",
    "instances": [
        {
            "instance_id": "i-0123456789abcdef0",
            "region": "eu-west-1",
            "first_seen": "2026-01-05T08:05:12Z",
            "last_seen": "2026-01-31T12:10:12Z",
        }
    ],
}
_OF_HISTORY = ("worker_id", "name", "region", "status", "instance_type", "cml_version", "created_at", "terminated_at")
_HISTORY = {
    "data": [
        {
            "timestamp": "2026-01-31T12:00:00Z",
            "cpu_utilization": 45.2,
            "memory_utilization": None,
            "active_labs_count": 3,
            "status": "running",
        }
    ],
    "source": "mongodb",
    "resolution_seconds": 300,
    "interval_seconds": None,
    "segments": [
        {
            "start": "2026-01-31T12:00:00Z",
            "source": "mongodb",
            "resolution_seconds": 300,
            "interval_seconds": None,
            "rows": 1,
        }
    ],
    "worker": {name: _WORKER[name] for name in (*_OF_HISTORY, "first_seen", "last_seen", "instances")},
}
JSON_EXAMPLES: Mapping[type[BaseModel], object] = {
    FleetPage: {"data": [_WORKER], "next": None, "source": "mongodb", "resolution_seconds": 300},
    FleetWorker: _WORKER,
    HistoryResponse: {**_HISTORY, "next": None},
    FleetHistoryPage: {"data": [_HISTORY], "next": None},
    ResourceUsage: {
        "id": "i-0123456789abcdef0",
        "region_name": "eu-west-1",
        "relative_start_time": "10m",
        "avg_cpu_utilization": "45.2",
        "avg_memory_utilization": "61.0",
        "start_time": "2026-01-31T12:00:00Z",
        "end_time": "2026-01-31T12:10:00Z",
    },
    Readiness: {"ready": True, "status": "ok", "sources": {"mongodb": {"ok": True, "error": None, "note": None}}},
    TargetGroups: [{"targets": ["10.0.0.7:9100"], "labels": {"worker_id": "w-alpha", "region": "eu-west-1"}}],
    OpenApiDocument: {"openapi": "3.1.0"},
    Problem: {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "limit must be a whole number from 1 to 10000.",
    },
}
"""Model of a JSON body → an example."""
METRICS_EXAMPLE = 'cml_worker_cpu_utilization_ratio{worker_id="w-alpha",region="eu-west-1"} 0.452\n'
HEALTHY_EXAMPLE = "CML worker exporter is healthy.\n"
RELOADED_EXAMPLE = "Reloaded; changed settings: none.\n"
WORKERS_CSV_EXAMPLE = "worker_id,status,cpu_utilization\r\nw-alpha,running,45.2\r\n"
_SAMPLE = "timestamp,cpu_utilization,memory_utilization,active_labs_count,status\r\n"
HISTORY_CSV_EXAMPLE = f"{_SAMPLE}2026-01-31T12:00:00Z,45.2,,3,running\r\n"
FLEET_HISTORY_CSV_EXAMPLE = f"worker_id,name,{_SAMPLE}w-alpha,alpha,2026-01-31T12:00:00Z,45.2,,3,running\r\n"
PAGE_EXAMPLE = '<!doctype html>\n<html lang="en">…</html>\n'
SVG_EXAMPLE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 280">…</svg>\n'
CSS_EXAMPLE = "body { font-family: system-ui; }\n"
SCRIPT_EXAMPLE = '"use strict";\n'
