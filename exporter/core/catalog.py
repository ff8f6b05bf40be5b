"""The catalog of exposed metrics: name, type, help, unit, labels and source of the value.

The worker block, the exporter metrics, docs/metrics.md, the dashboards and the rules read it; no other module names a metric.
The labels of a released series never change.
"""

from dataclasses import dataclass
from typing import Literal

from exporter.core.errors import MALFORMED_KINDS
from exporter.core.model import STATUS_CODES

Kind = Literal["gauge", "counter"]

WORKER_LABELS = ("worker_id", "region")
WORKER_DOCUMENT = "worker document"
"""Source: a field of the worker document (the manager's aggregate)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family. `name` is the name that Prometheus stores (counters end in _total)."""

    name: str
    kind: Kind
    help: str
    unit: str
    labels: tuple[str, ...]
    source: str


INFO = Metric(
    "cml_worker_info",
    "gauge",
    "Name, instance, version and AWS account of the worker as labels; `worker` is the name, else the id. Always 1.",
    "",
    (*WORKER_LABELS, "worker", "name", "instance_id", "instance_type", "cml_version", "account_id"),
    WORKER_DOCUMENT,
)
STATUS = Metric(
    "cml_worker_status",
    "gauge",
    "Whether the worker is in this status; exactly one of its series is 1.",
    "",
    (*WORKER_LABELS, "status"),
    WORKER_DOCUMENT,
)
STATUS_CODE = Metric(
    "cml_worker_status_code",
    "gauge",
    "Number of the worker's status: " + ", ".join(f"{code} {status}" for status, code in STATUS_CODES.items()) + ".",
    "",
    WORKER_LABELS,
    "worker document; in place of `cml_worker_status` if `metrics.status` is code",
)
StatusForm = Literal["state_set", "code"]
STATUS_FORMS: dict[StatusForm, Metric] = {"state_set": STATUS, "code": STATUS_CODE}
"""Value of `metrics.status` → the family that shows the status."""
CPU = Metric(
    "cml_worker_cpu_utilization_ratio",
    "gauge",
    "Average CPU utilization of the newest period, 0 to 1.",
    "ratio",
    WORKER_LABELS,
    "CloudWatch AWS/EC2 CPUUtilization, else the worker document",
)
MEMORY = Metric(
    "cml_worker_memory_utilization_ratio",
    "gauge",
    "Average memory utilization of the newest period, 0 to 1.",
    "ratio",
    WORKER_LABELS,
    "CloudWatch CWAgent mem_used_percent (cloudwatch.memory), else the worker document",
)
ACTIVE_LABS = Metric(
    "cml_worker_active_labs", "gauge", "Labs on the worker as counted by the manager.", "", WORKER_LABELS, WORKER_DOCUMENT
)
LAST_ACTIVITY = Metric(
    "cml_worker_last_activity_timestamp_seconds",
    "gauge",
    "Time of the last activity that the manager saw on the worker.",
    "seconds",
    WORKER_LABELS,
    WORKER_DOCUMENT,
)
CREATED = Metric(
    "cml_worker_created_timestamp_seconds",
    "gauge",
    "Time the worker was created.",
    "seconds",
    WORKER_LABELS,
    WORKER_DOCUMENT,
)


def _document(name: str, help_text: str, unit: str = "", labels: tuple[str, ...] = ()) -> Metric:
    return Metric(f"cml_worker_{name}", "gauge", help_text, unit, (*WORKER_LABELS, *labels), WORKER_DOCUMENT)


READY = _document("ready", "Whether CML on the worker is ready, as the manager saw it last.")
UPTIME = _document("uptime_seconds", "Time since CML on the worker started.", "seconds")
NODES = _document("nodes", "Nodes of the labs on the worker: those that run, and all.", labels=("state",))
DISK_USED = _document("disk_used_bytes", "Disk space in use on the worker.", "bytes")
DISK_TOTAL = _document("disk_total_bytes", "Disk space of the worker.", "bytes")
DISK = _document("disk_utilization_ratio", "Share of the disk space in use, 0 to 1.", "ratio")
MEMORY_TOTAL = _document("memory_total_bytes", "Memory of the worker.", "bytes")
LICENSED = _document("licensed", "Whether CML on the worker has a valid license.")
LICENSE_STATUS = _document(
    "license_status", "Whether the license of the worker is in this state; exactly one of its series is 1.", labels=("state",)
)
SERVICE_STATUS = _document(
    "service_status",
    "Whether the HTTPS service of CML is in this state; exactly one of its series is 1.",
    labels=("state",),
)
EC2_CHECK = _document(
    "ec2_status_check",
    "Whether the instance or system check of EC2 has this result; exactly one of a check's series is 1.",
    labels=("check", "state"),
)
DETAILED_MONITORING = _document("detailed_monitoring", "Whether CloudWatch's detailed monitoring is enabled for the instance.")
AUTO_PAUSES = _document("auto_pauses", "How often the manager's idle detection has paused the worker.")
IDLE_PAUSE = _document(
    "idle_pause_timestamp_seconds", "Time at which the manager will pause the worker unless it sees activity.", "seconds"
)
HOURLY_PRICE = Metric(
    "cml_worker_hourly_price_dollars",
    "gauge",
    "Price in US dollars of an hour of the worker's instance type; absent where workers.hourly_price does not name the type.",
    "dollars",
    WORKER_LABELS,
    "setting workers.hourly_price",
)
SAMPLE_TIME = Metric(
    "cml_worker_sample_timestamp_seconds",
    "gauge",
    "Time of the value: end of the period for cpu and memory, time of the read for state.",
    "seconds",
    (*WORKER_LABELS, "metric"),
    "CloudWatch or worker document",
)

WORKER_METRICS: tuple[Metric, ...] = (
    INFO,
    STATUS,
    STATUS_CODE,
    CPU,
    MEMORY,
    ACTIVE_LABS,
    LAST_ACTIVITY,
    CREATED,
    READY,
    UPTIME,
    NODES,
    DISK_USED,
    DISK_TOTAL,
    DISK,
    MEMORY_TOTAL,
    LICENSED,
    LICENSE_STATUS,
    SERVICE_STATUS,
    EC2_CHECK,
    DETAILED_MONITORING,
    AUTO_PAUSES,
    IDLE_PAUSE,
    HOURLY_PRICE,
    SAMPLE_TIME,
)
"""The families of the worker block, in order; those of `workers.extra` follow. Only one of `STATUS_FORMS` is exposed."""

_SOURCE = ("source", "region")
_TARGET = ("target",)


def _exporter(name: str, kind: Kind, help_text: str, labels: tuple[str, ...] = (), unit: str = "") -> Metric:
    return Metric(f"cml_exporter_{name}", kind, help_text, unit, labels, "exporter")


EXPORTER_METRICS: tuple[Metric, ...] = (
    _exporter("build_info", "gauge", "Version of the exporter as labels; always 1.", ("version", "revision", "python")),
    _exporter("leader", "gauge", "Whether this exporter holds the lease to write the history; absent without a history."),
    _exporter(
        "leader_snapshot_timestamp_seconds",
        "gauge",
        "Time at which the exporter with the lease polled what this one shows of CloudWatch; absent while it polls itself.",
        (),
        "seconds",
    ),
    _exporter("shard_info", "gauge", "The shard of this exporter; 0 while another division is in force.", ("shard", "shards")),
    _exporter("shards", "gauge", "Number of shards that this exporter is configured to divide the fleet into."),
    _exporter("source_up", "gauge", "Whether the last read of the source succeeded.", _SOURCE),
    _exporter("source_duration_seconds", "gauge", "Duration of the last read of the source.", _SOURCE, "seconds"),
    _exporter(
        "source_last_success_timestamp_seconds",
        "gauge",
        "Time of the last successful read of the source.",
        _SOURCE,
        "seconds",
    ),
    _exporter(
        "cloudwatch_account_up",
        "gauge",
        "Whether the last calls to the AWS account succeeded; absent where a region has one account.",
        ("account_id", "account", "region"),
    ),
    _exporter("workers_skipped", "gauge", "Worker documents skipped in the last read, by reason.", ("reason",)),
    _exporter(
        "cloudwatch_requests_total",
        "counter",
        "Requests sent to CloudWatch, retries included.",
        ("operation", "region"),
    ),
    _exporter(
        "cloudwatch_request_failures_total",
        "counter",
        "Failed requests to CloudWatch, by error code.",
        ("operation", "region", "code"),
    ),
    _exporter(
        "cloudwatch_metrics_requested_total",
        "counter",
        "Metrics requested by GetMetricData, which AWS bills.",
        ("region",),
    ),
    _exporter(
        "cloudwatch_estimated_cost_dollars_total",
        "counter",
        "Estimated price of the requested metrics, at 0.01 dollars per 1,000.",
        unit="dollars",
    ),
    _exporter(
        "cloudwatch_day_cost_dollars",
        "gauge",
        "Estimated price of the metrics requested since 00:00 UTC, across restarts.",
        unit="dollars",
    ),
    _exporter(
        "cloudwatch_budget_dollars",
        "gauge",
        "Daily budget for CloudWatch; absent without a limit.",
        unit="dollars",
    ),
    _exporter(
        "cloudwatch_budget_state",
        "gauge",
        "Whether the daily budget is in this state (ok, gap_filling_paused, polling_paused); exactly one of its series is 1.",
        ("state",),
    ),
    _exporter(
        "cloudwatch_reader_day_cost_dollars",
        "gauge",
        "Estimated price of the metrics requested on behalf of HTTP readers since 00:00 UTC, a part of the day's cost.",
        unit="dollars",
    ),
    _exporter(
        "cloudwatch_reader_budget_dollars",
        "gauge",
        "Share of the daily budget for CloudWatch that HTTP readers may spend; absent while CloudWatch is disabled.",
        unit="dollars",
    ),
    _exporter(
        "cloudwatch_reader_requests_refused_total",
        "counter",
        "GetMetricData requests on behalf of HTTP readers that were not sent because their share of the budget is spent.",
    ),
    _exporter(
        "cloudwatch_malformed_total",
        "counter",
        f"Parts of CloudWatch's answers dropped because they are malformed, by kind ({', '.join(MALFORMED_KINDS)}).",
        ("kind",),
    ),
    _exporter("outbox_samples", "gauge", "Samples in the outbox that are not yet in the history, by state.", ("state",)),
    _exporter(
        "outbox_oldest_timestamp_seconds",
        "gauge",
        "Start of the oldest sample in the outbox; absent when the outbox is empty.",
        (),
        "seconds",
    ),
    _exporter(
        "outbox_write_failures_total",
        "counter",
        "Failed transactions on the outbox, by reason (disk_full, read_only, io, damaged, other).",
        ("reason",),
    ),
    _exporter(
        "outbox_replaced_total", "counter", "Damaged outboxes that were set aside and replaced by an empty one since the start."
    ),
    _exporter("outbox_free_bytes", "gauge", "Free space on the disk of the outbox.", (), "bytes"),
    _exporter(
        "outbox_day_bytes", "gauge", "Space that the samples of all workers of one day without MongoDB would need.", (), "bytes"
    ),
    _exporter("samples_dropped_total", "counter", "Samples not written because they held no value."),
    _exporter(
        "samples_lost_total",
        "counter",
        "Samples never recorded: their periods were older than gap_fill_window when the exporter could observe again.",
    ),
    _exporter(
        "mirror_samples_total",
        "counter",
        "Samples that left the outbox, by result.",
        ("result",),
    ),
    _exporter("mirror_failures_total", "counter", "Failed attempts to write the history, by reason.", ("reason",)),
    _exporter(
        "mirror_last_success_timestamp_seconds",
        "gauge",
        "Time the mirror last wrote everything that was due to the history.",
        (),
        "seconds",
    ),
    _exporter(
        "history_duplicates",
        "gauge",
        "Samples of the last day, and of older periods written since the last search, that the history has twice, as found "
        "once an hour by the exporter that writes it.",
    ),
    _exporter(
        "history_replaced_total",
        "counter",
        "Times the history lost samples that MongoDB had acknowledged: another collection, an older backup, or no marker.",
        ("reason",),
    ),
    _exporter(
        "otlp_pushes_total",
        "counter",
        "Pushes to the OpenTelemetry collector, by result; only with otlp.endpoint.",
        ("result",),
    ),
    _exporter(
        "forward_lag_seconds",
        "gauge",
        "Time since the oldest sample that the target of history.forward lacks was mirrored; 0: it has all.",
        _TARGET,
        "seconds",
    ),
    _exporter("forward_pending_samples", "gauge", "Samples in the outbox that the target of history.forward lacks.", _TARGET),
    _exporter("forward_samples_total", "counter", "Samples that the target of history.forward has acknowledged.", _TARGET),
    _exporter("forward_failures_total", "counter", "Failed attempts to write the target, by reason.", (*_TARGET, "reason")),
    _exporter(
        "forward_samples_dropped_total",
        "counter",
        "Samples that the target of history.forward will not get, by reason (limit, retention, invalid, too_large).",
        (*_TARGET, "reason"),
    ),
    _exporter(
        "forward_last_success_timestamp_seconds",
        "gauge",
        "Time of the last write that the target of history.forward acknowledged; absent before the first.",
        _TARGET,
        "seconds",
    ),
    _exporter("samples_gap_filled_total", "counter", "Samples written by gap filling."),
    _exporter(
        "samples_unavailable_total",
        "counter",
        "Values recorded as absent because CloudWatch returned no final answer in time.",
        ("metric",),
    ),
    _exporter(
        "samples_late_total",
        "counter",
        "Values that CloudWatch published after they had been recorded as absent; the history lacks them.",
        ("metric",),
    ),
    _exporter(
        "samples_revised_total",
        "counter",
        "Values that CloudWatch revised after they were final; the history has the earlier value.",
        ("metric",),
    ),
    _exporter("http_connections", "gauge", "Open connections of the web server."),
    _exporter(
        "http_connections_closed_total",
        "counter",
        "Connections that the web server closed because of a limit, by reason.",
        ("reason",),
    ),
    _exporter(
        "config_last_reload_successful", "gauge", "Whether the last start, reload, or reading of a changed web.yml succeeded."
    ),
    _exporter(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        "Time of the last one that succeeded.",
        unit="seconds",
    ),
)

METRICS_BY_NAME = {metric.name: metric for metric in (*WORKER_METRICS, *EXPORTER_METRICS)}


LONGEST_LABEL = 1024
"""Characters of a label value; a longer text is cut. Prometheus keeps every label value in memory and repeats it in every
result, and one above its `label_value_length_limit` fails the whole scrape. Ids are never longer (`MAX_ID_CHARACTERS`)."""
