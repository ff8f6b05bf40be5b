"""What the manager writes beside the status, in every generation of its documents: flat, raw system information, nested."""

from typing import Any

import pytest
from bson import Int64

from exporter.core.model import WorkerFacts
from exporter.core.workers_settings import ExtraMetric, WorkersSettings
from exporter.sources.worker_documents import parse

NOON = 1_769_860_800
GIB = 2**30
COMMON = {
    "id": "w1",
    "aws_region": "eu-west-1",
    "status": "running",
    "service_status": "available",
    "ec2_instance_state_detail": "ok",
    "ec2_system_status_check": "impaired",
    "cloudwatch_detailed_monitoring_enabled": True,
    "auto_pause_count": 4,
    "target_pause_at": "2026-01-31T12:00:00Z",
}
STATS_IN_KB = {
    "cpu": {"user_percent": 10.0, "system_percent": 2.5},
    "memory": {"total_kb": 64 * 2**20, "available_kb": 2**20},
    "disk": {"size_kb": 300 * 2**20, "capacity_kb": 400 * 2**20},
    "dominfo": {"running_nodes": 7, "total_nodes": 12},
}
STATS_IN_BYTES = {
    "cpu": {"percent": 12.5},
    "memory": {"total": 64 * GIB, "free": GIB},
    "disk": {"total": 400 * GIB, "used": 300 * GIB},
    "dominfo": {"running_vms": 7, "total_vms": 12},
}
FLAT = COMMON | {
    "cml_ready": True,
    "cml_uptime_seconds": 86_400,
    "license_status": "registered",
    "cml_system_info": {"compute-1": {"stats": STATS_IN_KB}},
    "cml_system_health": {"valid": True, "is_licensed": True},
}
RAW = COMMON | {
    "metrics": {
        "ready": True,
        "uptime_seconds": Int64(86_400),
        "system_info": {"compute-1": {"hostname": "cml", "stats": STATS_IN_BYTES}},
        "system_health": {"is_licensed": True},
    },
    "license": {"status": {"value": "REGISTERED"}},
}
NESTED = COMMON | {
    "metrics": {
        "ready": True,
        "uptime_seconds": 86_400,
        "system_info": {
            "memory_total": 64 * GIB,
            "disk_total": 400 * GIB,
            "disk_used": 300 * GIB,
            "total_nodes": 12,
            "running_nodes": 7,
            "computes": {"compute-1": {"stats": {"disk": {"total": 1, "used": 1}}}},
        },
        "system_health": {"is_licensed": True},
    },
    "license": {"status": "REGISTERED"},
}
SUMMED = NESTED | {
    "metrics": NESTED["metrics"]  # type: ignore[operator]
    | {
        "system_info": {
            "disk_used": None,
            "computes": {
                "a": {
                    "stats": {"disk": {"total": 100 * GIB, "used": 50 * GIB}, "dominfo": {"running_nodes": 3, "total_nodes": 5}}
                },
                "b": {
                    "stats": {
                        "memory": {"total": 64 * GIB},
                        "disk": {"total": 300 * GIB, "used": 250 * GIB},
                        "dominfo": {"running_nodes": 4, "total_nodes": 7},
                    }
                },
                "c": {"stats": None},
            },
        }
    }
}
AS_READ = WorkerFacts(
    ready=True,
    uptime=86_400,
    nodes_running=7,
    nodes_total=12,
    disk_used=300 * GIB,
    disk_total=400 * GIB,
    memory_total=64 * GIB,
    licensed=True,
    auto_pauses=4,
    idle_pause_at=NOON,
    detailed_monitoring=True,
    instance_check="ok",
    system_check="impaired",
    service_status="available",
    license_status="registered",
)


def read(fields: dict[str, Any], settings: WorkersSettings | None = None) -> tuple[WorkerFacts, tuple[str, ...]]:
    fleet = parse([{"id": "w1", "aws_region": "eu-west-1"} | fields], NOON, settings or WorkersSettings())
    return fleet.workers[0].facts, fleet.complaints


@pytest.mark.parametrize("document", [FLAT, RAW, NESTED, SUMMED], ids=["flat", "raw", "nested", "summed"])
@pytest.mark.parametrize("under_state", [False, True], ids=["top level", "under state"])
def test_every_generation_says_the_same(document: dict[str, Any], under_state: bool) -> None:
    assert read({"state": document} if under_state else document) == (AS_READ, ())


def test_a_document_without_them_has_none() -> None:
    facts, complaints = read({"metrics": None, "license": [], "cml_system_info": {}, "service_status": ""})
    assert (facts, facts.disk_utilization, complaints) == (WorkerFacts(), None, ())


def test_a_document_that_changes_its_generation_between_two_reads_keeps_its_values() -> None:
    assert read(FLAT)[0] == read(NESTED)[0] == read({"state": RAW})[0]


@pytest.mark.parametrize(
    ("used", "total", "share"),
    [(300, 400, 0.75), (0, 400, 0.0), (300, 0, None), (None, 400, None), (300, None, None)],
)
def test_the_utilization_of_the_disk_needs_both(used: object, total: object, share: float | None) -> None:
    facts, _ = read({"metrics": {"system_info": {"disk_used": used, "disk_total": total}}})
    assert facts.disk_utilization == share


@pytest.mark.parametrize("text", ["Out of order", "日本", "x" * 3000, "ok;drop"])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("ec2_instance_state_detail", "instance_check"),
        ("ec2_system_status_check", "system_check"),
        ("service_status", "service_status"),
        ("license_status", "license_status"),
    ],
)
def test_an_unknown_text_reads_unknown(name: str, field: str, text: str) -> None:
    facts, complaints = read({name: text})
    assert (getattr(facts, field), complaints) == ("unknown", ())


@pytest.mark.parametrize("text", ["insufficient-data", "INSUFFICIENT_DATA", " Insufficient Data "])
def test_a_state_is_read_however_its_words_are_joined(text: str) -> None:
    assert read({"ec2_instance_state_detail": text})[0].instance_check == "insufficient-data"


NUMBER, WHOLE, FLAG = "a number of at least 0", "a whole number of at least 0", "true or false"


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({"cml_ready": "perhaps"}, "cml_ready", FLAG),
        ({"cml_ready": 2}, "cml_ready", FLAG),
        ({"cml_ready": [True]}, "cml_ready", FLAG),
        ({"cml_uptime_seconds": -1}, "cml_uptime_seconds", NUMBER),
        ({"cml_uptime_seconds": float("nan")}, "cml_uptime_seconds", NUMBER),
        ({"cml_uptime_seconds": 1e300}, "cml_uptime_seconds", NUMBER),
        ({"cml_uptime_seconds": True}, "cml_uptime_seconds", NUMBER),
        ({"auto_pause_count": 1.5}, "auto_pause_count", WHOLE),
        ({"auto_pause_count": 2**31}, "auto_pause_count", WHOLE),
        ({"target_pause_at": "soon"}, "target_pause_at", "a date, such as 2026-01-31T12:00:00Z"),
        ({"service_status": 3}, "service_status", "a text such as available"),
        ({"license": {"status": True}}, "license.status", "a text such as registered"),
        ({"metrics": {"system_info": {"running_nodes": "many"}}}, "metrics.system_info.running_nodes", WHOLE),
        (
            {"metrics": {"system_info": {"computes": {"a": {"stats": {"disk": {"used": -5}}}}}}},
            "metrics.system_info.computes.a.stats.disk.used",
            NUMBER,
        ),
        (
            {"cml_system_info": {"a": {"stats": {"dominfo": {"total_nodes": {}}}}}},
            "cml_system_info.a.stats.dominfo.total_nodes",
            WHOLE,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_value_costs_only_itself_and_is_named(fields: dict[str, Any], name: str, expected: str) -> None:
    facts, complaints = read({"cloudwatch_detailed_monitoring_enabled": False} | fields)
    assert facts == WorkerFacts(detailed_monitoring=False)
    (sentence,) = complaints
    assert sentence.startswith(f"worker 'w1': {name} is ")
    assert f", not {expected}; it is left out until the manager corrects it" in sentence


def test_a_compute_node_with_a_malformed_figure_is_left_out_of_the_sum_only() -> None:
    computes = {"a": {"stats": {"disk": {"used": "?"}}}, "b": {"stats": {"disk": {"used": 7, "total": 9}}}}
    facts, complaints = read({"metrics": {"system_info": {"computes": computes}}})
    assert (facts.disk_used, facts.disk_total, len(complaints)) == (7, 9, 1)


def test_further_names_come_first() -> None:
    settings = WorkersSettings(fields={"ready": ["up"], "disk_used": ["disk.used"], "service_status": ["https"]})
    facts, _ = read(FLAT | {"up": 0, "disk": {"used": 5}, "https": "Error"}, settings)
    assert (facts.ready, facts.disk_used, facts.service_status) == (False, 5, "error")


EXTRA = WorkersSettings(
    extra=[
        ExtraMetric(metric="cml_worker_boots_total", field="boots", help="Boots.", type="counter"),
        ExtraMetric(metric="cml_worker_boot_timestamp_seconds", field="booted", help="Boot.", type="timestamp"),
        ExtraMetric(metric="cml_worker_phase", field="phase", help="Phase.", states=["Ready To Go", "busy"]),
    ]
)


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({"boots": 5}, (("cml_worker_boots_total", 5.0),)),
        ({"booted": "2026-01-31T12:00:00Z"}, (("cml_worker_boot_timestamp_seconds", NOON),)),
        ({"phase": "READY_TO_GO"}, (("cml_worker_phase", "ready-to-go"),)),
        ({"phase": {"value": "busy"}}, (("cml_worker_phase", "busy"),)),
        ({"phase": "asleep"}, (("cml_worker_phase", "unknown"),)),
        ({"phase": None}, ()),
    ],
)
def test_fields_of_the_user_have_a_type_or_states(fields: dict[str, Any], extra: tuple[tuple[str, object], ...]) -> None:
    fleet = parse([{"id": "w1", "aws_region": "eu-west-1"} | fields], NOON, EXTRA)
    assert (fleet.workers[0].extra, fleet.complaints) == (extra, ())
