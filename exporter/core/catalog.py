"""THE table of exposed metrics: name, type, help, unit, labels and where the number comes from.

The worker block, the exporter's own counters, docs/metrics.md, dashboards and rules all read it; nothing else names a metric.
Labels of a released series never change.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter"]

WORKER_LABELS = ("worker_id", "region")


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. `name` is what Prometheus stores (counters end in _total)."""

    name: str
    kind: Kind
    help: str
    unit: str
    labels: tuple[str, ...]
    source: str


INFO = Metric(
    "cml_worker_info",
    "gauge",
    "Descriptive facts of a worker; always 1.",
    "",
    (*WORKER_LABELS, "name", "instance_id", "instance_type", "cml_version"),
    "aggregate",
)
STATUS = Metric(
    "cml_worker_status",
    "gauge",
    "Whether the worker is in this status; exactly one of its series is 1.",
    "",
    (*WORKER_LABELS, "status"),
    "aggregate",
)
CPU = Metric(
    "cml_worker_cpu_utilization_ratio",
    "gauge",
    "Average CPU utilization of the newest period, 0 to 1.",
    "ratio",
    WORKER_LABELS,
    "CloudWatch AWS/EC2 CPUUtilization, else the aggregate's own",
)
MEMORY = Metric(
    "cml_worker_memory_utilization_ratio",
    "gauge",
    "Average memory utilization of the newest period, 0 to 1.",
    "ratio",
    WORKER_LABELS,
    "CloudWatch CWAgent mem_used_percent, else the aggregate's own",
)
ACTIVE_LABS = Metric("cml_worker_active_labs", "gauge", "Labs that are running on the worker.", "", WORKER_LABELS, "aggregate")
LAST_ACTIVITY = Metric(
    "cml_worker_last_activity_timestamp_seconds",
    "gauge",
    "When the manager last saw activity on the worker.",
    "seconds",
    WORKER_LABELS,
    "aggregate",
)
CREATED = Metric(
    "cml_worker_created_timestamp_seconds",
    "gauge",
    "When the worker was created.",
    "seconds",
    WORKER_LABELS,
    "aggregate",
)
SAMPLE_TIME = Metric(
    "cml_worker_sample_timestamp_seconds",
    "gauge",
    "What the value stands for: the end of the period of cpu and memory, the observation of state.",
    "seconds",
    (*WORKER_LABELS, "metric"),
    "CloudWatch or aggregate",
)

WORKER_METRICS: tuple[Metric, ...] = (
    INFO,
    STATUS,
    CPU,
    MEMORY,
    ACTIVE_LABS,
    LAST_ACTIVITY,
    CREATED,
    SAMPLE_TIME,
)
"""In the order of the worker block; the gauges of `workers.extra` follow."""

_SOURCE = ("source", "region")


def _own(name: str, kind: Kind, help_text: str, labels: tuple[str, ...] = (), unit: str = "") -> Metric:
    return Metric(f"cml_exporter_{name}", kind, help_text, unit, labels, "exporter")


EXPORTER_METRICS: tuple[Metric, ...] = (
    _own("build_info", "gauge", "Version of the exporter; always 1.", ("version", "revision", "python")),
    _own("leader", "gauge", "Whether this exporter holds the lease to write the history; absent where there is none."),
    _own("source_up", "gauge", "Whether the last reading of the source succeeded.", _SOURCE),
    _own("source_duration_seconds", "gauge", "How long the last reading of the source took.", _SOURCE, "seconds"),
    _own(
        "source_last_success_timestamp_seconds",
        "gauge",
        "When the source was last read successfully.",
        _SOURCE,
        "seconds",
    ),
    _own("workers_skipped", "gauge", "Aggregates of the last reading that were left out.", ("reason",)),
    _own(
        "cloudwatch_requests_total",
        "counter",
        "Requests sent to CloudWatch, retries included.",
        ("operation", "region"),
    ),
    _own(
        "cloudwatch_request_failures_total",
        "counter",
        "Requests to CloudWatch that failed, by error code.",
        ("operation", "region", "code"),
    ),
    _own(
        "cloudwatch_metrics_requested_total",
        "counter",
        "Metrics requested by GetMetricData; what is billed.",
        ("region",),
    ),
    _own(
        "cloudwatch_estimated_cost_dollars_total",
        "counter",
        "Estimated price of the metrics requested, at 0.01 dollars per 1,000.",
        unit="dollars",
    ),
    _own(
        "cloudwatch_day_cost_dollars",
        "gauge",
        "Estimated price of the metrics requested since 00:00 UTC, restarts included.",
        unit="dollars",
    ),
    _own(
        "cloudwatch_budget_dollars",
        "gauge",
        "What CloudWatch may cost a day; absent when there is no limit.",
        unit="dollars",
    ),
    _own(
        "cloudwatch_budget_state",
        "gauge",
        "What the budget allows: ok, gap_filling_paused or polling_paused; exactly one of its series is 1.",
        ("state",),
    ),
    _own("outbox_samples", "gauge", "Samples on their way to the history.", ("state",)),
    _own(
        "outbox_oldest_timestamp_seconds",
        "gauge",
        "Start of the oldest sample on its way; absent when there is none.",
        (),
        "seconds",
    ),
    _own("samples_dropped_total", "counter", "Samples that ended with nothing in them, so that nothing was written."),
    _own(
        "mirror_samples_total",
        "counter",
        "Samples that left the outbox, by what became of them.",
        ("result",),
    ),
    _own("mirror_failures_total", "counter", "Attempts to write the history that failed.", ("reason",)),
    _own(
        "mirror_last_success_timestamp_seconds",
        "gauge",
        "When the outbox was last emptied into the history.",
        (),
        "seconds",
    ),
    _own("samples_gap_filled_total", "counter", "Samples written for periods nobody observed in time."),
    _own("samples_unavailable_total", "counter", "Values given up because CloudWatch never decided them.", ("metric",)),
)

METRICS_BY_NAME = {metric.name: metric for metric in (*WORKER_METRICS, *EXPORTER_METRICS)}


LONGEST_LABEL = 1024
"""Characters. A longer text is cut: Prometheus keeps every label value in memory and repeats it in each answer, and with a
`label_value_length_limit` it refuses the whole scrape because of one. Ids are never that long (`workers.LONGEST_ID`)."""
