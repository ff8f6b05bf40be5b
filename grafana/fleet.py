"""Fleet overview dashboard: which workers run, are busy, or are idle."""

from dataclasses import replace

from exporter.core.catalog import ACTIVE_LABS, CPU, CREATED, MEMORY, Metric
from exporter.core.history_metrics import ACTIVE_LABS_1H, CPU_1H, MEMORY_1H, RUNNING_1H, ByHour
from grafana import conventions
from grafana.panels import Column, Dashboard, Panel, Query, Row, Style, bars, graph, instant, mappings, stat, table, timeline
from grafana.promql import (
    HISTORY_STEP,
    IN_REGION,
    PREDICTION_HOURS,
    RUNNING,
    WORKER,
    alerts_firing,
    alerts_since,
    filling,
    hourly_history,
    idle_by_hour,
    idle_seconds,
    infos_of_range,
    live,
    max_by_worker,
    of_running,
    of_running_by_hour,
    only_top,
    ranked,
    running_by_hour,
    runs_now,
    status_now,
    step_average,
    unnamed,
    with_display_name,
    with_history,
)

_BY_STATUS = f"sum by (status) (cml_region:workers:count{{{IN_REGION}}})"
_LISTED = f"cml_region:workers_listed:count{{{IN_REGION}}}"
_IDLE = f"cml_worker:idle:bool{{{IN_REGION}}}"
_OR_NO_REGION = 'region=~"$region|"'
"""Alerts about the exporter have no region."""
_RUNNING_COUNT = f"sum(cml_region:workers:count{{{IN_REGION},{RUNNING}}}) or 0 * sum(cml_region:workers:count{{{IN_REGION}}})"
"""Not absent but 0 while every worker is in another status."""


_PAST = "Time that this Prometheus does not know comes from the history, by the hour."


_IDLE_COST = f"sum(cml_region:idle_dollars_per_hour:sum{{{IN_REGION}}})"


def _named_over_time(expr: str) -> str:
    """Add names of the time range: those of now do not exist at times before this Prometheus."""
    return with_display_name(f"({expr})", infos_of_range(IN_REGION))


def _by_worker(title: str, question: str, description: str, metric: Metric, by_hour: ByHour, style: Style) -> Panel:
    now, past = step_average(metric, IN_REGION), of_running_by_hour(by_hour, IN_REGION)
    top = only_top(f"({with_history(now, max_by_worker(past))})", ranked(metric, by_hour, IN_REGION), conventions.LINES)
    queries = [
        Query(_named_over_time(top), "{{worker}}"),
        Query(with_history(f"avg({now})", f"avg({past})"), "mean of all"),
    ]
    links, fixed = conventions.SERIES_LINK, conventions.MEAN
    return graph(title, question, description, queries, replace(style, links=links, fixed=fixed), interval=HISTORY_STEP)


def _now_row() -> list[Panel]:
    return [
        stat(
            "Workers",
            "How many workers are there?",
            "Workers in any status. A terminated worker counts for one more hour.",
            [instant(f"sum({_LISTED})")],
            conventions.COUNT,
            width=4,
        ),
        stat(
            "Running",
            "How many workers run and cost money?",
            "Workers whose status is running.",
            [instant(f"sum({runs_now(IN_REGION)})")],
            conventions.COUNT,
            width=4,
        ),
        stat(
            "Idle now",
            "How many workers are idle?",
            "Running workers without a running node (without a lab where nodes are not known) and with CPU below the alert "
            "threshold. Stop them if they stay idle.",
            [instant(f"sum({_IDLE})")],
            replace(
                conventions.COUNT,
                empty="No running worker",
                thresholds=((1, conventions.AMBER), (5, "dark-orange")),
            ),
            width=4,
        ),
        stat(
            "Active labs",
            "How many labs are there?",
            f"{conventions.LABS} On all workers together.",
            [instant(f"sum({of_running(ACTIVE_LABS, IN_REGION)})")],
            conventions.COUNT,
            width=4,
        ),
        stat(
            "Mean CPU",
            "How busy is the fleet?",
            "Average CPU of all running workers that have a value.",
            [instant(f"avg({of_running(CPU, IN_REGION)})")],
            replace(conventions.CPU_RATIO, empty="No value", decimals=0),
            width=4,
        ),
        stat(
            "Mean memory",
            "How full is the fleet's memory?",
            "Average memory of all running workers that have a value; this requires the CloudWatch agent on the worker.",
            [instant(f"avg({of_running(MEMORY, IN_REGION)})")],
            replace(conventions.MEMORY_RATIO, empty="No value", decimals=0),
            width=4,
        ),
        stat(
            "Alerts firing",
            "Is anything wrong?",
            "Alerts about workers and the exporter that fire now; the runbook says what to do about each.",
            [instant('count(ALERTS{alertname=~"CML.+",alertstate="firing",region=~"$region|"})')],
            replace(conventions.COUNT, empty="None", thresholds=((1, "red"),), links=conventions.ON_CALL_LINK),
            width=8,
        ),
        stat(
            "Idling costs",
            "What do the idle workers cost?",
            "Dollars that the workers idle now cost in an hour, and in a day if they stay idle: the prices of the setting "
            "`workers.hourly_price`. A worker whose instance type has no price there counts as 0.",
            [instant(_IDLE_COST, "an hour"), instant(f"24 * {_IDLE_COST}", "a day")],
            Style("currencyUSD", "Set workers.hourly_price", decimals=2, minimum=0),
            width=8,
        ),
        conventions.data_age(width=8),
    ]


def _attention() -> list[Panel]:
    def count(title: str, question: str, description: str, recorded: str) -> Panel:
        style = replace(conventions.COUNT, empty="Not known of any worker", thresholds=((1, "red"),))
        return stat(title, question, description, [instant(f"sum({recorded}{{{IN_REGION}}})")], style, width=6)

    firing = alerts_firing(_OR_NO_REGION)
    soon, filled, full = filling(IN_REGION)
    return [
        table(
            "Alerts by severity",
            "Which alerts fire, and since when?",
            "Alerts that fire now, the most severe first, with the number of workers or exporters and the time of the oldest. "
            "Click an alert for what it means and what to do.",
            [
                instant(f"sort_desc(max by (alertname) ({firing}))"),
                instant(f"count by (alertname) ({firing})"),
                instant(f"1000 * min by (alertname) ({alerts_since(_OR_NO_REGION)})"),
            ],
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
            "cml_region:workers_ec2_impaired:sum",
        ),
        count(
            "Disk nearly full",
            "Is a disk about to be full?",
            "Running workers whose disk is above the alert threshold.",
            "cml_region:workers_disk_full:sum",
        ),
        count(
            "Not ready",
            "Does CML answer on every running worker?",
            "Running workers on which the manager has not seen CML ready; for some minutes after a start that is normal.",
            "cml_region:workers_not_ready:sum",
        ),
        count(
            "Unlicensed",
            "Does a worker lack its license?",
            "Running workers without a valid license; an evaluation license is valid.",
            "cml_region:workers_unlicensed:sum",
        ),
        table(
            "Fills up next",
            "Whose disk or memory is full soon?",
            f"Disks and memory of running workers that fill up, by what they reach in {PREDICTION_HOURS} hours along the "
            "straight line of the last 6 hours.",
            [instant(soon), instant(filled), instant(full)],
            (
                Column("worker", "Worker", conventions.ROW_LINK),
                Column("what", "What"),
                Column("Value #B", "Now", conventions.RATIO_CELL),
                Column("Value #A", f"In {PREDICTION_HOURS} h", conventions.FULL_CELL),
                Column("Value #C", "Full in", {"unit": "s", "decimals": 0}),
                Column("region", "Region"),
                Column("worker_id", "Worker id"),
            ),
            Style("none", "Nothing fills up"),
            sort=f"In {PREDICTION_HOURS} h",
            width=12,
            height=8,
        ),
        table(
            "Changed in the last hour",
            "What has changed?",
            "Workers of another status or instance than before, new ones, and ones that are gone; the newest change of each "
            "kind. New ones are known from the second hour of this Prometheus on.",
            [instant(f"1000 * topk(50, cml_worker:change_timestamp_seconds:max1h{{{IN_REGION}}})")],
            (
                Column("worker", "Worker", conventions.ROW_LINK),
                Column("change", "Change"),
                Column("Value", "When", conventions.MOMENT_CELL),
                Column("region", "Region"),
                Column("worker_id", "Worker id"),
            ),
            Style("none", "Nothing changed"),
            sort="When",
            width=12,
            height=8,
        ),
    ]


def _load() -> list[Panel]:
    return [
        _by_worker(
            "CPU by worker",
            "Which workers are busy?",
            "The three workers with the highest average in the time range, and the mean of all. The amber line "
            f"marks high CPU; the alert fires above the red line. {_PAST}",
            CPU,
            CPU_1H,
            conventions.CPU_RATIO,
        ),
        _by_worker(
            "Memory by worker",
            "Which workers are short of memory?",
            "The three workers with the highest average in the time range, and the mean of all. A worker without "
            f"the CloudWatch agent has no value. {_PAST}",
            MEMORY,
            MEMORY_1H,
            conventions.MEMORY_RATIO,
        ),
        bars(
            "Busiest now",
            "Which workers are busiest now?",
            "The running workers with the highest CPU in the newest 5 minutes.",
            instant(f"topk($top, cml_worker:cpu_utilization_ratio:top50{{{IN_REGION}}})", "{{worker}}"),
            replace(conventions.CPU_RATIO, empty="No value", decimals=0, links=conventions.SERIES_LINK),
            width=8,
        ),
        bars(
            "Longest idle",
            "Which running workers have been unused for longest?",
            "Time since the last activity, of running workers only; red after 4 hours, a full bar from a day on. The "
            "alert also requires no running node (no lab where nodes are not known) and almost no CPU load.",
            instant(f"topk($top, {idle_seconds(IN_REGION)})", "{{worker}}"),
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
    ran = running_by_hour(IN_REGION)
    live_code = f"cml_worker:status:code{{{IN_REGION}}}"
    code = with_history(live_code, f"{max_by_worker(ran)} >= bool 0.5")
    earlier = f"max by ({WORKER}) (changes({hourly_history(RUNNING_1H, IN_REGION, '$__range', at='@ end()')}))"
    code = only_top(f"({code})", f"(changes({live_code}[$__range] @ end()) or {earlier})")
    past = " or ".join(
        f'label_replace(count({ran} {share} 0.5), "status", "{status}", "", "")'
        for share, status in ((">=", "running"), ("<", "not running"))
    )
    idle = f"sum({idle_by_hour(IN_REGION)})"
    return [
        graph(
            "Workers by status over time",
            "When were workers started and stopped?",
            f"Number of workers in each status. {_PAST} It knows only whether a worker ran.",
            [Query(with_history(_BY_STATUS, past), "{{status}}")],
            replace(conventions.COUNT, fixed=colors | {"not running": _color(conventions.GREY)}),
            stacked=True,
            interval=HISTORY_STEP,
        ),
        graph(
            "Active labs and idle workers",
            "Does the number of running workers match the number of labs?",
            f"{conventions.LABS} Running workers, and idle workers among them. {_PAST}",
            [
                Query(
                    with_history(
                        f"sum(cml_region:active_labs_running:sum{{{IN_REGION}}})",
                        f"sum({of_running_by_hour(ACTIVE_LABS_1H, IN_REGION)})",
                    ),
                    "active labs",
                ),
                Query(with_history(_RUNNING_COUNT, f"sum({ran})"), "running workers"),
                Query(with_history(f"sum(cml_region:workers_idle:sum{{{IN_REGION}}})", idle), "idle workers"),
            ],
            conventions.COUNT,
            interval=HISTORY_STEP,
        ),
        timeline(
            "Status by worker",
            "Which worker was in which status, and when?",
            f"Status of the workers whose status changed most often in the time range. {_PAST}",
            Query(_named_over_time(code), "{{worker}}", interval=HISTORY_STEP),
            replace(
                conventions.COUNT,
                mappings=conventions.PAST_STATUS_CODES,
                links=conventions.SERIES_LINK,
            ),
            height=10,
        ),
    ]


_INVENTORY = (
    Column("worker", "Worker", conventions.ROW_LINK),
    Column("status", "Status", {"mappings": mappings(conventions.STATUS_TEXTS), "custom.displayMode": "color-background"}),
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
    queries = [
        instant(f"cml_worker:facts:info{{{IN_REGION}}}"),
        *(instant(unnamed(of_running(metric, IN_REGION))) for metric in (CPU, MEMORY, ACTIVE_LABS)),
        instant(max_by_worker(idle_seconds(IN_REGION))),
        instant(f"1000 * {live(CREATED, IN_REGION)}"),
        instant(f"topk by ({WORKER}) (1, {status_now(IN_REGION)})"),
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
        instant(f"max {by_region} ({_LISTED})"),
        instant(f"sum {by_region} ({runs_now(IN_REGION)})"),
        instant(f"sum {by_region} ({_IDLE})"),
        instant(f"sum {by_region} ({of_running(ACTIVE_LABS, IN_REGION)})"),
        instant(unnamed(f"cml_region:cpu_utilization_ratio:avg{{{IN_REGION}}}")),
        instant(unnamed(f"cml_region:memory_utilization_ratio:avg{{{IN_REGION}}}")),
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
            f"Average CPU of the running workers in each region. {_PAST}",
            [
                Query(
                    with_history(
                        f"max {by_region} (cml_region:cpu_utilization_ratio:avg{{{IN_REGION}}})",
                        f"avg {by_region} ({of_running_by_hour(CPU_1H, IN_REGION)})",
                    ),
                    "{{region}}",
                )
            ],
            conventions.CPU_RATIO,
            interval=HISTORY_STEP,
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
