"""Fleet overview dashboard: which workers run, are busy, or are idle."""

from dataclasses import replace

from exporter.core.catalog import ACTIVE_LABS, CPU, CREATED, INFO, MEMORY, STATUS, Metric
from grafana import conventions
from grafana.panels import Column, Dashboard, Panel, Query, Row, Style, bars, graph, instant, mappings, stat, table, timeline
from grafana.promql import (
    IN_REGION,
    RUNNING,
    WORKER,
    idle_seconds,
    in_status,
    live,
    live_info,
    max_by_worker,
    of_running,
    only_top,
    step_average,
    with_display_name,
)

_BY_STATUS = f"sum by (status) (cml_region:workers:count{{{IN_REGION}}})"
_IDLE = f"cml_worker:idle:bool{{{IN_REGION}}}"
_OR_NO_REGION = 'region=~"$region|"'
"""Alerts about the exporter have no region."""
_RUNNING = in_status("running", IN_REGION)
_RUNNING_COUNT = f"sum(cml_region:workers:count{{{IN_REGION},{RUNNING}}}) or 0 * sum(cml_region:workers:count{{{IN_REGION}}})"
"""Not absent but 0 while every worker is in another status."""


def _name(expr: str) -> str:
    return with_display_name(expr, live_info(IN_REGION))


def _rank(metric: Metric) -> str:
    return f"avg_over_time({of_running(metric, IN_REGION)}[$__range] @ end())"


def _by_worker(title: str, question: str, description: str, metric: Metric, style: Style) -> Panel:
    mean = step_average(metric, IN_REGION)
    queries = [
        Query(_name(only_top(mean, _rank(metric), conventions.LINES)), "{{worker}}"),
        Query(f"avg({mean})", "mean of all"),
    ]
    links, fixed = conventions.SERIES_LINK, conventions.MEAN
    return graph(title, question, description, queries, replace(style, links=links, fixed=fixed), interval="5m")


def _now_row() -> list[Panel]:
    return [
        stat(
            "Workers",
            "How many workers are there?",
            "Workers in any status. A terminated worker counts for one more hour.",
            [instant(f"count({live(INFO, IN_REGION)})")],
            conventions.COUNT,
            width=4,
        ),
        stat(
            "Running",
            "How many workers run and cost money?",
            "Workers whose status is running.",
            [instant(f"sum({live(STATUS, IN_REGION, RUNNING)})")],
            conventions.COUNT,
            width=4,
        ),
        stat(
            "Idle now",
            "How many workers are idle?",
            "Running workers without a running node (without a lab where nodes are not known) and with CPU below the alert "
            "threshold. Stop them if they stay idle.",
            [instant(f"sum({_IDLE})")],
            replace(conventions.COUNT, empty="No running worker with a value", thresholds=((1, "yellow"), (5, "orange"))),
            width=4,
        ),
        stat(
            "Active labs",
            "How many labs are there?",
            f"{conventions.LABS} On all workers together.",
            [instant(f"sum({of_running(ACTIVE_LABS, IN_REGION)})")],
            conventions.COUNT,
            width=3,
        ),
        stat(
            "Mean CPU",
            "How busy is the fleet?",
            "Average CPU of all running workers that have a value.",
            [instant(f"avg({of_running(CPU, IN_REGION)})")],
            replace(conventions.CPU_RATIO, empty="No value", decimals=0),
            width=3,
        ),
        stat(
            "Mean memory",
            "How full is the fleet's memory?",
            "Average memory of all running workers that have a value; this requires the CloudWatch agent on the worker.",
            [instant(f"avg({of_running(MEMORY, IN_REGION)})")],
            replace(conventions.MEMORY_RATIO, empty="No value", decimals=0),
            width=3,
        ),
        stat(
            "Alerts firing",
            "Is anything wrong?",
            "Alerts about workers and the exporter that fire now; the runbook says what to do about each.",
            [instant('count(ALERTS{alertname=~"CML.+",alertstate="firing",region=~"$region|"})')],
            replace(conventions.COUNT, empty="None", thresholds=((1, "red"),)),
            width=3,
        ),
    ]


def _attention() -> list[Panel]:
    running = f"and on ({WORKER}) {_RUNNING}"

    def count(title: str, question: str, description: str, expr: str) -> Panel:
        style = replace(conventions.COUNT, empty="Not known of any worker", thresholds=((1, "red"),))
        return stat(title, question, description, [instant(f"sum({expr})")], style, width=6)

    firing = f'ALERTS{{alertname=~"CML.+",alertstate="firing",{_OR_NO_REGION}}}'
    since = f'1000 * min by (alertname) (ALERTS_FOR_STATE{{alertname=~"CML.+",{_OR_NO_REGION}}} and on (alertname) {firing})'
    ranks = " or ".join(
        f'{rank} * count by (alertname) ({firing[:-1]},severity="{severity}"}}) ^ 0' for severity, rank in conventions.SEVERITY
    )
    return [
        table(
            "Alerts by severity",
            "Which alerts fire, and since when?",
            "Alerts that fire now, the most severe first, with the number of workers or exporters and the time of the oldest. "
            "Click an alert for its text and its runbook.",
            [instant(f"sort_desc({ranks})"), instant(f"count by (alertname) ({firing})"), instant(since)],
            (
                Column("Value #A", "Severity", conventions.SEVERITY_CODE_CELL),
                Column("alertname", "Alert", conventions.ALERT_LINK),
                Column("Value #B", "Number"),
                Column("Value #C", "Since", conventions.MOMENT_CELL),
            ),
            Style("none", "None"),
            sort="Severity",
            height=7,
        ),
        count(
            "EC2 check impaired",
            "Does AWS report a broken machine?",
            "Running workers whose instance or system status check EC2 calls impaired.",
            f"max by ({WORKER}) (cml_worker:ec2_check_impaired:max{{{IN_REGION}}}) {running}",
        ),
        count(
            "Disk nearly full",
            "Is a disk about to be full?",
            "Running workers whose disk is above the alert threshold.",
            f"(cml_worker:disk_utilization_ratio:max{{{IN_REGION}}} > bool scalar(cml:threshold:disk_ratio)) {running}",
        ),
        count(
            "Not ready",
            "Does CML answer on every running worker?",
            "Running workers on which the manager has not seen CML ready; for some minutes after a start that is normal.",
            f"(cml_worker:ready:max{{{IN_REGION}}} == bool 0) {running}",
        ),
        count(
            "Unlicensed",
            "Does a worker lack its license?",
            "Running workers without a valid license; an evaluation license is valid.",
            f"cml_worker:unlicensed:max{{{IN_REGION}}} {running}",
        ),
    ]


def _load() -> list[Panel]:
    return [
        _by_worker(
            "CPU by worker",
            "Which workers are busy?",
            "The three workers with the highest average in the time range, and the mean of all. The yellow line "
            "marks high CPU; the alert fires above the red line.",
            CPU,
            conventions.CPU_RATIO,
        ),
        _by_worker(
            "Memory by worker",
            "Which workers are short of memory?",
            "The three workers with the highest average in the time range, and the mean of all. A worker without "
            "the CloudWatch agent has no value.",
            MEMORY,
            conventions.MEMORY_RATIO,
        ),
        bars(
            "Busiest now",
            "Which workers are busiest now?",
            "The running workers with the highest CPU in the newest 5 minutes.",
            instant(_name(f"topk($top, {of_running(CPU, IN_REGION)})"), "{{worker}}"),
            replace(conventions.CPU_RATIO, empty="No value", decimals=0, links=conventions.SERIES_LINK),
            width=8,
        ),
        bars(
            "Longest idle",
            "Which running workers have been unused for longest?",
            "Time since the last activity, of running workers only; red after 4 hours, a full bar from a day on. The "
            "alert also requires no running node (no lab where nodes are not known) and almost no CPU load.",
            instant(_name(f"topk($top, {idle_seconds(IN_REGION)} and on ({WORKER}) {_RUNNING})"), "{{worker}}"),
            replace(
                conventions.SECONDS,
                empty="No running worker with known activity",
                maximum=86400,
                thresholds=conventions.LONG_IDLE,
                links=conventions.SERIES_LINK,
            ),
            width=8,
        ),
        bars(
            "Workers by status",
            "How many workers are in each status?",
            "Number of workers in each status now.",
            instant(_BY_STATUS, "{{status}}"),
            replace(conventions.COUNT, fixed={name: _color(color) for name, color in conventions.COLORS.items()}),
            width=8,
        ),
    ]


def _color(color: str) -> dict[str, object]:
    return {"color": {"mode": "fixed", "fixedColor": color}}


def _over_time() -> list[Panel]:
    colors = {name: _color(color) for name, color in conventions.COLORS.items()}
    code = f"cml_worker:status:code{{{IN_REGION}}}"
    code = only_top(code, f"changes({code}[$__range] @ end())")
    return [
        graph(
            "Workers by status over time",
            "When were workers started and stopped?",
            "Number of workers in each status.",
            [Query(_BY_STATUS, "{{status}}")],
            replace(conventions.COUNT, fixed=colors),
            stacked=True,
        ),
        graph(
            "Active labs and idle workers",
            "Does the number of running workers match the number of labs?",
            f"{conventions.LABS} Running workers, and idle workers among them.",
            [
                Query(f"sum(cml_region:active_labs_running:sum{{{IN_REGION}}})", "active labs"),
                Query(_RUNNING_COUNT, "running workers"),
                Query(f"sum(cml_region:workers_idle:sum{{{IN_REGION}}})", "idle workers"),
            ],
            conventions.COUNT,
        ),
        timeline(
            "Status by worker",
            "Which worker was in which status, and when?",
            "Status of the workers whose status changed most often in the time range.",
            Query(_name(code), "{{worker}}"),
            replace(conventions.COUNT, mappings=conventions.STATUS_CODES, links=conventions.SERIES_LINK),
            height=10,
        ),
    ]


_INVENTORY = (
    Column("worker", "Worker", conventions.ROW_LINK),
    Column("status", "Status", {"mappings": mappings(conventions.STATUS_TEXTS), "custom.displayMode": "color-text"}),
    Column("region", "Region"),
    Column("Value #B", "CPU", conventions.CPU_CELL),
    Column("Value #C", "Memory", conventions.MEMORY_CELL),
    Column("Value #D", "Labs"),
    Column("Value #E", "Idle for", conventions.IDLE_CELL),
    Column("Value #F", "Created", conventions.MOMENT_CELL),
    Column("instance_type", "Type"),
    Column("cml_version", "CML"),
    Column("instance_id", "Instance"),
    Column("worker_id", "Worker id"),
)


def _inventory() -> Panel:
    facts = f"{WORKER}, worker, instance_id, instance_type, cml_version"
    info = live_info(IN_REGION)
    queries = [
        instant(f"topk by ({WORKER}) (1, max by ({facts}) ({info}))"),
        instant(max_by_worker(of_running(CPU, IN_REGION))),
        instant(max_by_worker(of_running(MEMORY, IN_REGION))),
        instant(max_by_worker(of_running(ACTIVE_LABS, IN_REGION))),
        instant(f"{idle_seconds(IN_REGION)} and on ({WORKER}) {_RUNNING}"),
        instant(f"1000 * {live(CREATED, IN_REGION)}"),
        instant(f"topk by ({WORKER}) (1, max by ({WORKER}, status) ({STATUS.name}{{{IN_REGION}}}) == 1)"),
    ]
    return table(
        "Inventory",
        "Which workers exist, and what are their values?",
        "All workers with their newest values. Click a name for the worker's dashboard, or the funnel of a heading to filter.",
        queries,
        _INVENTORY,
        replace(conventions.COUNT, decimals=None),
        sort="CPU",
        height=12,
    )


def _regions() -> list[Panel]:
    by_region = "by (region)"
    queries = [
        instant(f"count {by_region} ({live(INFO, IN_REGION)})"),
        instant(f"sum {by_region} ({live(STATUS, IN_REGION, RUNNING)})"),
        instant(f"sum {by_region} ({_IDLE})"),
        instant(f"sum {by_region} ({of_running(ACTIVE_LABS, IN_REGION)})"),
        instant(f"avg {by_region} ({of_running(CPU, IN_REGION)})"),
        instant(f"avg {by_region} ({of_running(MEMORY, IN_REGION)})"),
    ]
    return [
        table(
            "Regions",
            "How do the regions compare?",
            "Workers, active labs, and average utilization of the running workers per AWS region.",
            queries,
            (
                Column("region", "Region"),
                Column("Value #A", "Workers"),
                Column("Value #B", "Running"),
                Column("Value #C", "Idle"),
                Column("Value #D", "Labs"),
                Column("Value #E", "CPU", conventions.CPU_CELL),
                Column("Value #F", "Memory", conventions.MEMORY_CELL),
            ),
            replace(conventions.COUNT, decimals=None),
            sort="Workers",
            width=12,
            height=8,
        ),
        graph(
            "CPU by region",
            "Which region is busy, and when?",
            "Average CPU of the running workers in each region.",
            [Query(f"max {by_region} (cml_region:cpu_utilization_ratio:avg{{{IN_REGION}}})", "{{region}}")],
            conventions.CPU_RATIO,
        ),
    ]


DASHBOARD = Dashboard(
    uid=conventions.FLEET,
    title="CML / Fleet overview",
    description="All workers: which run, which are busy, which are idle.",
    items=[
        Row("Now"),
        *_now_row(),
        Row("Needs attention"),
        *_attention(),
        Row("Load"),
        *_load(),
        Row("Over time"),
        *_over_time(),
        Row("Inventory"),
        _inventory(),
        Row("By region"),
        *_regions(),
    ],
    variables=[conventions.REGION, conventions.TOP],
    annotations=[conventions.alerts(IN_REGION), conventions.RESTARTS],
)
