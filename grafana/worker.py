"""Worker detail dashboard: one worker now, compared with its last day and the week before, and the age of its values."""

from collections.abc import Sequence
from dataclasses import replace

from exporter.core.catalog import (
    ACTIVE_LABS,
    AUTO_PAUSES,
    CPU,
    CREATED,
    DETAILED_MONITORING,
    DISK,
    DISK_TOTAL,
    DISK_USED,
    EC2_CHECK,
    IDLE_PAUSE,
    INFO,
    LAST_ACTIVITY,
    LICENSE_STATUS,
    LICENSED,
    MEMORY,
    MEMORY_TOTAL,
    NODES,
    READY,
    SAMPLE_TIME,
    SERVICE_STATUS,
    STATUS,
    UPTIME,
    WORKER_LABELS,
    Metric,
)
from grafana import conventions
from grafana.panels import Column, Dashboard, Panel, Query, Row, Style, facts, graph, instant, name_stat, stat, table, timeline
from grafana.promql import (
    HISTORY_LOOKBACK,
    HISTORY_STEP,
    RUNNING,
    THE_WORKER,
    WEEK_BEFORE,
    alerts_since,
    history_info,
    history_running,
    history_selector,
    history_status_code,
    hours_missing,
    idle_hours,
    idle_seconds,
    live_info,
    max_by_worker,
    of_running,
    recorded_status_code,
    running_hours,
)

_GONE = "No longer listed"
_NOT_WRITTEN = "The manager does not write it, or the worker does not run"
_NOT_KNOWN = "Not known"
"""Of a tile, which has no room for more."""
_NODE = "No node_exporter on this worker"
_WEEK_AGO = "offset 1w"
_STATUS = {**conventions.STATUS_CODES, str(conventions.NONE): ("not listed", conventions.GREY)}
_NOT_IDLE = "Not running"


def _mean(metric: Metric, window: str, after: str = "") -> str:
    """Return the average of the samples of a window; of labs only those of periods in which the worker ran.

    The history keeps what the document of a stopped worker says of its labs. CPU and memory exist only of running instances.
    """
    values = f"{history_selector(metric, THE_WORKER)}[{window}]"
    if metric is ACTIVE_LABS:
        values = f"{history_running(metric, THE_WORKER)}[{window}:{HISTORY_STEP}]"
    return f"max(avg_over_time({values}{f' {after}' if after else ''}))"


def _now(expr: str) -> str:
    """Return a value that always exists: without it, the tile would show last week's value only."""
    return f"{expr} or vector({conventions.NONE})"


def _compared(metric: Metric) -> list[Query]:
    """Return queries for now, the last 24 hours, and the same time last week, as numbers."""
    return [
        instant(_now(f"max({of_running(metric, THE_WORKER)})"), "now"),
        instant(_mean(metric, "1d"), "24 h average"),
        instant(_mean(metric, HISTORY_LOOKBACK, _WEEK_AGO), "a week ago"),
    ]


def _lines(metric: Metric) -> list[Query]:
    """Return the same as lines; the newest minutes, which are not in the history yet, come from /metrics while it runs."""
    value = f"{_mean(metric, '$__interval')} or max({of_running(metric, THE_WORKER)})"
    queries = ((value, "now"), (_mean(metric, "1d"), "24 h average"), (_mean(metric, "$__interval", _WEEK_AGO), "a week ago"))
    return [Query(expr, legend, interval=HISTORY_STEP) for expr, legend in queries]


def _hours(of: str) -> list[Query]:
    """Return queries for hours in the last day, and in the same day a week before."""
    hours = running_hours if of == "running" else idle_hours
    windows = (("last 24 h", ""), ("a week ago", WEEK_BEFORE))
    return [instant(f"max({hours(THE_WORKER, '1d', before=before)})", legend) for legend, before in windows]


def _now_row() -> list[Panel]:
    compared = "Now, on average over the last 24 hours, and at the same time last week."
    return [
        stat(
            "Status",
            "What is its status, and what was it last week?",
            "The status now, and at the same time last week.",
            [
                instant(_now(f"max({recorded_status_code(THE_WORKER)})"), "now"),
                instant(history_status_code(THE_WORKER, HISTORY_LOOKBACK, _WEEK_AGO), "a week ago"),
            ],
            Style("none", _GONE, mappings=_STATUS, fixed=conventions.COMPARED),
            width=5,
        ),
        stat(
            "CPU",
            "Is it busier than usual?",
            compared,
            _compared(CPU),
            replace(conventions.CPU_RATIO, empty=_GONE, decimals=0, mappings=conventions.NO_VALUE, fixed=conventions.COMPARED),
            width=5,
        ),
        stat(
            "Memory",
            "Is its memory fuller than usual?",
            f"{compared} Only workers with the CloudWatch agent have a value.",
            _compared(MEMORY),
            replace(
                conventions.MEMORY_RATIO, empty=_GONE, decimals=0, mappings=conventions.NO_VALUE, fixed=conventions.COMPARED
            ),
            width=5,
        ),
        stat(
            "Active labs",
            "Is it used as usual?",
            f"{compared} {conventions.LABS}",
            _compared(ACTIVE_LABS),
            Style(
                "none",
                _GONE,
                decimals=1,
                minimum=0,
                mappings=conventions.NO_VALUE,
                fixed={**conventions.COMPARED, "now": {"decimals": 0}},
            ),
            width=5,
        ),
        stat(
            "Idle for",
            "When was it last used?",
            "Time since the last activity, if it is known, while it runs; red after 4 hours. The alert also requires no "
            "running node (no lab where nodes are not known) and almost no CPU load.",
            [instant(f"max({idle_seconds(THE_WORKER)})")],
            replace(conventions.SECONDS, empty=_NOT_IDLE, thresholds=conventions.LONG_IDLE),
            width=4,
        ),
        stat(
            "Running hours",
            "How long did it run in the last day?",
            "Hours in which it ran: in the last 24 hours, and in the same 24 hours a week before. A period with CPU and "
            "without a status counts as running.",
            _hours("running"),
            Style(conventions.HOURS, conventions.NO_HOURS_YET, decimals=1, minimum=0, fixed=conventions.COMPARED),
            width=9,
        ),
        stat(
            "Hours without data",
            "How much of the last day is known?",
            "Share of the last 24 whole hours that have neither a status nor CPU, such as those before the worker existed. "
            "They count neither as running nor as idle; yellow from 20 %.",
            [instant(hours_missing(THE_WORKER, "1d", 24))],
            conventions.MISSING,
            width=6,
        ),
        stat(
            "Idle hours",
            "For how long was it idle?",
            "Whole hours in which it ran without a lab and with almost no CPU load: in the last 24 hours, and in the same "
            "24 hours a week before.",
            _hours("idle"),
            Style(
                conventions.HOURS,
                conventions.NO_HOURS_YET,
                decimals=0,
                minimum=0,
                thresholds=((4, conventions.AMBER), (12, "red")),
                fixed=conventions.COMPARED,
            ),
            width=9,
        ),
    ]


_FACTS = {
    "worker": "Worker",
    "worker_id": "Worker id",
    "region": "Region",
    "instance_id": "Instance",
    "instance_type": "Type",
    "cml_version": "CML",
    "account_id": "AWS account",
}
"""Label → shown name."""


def _facts() -> list[Panel]:
    info = f"({live_info(THE_WORKER)} or {history_info(THE_WORKER)})"
    dates = [
        instant(f"1000 * max({metric.name}{{{THE_WORKER}}} > 0)", legend)
        for metric, legend in ((CREATED, "created"), (LAST_ACTIVITY, "last activity"))
    ]
    since = f"1000 * max by (alertname, severity) ({alerts_since(THE_WORKER)})"
    gone = Style("none", "Neither listed nor in the history of this time range")
    no_machine = Style("none", "Not known", links=conventions.INSTANCE_LINKS)
    return [
        facts(
            "Facts",
            "Which machine is it?",
            "Facts from the worker document; for a worker that is gone, the last known facts.",
            instant(f"topk(1, max by ({', '.join(_FACTS)}) ({info}))"),
            _FACTS,
            gone,
            width=8,
            height=8,
        ),
        stat(
            "Dates",
            "When was it created, and when was it last used?",
            "When the worker was created and when it was last active, while it is listed.",
            dates,
            Style("dateTimeFromNow", _GONE),
            width=4,
            height=8,
        ),
        table(
            "Alerts of this worker",
            "Is anything wrong with it?",
            "Alerts that fire for this worker now, and since when. Click one for what to do.",
            [instant(since)],
            (
                Column("severity", "Severity", conventions.SEVERITY_CELL),
                Column("alertname", "Alert", conventions.ALERT_LINK),
                Column("Value", "Since", conventions.MOMENT_CELL),
            ),
            Style("none", "None"),
            sort="Since",
            width=8,
            height=8,
        ),
        name_stat(
            "Machine",
            "Where can I look at it?",
            "Click the instance for its page in the EC2 console, or for the CML UI if the worker's name is its host name.",
            [instant(f"topk(1, max by (instance_id, region, worker) ({info}))", "{{instance_id}}")],
            no_machine,
            width=4,
            height=8,
        ),
    ]


def _state(title: str, question: str, description: str, metric: Metric, legend: str = "{{state}}") -> Panel:
    labels = ", ".join(label for label in metric.labels if label not in WORKER_LABELS)
    query = instant(f"max by ({labels}) ({metric.name}{{{THE_WORKER}}}) == 1", legend)
    return name_stat(title, question, description, [query], Style("none", _NOT_KNOWN), width=4)


def _newest(metric: Metric, legend: str = "", factor: str = "", matchers: str = "") -> Query:
    return instant(f"{factor}max({metric.name}{{{THE_WORKER}{matchers}}})", legend)


def _cml() -> list[Panel]:
    """Return panels of what the manager says of CML, the disk, and EC2's checks."""
    absent = Style("none", _NOT_KNOWN)
    return [
        stat(
            "Ready",
            "Does CML answer?",
            "Whether the manager has seen CML ready; only while the worker runs.",
            [_newest(READY)],
            replace(absent, mappings={"0": ("not ready", "red"), "1": ("ready", "green")}),
            width=4,
        ),
        _state(
            "Service",
            "Is the web service reachable?",
            "State of CML's HTTPS service as the manager saw it last, while the worker runs.",
            SERVICE_STATUS,
        ),
        _state("License", "Is it licensed?", "Status of the license as the manager holds it.", LICENSE_STATUS),
        stat(
            "Licensed",
            "Does CML accept its license?",
            "Whether CML itself says that it has a valid license.",
            [_newest(LICENSED)],
            replace(absent, mappings={"0": ("no", "red"), "1": ("yes", "green")}),
            width=4,
        ),
        _state(
            "EC2 checks",
            "Is the machine sound?",
            "Results of EC2's instance and system status checks.",
            EC2_CHECK,
            "{{check}}: {{state}}",
        ),
        stat(
            "Up for",
            "When did CML start?",
            "Time since CML on the worker started.",
            [_newest(UPTIME)],
            replace(conventions.SECONDS, empty=_NOT_KNOWN),
            width=4,
        ),
        stat(
            "Next idle pause",
            "When will the manager pause it?",
            "Time at which the manager pauses the worker unless it sees activity.",
            [_newest(IDLE_PAUSE, factor="1000 * ")],
            Style("dateTimeFromNow", "No pause planned"),
            width=6,
        ),
        stat(
            "Automatic pauses",
            "How often was it paused?",
            "How often the manager's idle detection has paused the worker.",
            [_newest(AUTO_PAUSES)],
            replace(conventions.COUNT, empty=_NOT_KNOWN),
            width=6,
        ),
        stat(
            "Detailed monitoring",
            "How often does CloudWatch measure it?",
            "With detailed monitoring CloudWatch has a value every minute, else every 5 minutes.",
            [_newest(DETAILED_MONITORING)],
            replace(absent, mappings={"0": ("5 minutes", "blue"), "1": ("1 minute", "blue")}),
            width=6,
        ),
        stat(
            "Memory and disk",
            "How large is it?",
            "Memory, disk, and the part of the disk in use.",
            [_newest(MEMORY_TOTAL, "memory"), _newest(DISK_TOTAL, "disk"), _newest(DISK_USED, "in use")],
            Style("bytes", _NOT_KNOWN, decimals=1, minimum=0),
            width=6,
        ),
        graph(
            "Nodes and labs",
            "What runs on it?",
            "Running nodes and all nodes of its labs, and the labs as counted by the manager (stopped labs included).",
            [
                Query(f"max by (state) ({NODES.name}{{{THE_WORKER}}})", "{{state}} nodes"),
                Query(f"max({ACTIVE_LABS.name}{{{THE_WORKER}}})", "labs"),
            ],
            replace(conventions.COUNT, empty=_NOT_WRITTEN),
        ),
        graph(
            "Disk in use",
            "Is its disk filling up?",
            "Share of the disk in use. The alert fires above the red line.",
            [Query(f"max({DISK.name}{{{THE_WORKER}}})", "in use")],
            replace(conventions.RATIO, empty=_NOT_WRITTEN, thresholds=conventions.DISK_FULL),
        ),
    ]


def _over_time() -> list[Panel]:
    said = (
        "The value, the average of the preceding 24 hours, and the value a week earlier. The newest 15 minutes come from "
        "/metrics, which shows a value some minutes after its period."
    )
    code = f"{history_status_code(THE_WORKER, '$__interval')} or {max_by_worker(recorded_status_code(THE_WORKER))}"

    def running(after: str = "") -> str:
        """Return 0 for a worker that existed in another status only, which has no series for running."""
        there = f"0 * max(last_over_time({history_selector(INFO, THE_WORKER)}[1d]{after}))"
        return f"max(avg_over_time({history_selector(STATUS, THE_WORKER, RUNNING)}[1d]{after})) or {there}"

    return [
        timeline(
            "Status over time",
            "When did it run?",
            "The status from the history; the newest minutes come from /metrics.",
            Query(code, "status", interval=HISTORY_STEP),
            Style("none", conventions.NO_HISTORY, mappings=conventions.STATUS_CODES),
            height=4,
        ),
        graph(
            "CPU over time",
            "When was it busy, and is that usual?",
            said,
            _lines(CPU),
            replace(conventions.CPU_RATIO, empty=conventions.NO_HISTORY, fixed=conventions.COMPARED),
        ),
        graph(
            "Memory over time",
            "When was its memory full, and is that usual?",
            said,
            _lines(MEMORY),
            replace(conventions.MEMORY_RATIO, empty="No value: is the CloudWatch agent running?", fixed=conventions.COMPARED),
        ),
        graph(
            "Active labs over time",
            "When was it used, and is that usual?",
            said,
            _lines(ACTIVE_LABS),
            Style("none", conventions.NO_HISTORY, minimum=0, fixed=conventions.COMPARED),
        ),
        graph(
            "Idle time",
            "Since when has it been unused?",
            "Time since the last activity, while it runs. It rises while the worker is unused, and falls to 0 when it is used.",
            [Query(f"max({idle_seconds(THE_WORKER)})", "idle for")],
            replace(conventions.CLOCK, empty=_NOT_IDLE, thresholds=conventions.LONG_IDLE),
        ),
        graph(
            "Share of the day it ran",
            "Does it run more than before?",
            "Share of the preceding 24 hours in which it was running, and of the same 24 hours a week earlier.",
            [
                Query(running(), "day before", interval=HISTORY_STEP),
                Query(running(f" {_WEEK_AGO}"), "a week ago", interval=HISTORY_STEP),
            ],
            replace(conventions.RATIO, empty=conventions.NO_HISTORY, fixed=conventions.COMPARED),
        ),
        graph(
            "Age of each value",
            "How old are the values shown?",
            "Time since the end of the period of the CPU and memory values, and since the status was observed. The alert "
            "fires above the red line.",
            [Query(f"time() - max by (metric) ({SAMPLE_TIME.name}{{{THE_WORKER}}})", "{{metric}}")],
            replace(conventions.CLOCK, empty=_GONE, thresholds=conventions.STALE),
        ),
    ]


def _node() -> Sequence[Panel]:
    """Return panels of a node_exporter on the worker, which Prometheus finds by the exporter's service discovery."""
    mounts = f'{THE_WORKER},fstype!~"tmpfs|overlay|squashfs|ramfs"'
    used = f"1 - node_filesystem_avail_bytes{{{mounts}}} / (node_filesystem_size_bytes{{{mounts}}} > 0)"
    memory = f"1 - node_memory_MemAvailable_bytes{{{THE_WORKER}}} / node_memory_MemTotal_bytes{{{THE_WORKER}}}"
    network = f'{{{THE_WORKER},device!="lo"}}[$__rate_interval]))'
    disk = f"{{{THE_WORKER}}}[$__rate_interval]))"
    return [
        graph(
            "Load",
            "Is the load higher than the number of cores?",
            "Running and waiting processes, averaged over 1 and 15 minutes.",
            [Query(f"max(node_load1{{{THE_WORKER}}})", "1 minute"), Query(f"max(node_load15{{{THE_WORKER}}})", "15 minutes")],
            Style("none", _NODE, minimum=0),
        ),
        graph(
            "Memory in use",
            "How full is its memory, measured on the machine?",
            "Share of memory that is not available, as node_exporter reports it.",
            [Query(f"max({memory})", "in use")],
            replace(conventions.MEMORY_RATIO, empty=_NODE),
        ),
        graph(
            "File systems",
            "Is a disk full?",
            "Share of each file system that is in use.",
            [Query(f"max by (mountpoint) ({used})", "{{mountpoint}}")],
            replace(conventions.RATIO, empty=_NODE, thresholds=((0.8, conventions.AMBER), (0.9, "red"))),
            width=8,
        ),
        graph(
            "Network",
            "Is the network busy?",
            "Bytes per second, of all interfaces except loopback.",
            [
                Query(f"sum(rate(node_network_receive_bytes_total{network}", "received"),
                Query(f"sum(rate(node_network_transmit_bytes_total{network}", "sent"),
            ],
            Style("Bps", _NODE, minimum=0),
            width=8,
        ),
        graph(
            "Disk",
            "Are the disks busy?",
            "Bytes per second read from and written to all disks.",
            [
                Query(f"sum(rate(node_disk_read_bytes_total{disk}", "read"),
                Query(f"sum(rate(node_disk_written_bytes_total{disk}", "written"),
            ],
            Style("Bps", _NODE, minimum=0),
            width=8,
        ),
    ]


DASHBOARD = Dashboard(
    uid=conventions.WORKER,
    title="CML / Worker detail",
    description="One worker: now, compared with its last day and the week before. Also for workers that are gone.",
    items=[
        Row("Now"),
        *_now_row(),
        *_facts(),
        Row("CML and machine"),
        *_cml(),
        Row("Over time"),
        *_over_time(),
        Row("Inside the machine (node_exporter)", collapsed=_node()),
    ],
    variables=[conventions.history_region_variable(), conventions.history_worker_variable(several=False)],
    annotations=[conventions.alerts('worker_id=~"$worker_id"'), conventions.RESTARTS, conventions.WORKER_STATUS],
    time_from="now-24h",
)
