"""Worker detail: one worker now, against its last day and the week before, and how far its numbers can be trusted."""

from collections.abc import Sequence
from dataclasses import replace

from exporter.core.catalog import ACTIVE_LABS, CPU, CREATED, INFO, LAST_ACTIVITY, MEMORY, SAMPLE_TIME, STATUS, Metric
from grafana import looks
from grafana.panels import Column, Dashboard, Panel, Query, Row, Style, graph, now, stat, table, timeline
from grafana.promql import (
    HISTORY_STEP,
    RUNNING,
    THE_WORKER,
    WEEK_BEFORE,
    WORKER,
    display_name,
    idle_hours,
    idle_seconds,
    in_status,
    live_info,
    live_status_code,
    past,
    past_info,
    past_status_code,
    running_hours,
)

_GONE = "Not listed any more"
_NODE = "No node_exporter on this worker"
_WEEK_AGO = "offset 1w"
_NOT_IDLE = "Not running, or no known activity"
_IDLE = f"max({idle_seconds(THE_WORKER)} and on ({WORKER}) {in_status('running', THE_WORKER)})"


def _mean(metric: Metric, window: str, after: str = "") -> str:
    return f"max(avg_over_time({past(metric, THE_WORKER)}[{window}]{f' {after}' if after else ''}))"


def _compared(metric: Metric) -> list[Query]:
    """Now, the last 24 hours and this time last week, as numbers."""
    return [
        now(f"max({metric.name}{{{THE_WORKER}}})", "now"),
        now(_mean(metric, "1d"), "24 h average"),
        now(_mean(metric, "30m", _WEEK_AGO), "a week ago"),
    ]


def _lines(metric: Metric) -> list[Query]:
    """The same as lines; the newest minutes, which the history has not yet, are those of /metrics."""
    value = f"{_mean(metric, '$__interval')} or max({metric.name}{{{THE_WORKER}}})"
    queries = ((value, "now"), (_mean(metric, "1d"), "24 h average"), (_mean(metric, "$__interval", _WEEK_AGO), "a week ago"))
    return [Query(expr, legend, interval=HISTORY_STEP) for expr, legend in queries]


def _hours(of: str) -> list[Query]:
    """Hours of the last day, and of the same day a week before."""
    hours = running_hours if of == "running" else idle_hours
    return [now(hours(THE_WORKER, "1d"), "last 24 h"), now(hours(THE_WORKER, "1d", before=WEEK_BEFORE), "a week ago")]


def _now_row() -> list[Panel]:
    compared = "Now, on average of the last 24 hours, and at the same time last week."
    return [
        stat(
            "Status",
            "What is it doing, and what did it last week?",
            "The status now, and at the same time last week.",
            [
                now(live_status_code(THE_WORKER), "now"),
                now(past_status_code(THE_WORKER, "30m", _WEEK_AGO), "a week ago"),
            ],
            Style("none", _GONE, mappings=looks.STATUS_CODES),
            width=5,
        ),
        stat(
            "CPU",
            "Is it busier than usual?",
            compared,
            _compared(CPU),
            replace(looks.CPU_RATIO, empty=_GONE, decimals=1),
            width=5,
        ),
        stat(
            "Memory",
            "Is its memory fuller than usual?",
            f"{compared} Only workers with the CloudWatch agent have a value.",
            _compared(MEMORY),
            replace(looks.MEMORY_RATIO, empty="No value: is there a CloudWatch agent?", decimals=1),
            width=5,
        ),
        stat(
            "Active labs",
            "Is it used as usual?",
            compared,
            _compared(ACTIVE_LABS),
            Style("none", _GONE, decimals=1, least=0),
            width=5,
        ),
        stat(
            "Idle for",
            "When was it last used?",
            "Time since the manager last saw activity on it, while it runs; red after 4 hours. The alert also wants no lab and "
            "hardly any CPU.",
            [now(_IDLE)],
            replace(looks.SECONDS, empty=_NOT_IDLE, thresholds=looks.LONG_IDLE),
            width=4,
        ),
        stat(
            "Running hours",
            "How long did it run in the last day?",
            "Hours in the status running: in the last 24 hours, and in the same 24 hours a week before.",
            _hours("running"),
            Style("h", looks.NO_HOURS, decimals=1, least=0),
            width=6,
        ),
        stat(
            "Idle hours",
            "How much of that was for nothing?",
            "Whole hours in which it ran, had no lab and hardly used its CPU: in the last 24 hours, and in the same 24 "
            "hours a week before.",
            _hours("idle"),
            Style("h", looks.NO_HOURS, decimals=0, least=0, thresholds=((4, "yellow"), (12, "red"))),
            width=6,
        ),
        _facts(),
    ]


def _facts() -> Panel:
    facts = f"{WORKER}, worker, instance_id, instance_type, cml_version"
    live, gone = live_info(THE_WORKER), past_info(THE_WORKER)
    dates = [f"1000 * max by ({WORKER}) ({metric.name}{{{THE_WORKER}}} > 0)" for metric in (CREATED, LAST_ACTIVITY)]
    return table(
        "Facts",
        "Which machine is it?",
        "What the manager says about it; of one that is gone, what was known at last.",
        [now(f"topk by ({WORKER}) (1, max by ({facts}) ({display_name(f'({live} or {gone})')}))"), *map(now, dates)],
        (
            Column("worker", "Worker"),
            Column("region", "Region"),
            Column("instance_id", "Instance"),
            Column("instance_type", "Type"),
            Column("cml_version", "CML"),
            Column("Value #B", "Created", looks.MOMENT_CELL),
            Column("Value #C", "Last activity", looks.MOMENT_CELL),
            Column("worker_id", "Worker id"),
        ),
        Style("none", "Neither listed nor in the history of this time"),
        sort="Worker",
        width=12,
        height=4,
    )


def _over_time() -> list[Panel]:
    said = (
        "The value, the average of the 24 hours before each moment, and the value a week earlier. The newest 15 minutes are as "
        "/metrics had them, which is some minutes later than they were."
    )
    code = f"{past_status_code(THE_WORKER, '$__interval')} or {live_status_code(THE_WORKER)}"

    def running(after: str = "") -> str:
        """0 for one that was there in some other status: then it has no series of this one."""
        there = f"0 * max(last_over_time({past(INFO, THE_WORKER)}[1d]{after}))"
        return f"max(avg_over_time({past(STATUS, THE_WORKER, RUNNING)}[1d]{after})) or {there}"

    return [
        timeline(
            "Status over time",
            "When did it run?",
            "The status, from the history; the newest minutes as /metrics has them.",
            Query(code, "status", interval=HISTORY_STEP),
            Style("none", looks.NO_HISTORY, mappings=looks.STATUS_CODES),
            height=4,
        ),
        graph(
            "CPU over time",
            "When was it busy, and is that usual?",
            said,
            _lines(CPU),
            replace(looks.CPU_RATIO, empty=looks.NO_HISTORY),
        ),
        graph(
            "Memory over time",
            "When was its memory full, and is that usual?",
            said,
            _lines(MEMORY),
            replace(looks.MEMORY_RATIO, empty="No value: is there a CloudWatch agent?"),
        ),
        graph(
            "Active labs over time",
            "When was it used, and is that usual?",
            said,
            _lines(ACTIVE_LABS),
            Style("none", looks.NO_HISTORY, least=0),
        ),
        graph(
            "Idle time",
            "Since when has nobody used it?",
            "Time since the last activity, while it runs. It rises while nobody uses it, and falls to 0 when somebody does.",
            [Query(_IDLE, "idle for")],
            replace(looks.SECONDS, empty=_NOT_IDLE, thresholds=looks.LONG_IDLE),
        ),
        graph(
            "Part of the day it ran",
            "Does it run more than it used to?",
            "Which part of the 24 hours before each moment it was running, and of the same 24 hours a week earlier.",
            [
                Query(running(), "day before", interval=HISTORY_STEP),
                Query(running(f" {_WEEK_AGO}"), "a week ago", interval=HISTORY_STEP),
            ],
            replace(looks.RATIO, empty=looks.NO_HISTORY),
        ),
        graph(
            "Age of each number",
            "How old is what I see?",
            "Time since the end of the period that CPU and memory stand for, and since the status was observed. Red is "
            "where the alert "
            "comes.",
            [Query(f"time() - max by (metric) ({SAMPLE_TIME.name}{{{THE_WORKER}}})", "{{metric}}")],
            replace(looks.SECONDS, empty=_GONE, thresholds=looks.STALE),
        ),
    ]


def _node() -> Sequence[Panel]:
    """What a node_exporter on the worker says, found by the exporter's service discovery."""
    mounts = f'{THE_WORKER},fstype!~"tmpfs|overlay|squashfs|ramfs"'
    used = f"1 - node_filesystem_avail_bytes{{{mounts}}} / (node_filesystem_size_bytes{{{mounts}}} > 0)"
    memory = f"1 - node_memory_MemAvailable_bytes{{{THE_WORKER}}} / node_memory_MemTotal_bytes{{{THE_WORKER}}}"
    network = f'{{{THE_WORKER},device!="lo"}}[$__rate_interval]))'
    disk = f"{{{THE_WORKER}}}[$__rate_interval]))"
    return [
        graph(
            "Load",
            "Does more want to run than there are cores?",
            "Processes that run or wait, on average of 1 and 15 minutes.",
            [Query(f"max(node_load1{{{THE_WORKER}}})", "1 minute"), Query(f"max(node_load15{{{THE_WORKER}}})", "15 minutes")],
            Style("none", _NODE, least=0),
        ),
        graph(
            "Memory in use",
            "How full is its memory, to the second?",
            "The part of memory that is not available, as the machine itself says.",
            [Query(f"max({memory})", "in use")],
            replace(looks.MEMORY_RATIO, empty=_NODE),
        ),
        graph(
            "File systems",
            "Is a disk full?",
            "The part of each file system that is in use.",
            [Query(f"max by (mountpoint) ({used})", "{{mountpoint}}")],
            replace(looks.RATIO, empty=_NODE, thresholds=((0.8, "yellow"), (0.9, "red"))),
            width=8,
        ),
        graph(
            "Network",
            "Is the network busy?",
            "Bytes a second, of all interfaces but the loopback.",
            [
                Query(f"sum(rate(node_network_receive_bytes_total{network}", "received"),
                Query(f"sum(rate(node_network_transmit_bytes_total{network}", "sent"),
            ],
            Style("Bps", _NODE, least=0),
            width=8,
        ),
        graph(
            "Disk",
            "Are the disks busy?",
            "Bytes a second read from and written to all disks.",
            [
                Query(f"sum(rate(node_disk_read_bytes_total{disk}", "read"),
                Query(f"sum(rate(node_disk_written_bytes_total{disk}", "written"),
            ],
            Style("Bps", _NODE, least=0),
            width=8,
        ),
    ]


DASHBOARD = Dashboard(
    uid=looks.WORKER,
    title="CML / Worker detail",
    description="One worker: now, against its last day and the week before. Also for workers that are gone.",
    items=[
        Row("Now"),
        *_now_row(),
        Row("Over time"),
        *_over_time(),
        Row("The machine itself (node_exporter)", collapsed=_node()),
    ],
    variables=[looks.past_region(), looks.past_worker(several=False)],
    annotations=[looks.alerts('worker_id=~"$worker_id"'), looks.RESTARTS, looks.WORKER_STATUS],
    time_from="now-24h",
)
