"""Fleet overview: what runs now, what is busy, what is idle."""

from dataclasses import replace

from exporter.core.catalog import ACTIVE_LABS, CPU, CREATED, INFO, MEMORY, STATUS, Metric
from grafana import looks
from grafana.panels import Column, Dashboard, Panel, Query, Row, Style, bars, graph, mappings, now, stat, table, timeline
from grafana.promql import (
    IN_REGION,
    RUNNING,
    WORKER,
    display_name,
    idle_seconds,
    in_status,
    live,
    live_info,
    live_status_code,
    named,
    top,
)

_BY_STATUS = f"count by (status) (max by ({WORKER}, status) ({STATUS.name}{{{IN_REGION}}}) == 1)"
_IDLE = f"cml_worker:idle:bool{{{IN_REGION}}}"
_RUNNING = in_status("running", IN_REGION)


def _name(expr: str) -> str:
    return named(expr, live_info(IN_REGION))


def _rank(metric: Metric) -> str:
    return f"max by ({WORKER}) (avg_over_time({metric.name}{{{IN_REGION}}}[$__range] @ end()))"


def _by_worker(title: str, question: str, description: str, metric: Metric, style: Style) -> Panel:
    query = Query(_name(top(live(metric, IN_REGION), _rank(metric))), "{{worker}}")
    return graph(title, question, description, [query], replace(style, links=looks.SERIES_LINK))


def _now_row() -> list[Panel]:
    return [
        stat(
            "Workers",
            "How many workers are there?",
            "Workers the manager knows, in any status. A terminated one counts for another hour.",
            [now(f"count({live(INFO, IN_REGION)})")],
            looks.COUNT,
            width=4,
        ),
        stat(
            "Running",
            "How many of them run, and cost money?",
            "Workers whose status is running.",
            [now(f"sum({live(STATUS, IN_REGION, RUNNING)})")],
            looks.COUNT,
            width=4,
        ),
        stat(
            "Idle now",
            "How many run for nothing?",
            "Running workers without an active lab and with hardly any CPU (less than the alerts' threshold). Stop "
            "them if they stay so.",
            [now(f"sum({_IDLE})")],
            replace(looks.COUNT, empty="No running worker measured", thresholds=((1, "yellow"), (5, "orange"))),
            width=4,
        ),
        stat(
            "Active labs",
            "How many labs are running?",
            "Labs that are running, on all workers together.",
            [now(f"sum({live(ACTIVE_LABS, IN_REGION)})")],
            looks.COUNT,
            width=3,
        ),
        stat(
            "Mean CPU",
            "How busy is the fleet?",
            "Average CPU of the workers that have a value, each counted once.",
            [now(f"avg({live(CPU, IN_REGION)})")],
            replace(looks.CPU_RATIO, empty="No value", decimals=1),
            width=3,
        ),
        stat(
            "Mean memory",
            "How full is the fleet's memory?",
            "Average memory of the workers that have a value; only those with the CloudWatch agent do.",
            [now(f"avg({live(MEMORY, IN_REGION)})")],
            replace(looks.MEMORY_RATIO, empty="No value", decimals=1),
            width=3,
        ),
        stat(
            "Alerts firing",
            "Is anything wrong?",
            "Alerts about workers and the exporter that are firing now; the runbook says what to do about each.",
            [now('count(ALERTS{alertname=~"CML.+",alertstate="firing",region=~"$region|"})')],
            replace(looks.COUNT, empty="None", thresholds=((1, "red"),)),
            width=3,
        ),
    ]


def _load() -> list[Panel]:
    return [
        _by_worker(
            "CPU by worker",
            "Which workers are busy?",
            "The workers with the highest average in the time shown. The lines across are where a value is high, and "
            "where the alert comes.",
            CPU,
            looks.CPU_RATIO,
        ),
        _by_worker(
            "Memory by worker",
            "Which workers run out of memory?",
            "The workers with the highest average in the time shown. A worker without the CloudWatch agent has no value.",
            MEMORY,
            looks.MEMORY_RATIO,
        ),
        bars(
            "Busiest now",
            "Who is busiest at this moment?",
            "The workers with the highest CPU of the newest 5 minutes.",
            now(_name(f"topk($top, {live(CPU, IN_REGION)})"), "{{worker}}"),
            replace(looks.CPU_RATIO, empty="No value", links=looks.SERIES_LINK),
            width=8,
        ),
        bars(
            "Longest idle",
            "Which running worker has nobody used for longest?",
            "Time since the manager last saw activity, of running workers only; red after 4 hours. The alert also wants that "
            "it has no lab and hardly any CPU.",
            now(_name(f"topk($top, {idle_seconds(IN_REGION)} and on ({WORKER}) {_RUNNING})"), "{{worker}}"),
            replace(
                looks.SECONDS,
                empty="No running worker with a known activity",
                thresholds=looks.LONG_IDLE,
                links=looks.SERIES_LINK,
            ),
            width=8,
        ),
        bars(
            "Workers by status",
            "In what status are the workers?",
            "How many workers are in each status now.",
            now(_BY_STATUS, "{{status}}"),
            replace(looks.COUNT, fixed={name: _color(color) for name, color in looks.COLORS.items()}),
            width=8,
        ),
    ]


def _color(color: str) -> dict[str, object]:
    return {"color": {"mode": "fixed", "fixedColor": color}}


def _over_time() -> list[Panel]:
    colors = {name: _color(color) for name, color in looks.COLORS.items()}
    code = top(live_status_code(IN_REGION), f"sum by ({WORKER}) (changes({STATUS.name}{{{IN_REGION}}}[$__range] @ end()))")
    return [
        graph(
            "Workers by status over time",
            "When did workers come and go?",
            "How many workers were in each status.",
            [Query(_BY_STATUS, "{{status}}")],
            replace(looks.COUNT, fixed=colors),
            stacked=True,
        ),
        graph(
            "Active labs and idle workers",
            "Do labs and running workers go together?",
            "Labs that were running, workers that were running, and those of them that were idle.",
            [
                Query(f"sum({live(ACTIVE_LABS, IN_REGION)})", "active labs"),
                Query(f"sum({live(STATUS, IN_REGION, RUNNING)})", "running workers"),
                Query(f"sum({_IDLE})", "idle workers"),
            ],
            looks.COUNT,
        ),
        timeline(
            "Status by worker",
            "Which worker was in what status, when?",
            "The workers whose status changed most in the time shown, each a strip.",
            Query(_name(code), "{{worker}}"),
            replace(looks.COUNT, mappings=looks.STATUS_CODES, links=looks.SERIES_LINK),
            height=10,
        ),
    ]


_INVENTORY = (
    Column("worker", "Worker", looks.ROW_LINK),
    Column("status", "Status", {"mappings": mappings(looks.STATUS_TEXTS), "custom.displayMode": "color-text"}),
    Column("region", "Region"),
    Column("Value #B", "CPU", looks.CPU_CELL),
    Column("Value #C", "Memory", looks.MEMORY_CELL),
    Column("Value #D", "Labs"),
    Column("Value #E", "Idle for", looks.IDLE_CELL),
    Column("Value #F", "Created", looks.MOMENT_CELL),
    Column("instance_type", "Type"),
    Column("cml_version", "CML"),
    Column("instance_id", "Instance"),
    Column("worker_id", "Worker id"),
)


def _inventory() -> Panel:
    facts = f"{WORKER}, worker, instance_id, instance_type, cml_version"
    info = display_name(live_info(IN_REGION))
    queries = [
        now(f"topk by ({WORKER}) (1, max by ({facts}) ({info}))"),
        now(live(CPU, IN_REGION)),
        now(live(MEMORY, IN_REGION)),
        now(live(ACTIVE_LABS, IN_REGION)),
        now(f"{idle_seconds(IN_REGION)} and on ({WORKER}) {_RUNNING}"),
        now(f"1000 * {live(CREATED, IN_REGION)}"),
        now(f"topk by ({WORKER}) (1, max by ({WORKER}, status) ({STATUS.name}{{{IN_REGION}}}) == 1)"),
    ]
    return table(
        "Inventory",
        "What do we have, and how is each of them?",
        "All workers with their newest values. A worker's name leads to its own dashboard; the funnel of a heading filters.",
        queries,
        _INVENTORY,
        replace(looks.COUNT, decimals=None),
        sort="CPU",
        height=12,
    )


def _regions() -> list[Panel]:
    by_region = "by (region)"
    queries = [
        now(f"count {by_region} ({live(INFO, IN_REGION)})"),
        now(f"sum {by_region} ({live(STATUS, IN_REGION, RUNNING)})"),
        now(f"sum {by_region} ({_IDLE})"),
        now(f"sum {by_region} ({live(ACTIVE_LABS, IN_REGION)})"),
        now(f"avg {by_region} ({live(CPU, IN_REGION)})"),
        now(f"avg {by_region} ({live(MEMORY, IN_REGION)})"),
    ]
    return [
        table(
            "Regions",
            "How do the regions compare?",
            "Each AWS region with its workers, labs and average use.",
            queries,
            (
                Column("region", "Region"),
                Column("Value #A", "Workers"),
                Column("Value #B", "Running"),
                Column("Value #C", "Idle"),
                Column("Value #D", "Labs"),
                Column("Value #E", "CPU", looks.CPU_CELL),
                Column("Value #F", "Memory", looks.MEMORY_CELL),
            ),
            replace(looks.COUNT, decimals=None),
            sort="Workers",
            width=12,
            height=8,
        ),
        graph(
            "CPU by region",
            "Which region is busy, and when?",
            "Average CPU of the workers of each region.",
            [Query(f"avg {by_region} ({live(CPU, IN_REGION)})", "{{region}}")],
            looks.CPU_RATIO,
        ),
    ]


DASHBOARD = Dashboard(
    uid=looks.FLEET,
    title="CML / Fleet overview",
    description="All workers at a glance: what runs, what is busy, what is idle.",
    items=[
        Row("Now"),
        *_now_row(),
        Row("Load"),
        *_load(),
        Row("Over time"),
        *_over_time(),
        Row("Inventory"),
        _inventory(),
        Row("By region"),
        *_regions(),
    ],
    variables=[looks.REGION, looks.TOP],
    annotations=[looks.alerts(IN_REGION), looks.RESTARTS],
)
