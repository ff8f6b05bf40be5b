"""Trends dashboard: the history by day and week, including workers that are gone."""

from dataclasses import replace

from exporter.core.history_metrics import ACTIVE_LABS_1H, CPU_1H, GONE_AFTER_SECONDS, INFO_1H, MEMORY_1H, ByHour
from grafana import conventions
from grafana.panels import Column, Dashboard, Panel, Query, Row, Style, bars, graph, instant, name_stat, stat, table
from grafana.promql import (
    HOURLY_STEP,
    IN_REGION,
    SELECTED,
    WEEK_BEFORE,
    WORKER,
    Statistic,
    fleet_labs,
    history_info,
    hourly_history,
    hours_missing,
    idle_hours,
    idle_hours_cost,
    last_seen,
    max_by_worker,
    only_top,
    over_time,
    running_hours,
    signed_change,
    with_display_name,
)

_LABS = Style("none", conventions.NO_HOURS, decimals=1, minimum=0)
_HOURS = Style(conventions.HOURS, conventions.NO_HOURS, decimals=0, minimum=0)
_CHANGE = Style("none", "No history of the week before")
_CPU = replace(conventions.RATIO, empty=conventions.NO_HOURS, decimals=0)


def _name(expr: str) -> str:
    return with_display_name(expr, history_info(SELECTED))


def _fleet(metric: ByHour, window: str, before: str = "") -> str:
    """Return the average of the workers' averages; for labs the average of their sum."""
    if metric is ACTIVE_LABS_1H:
        return fleet_labs(SELECTED, window, before=before)
    return f"avg({over_time('avg', metric, SELECTED, window, before=before)})"


def _averages() -> list[Panel]:
    def compared(title: str, question: str, what: str, metric: ByHour, style: Style) -> Panel:
        windows = (("1d", "24 h"), ("7d", "7 days"), ("30d", "30 days"))
        queries = [instant(_fleet(metric, window), legend) for window, legend in windows]
        said = f"{what} of the last 24 hours, 7 days, and 30 days, computed from hourly aggregates."
        return stat(
            title,
            question,
            said,
            queries,
            replace(style, empty=conventions.NO_HOURS_YET),
            width=7 if metric is not ACTIVE_LABS_1H else 6,
        )

    workers = "Average of the workers' averages"
    return [
        compared("Average CPU", "How busy were the workers?", workers, CPU_1H, _CPU),
        compared("Average memory", "How full was their memory?", workers, MEMORY_1H, _CPU),
        compared(
            "Average active labs",
            "How much were they used?",
            f"{conventions.LABS} Their number on all workers together, on average",
            ACTIVE_LABS_1H,
            _LABS,
        ),
        stat(
            "Hours without data",
            "How much of the last 7 days is known?",
            "Share of the last 7 days' whole hours in which no selected worker has a status or CPU. They count in no average "
            "and no hours; yellow from 20 %.",
            [instant(hours_missing(SELECTED, "7d", 168))],
            conventions.MISSING,
            width=4,
        ),
    ]


def _change(metric: ByHour) -> str:
    return f"{_fleet(metric, '7d')} - {_fleet(metric, '7d', WEEK_BEFORE)}"


def _weeks() -> list[Panel]:
    running = f"sum({running_hours(SELECTED, '7d')})"
    before = f"sum({running_hours(SELECTED, '7d', before=WEEK_BEFORE)})"
    points = "in percentage points: +5 pp means from 20 % to 25 %, for example."

    def line(title: str, question: str, metric: ByHour, style: Style) -> Panel:
        queries = [
            Query(_fleet(metric, "$__interval"), "now", interval=HOURLY_STEP),
            Query(_fleet(metric, "$__interval", WEEK_BEFORE), "a week earlier", interval=HOURLY_STEP),
        ]
        said = "Hourly averages of the selected workers, and the same a week earlier."
        return graph(title, question, said, queries, replace(style, fixed=conventions.COMPARED), width=8)

    return [
        name_stat(
            "CPU against the week before",
            "Are the workers busier than last week?",
            f"Average of the last 7 days minus that of the 7 days before, {points}",
            [instant(signed_change(f"100 * ({_change(CPU_1H)})"), "{{change}} pp")],
            _CHANGE,
            width=6,
        ),
        name_stat(
            "Memory against the week before",
            "Do they need more memory than last week?",
            f"Average of the last 7 days minus that of the 7 days before, {points}",
            [instant(signed_change(f"100 * ({_change(MEMORY_1H)})"), "{{change}} pp")],
            _CHANGE,
            width=6,
        ),
        name_stat(
            "Labs against the week before",
            "Are they used more than last week?",
            f"{conventions.LABS} Average of the last 7 days minus that of the 7 days before.",
            [instant(signed_change(_change(ACTIVE_LABS_1H)), "{{change}}")],
            _CHANGE,
            width=6,
        ),
        stat(
            "Running hours by week",
            "Do we pay for more hours than last week?",
            "Running hours of all workers in the last 7 days, and in the 7 days before.",
            [instant(running, "7 days"), instant(before, "week before")],
            replace(_HOURS, empty=conventions.NO_HOURS_YET, fixed=conventions.COMPARED),
            width=6,
        ),
        line("CPU, week over week", "When does this week differ from the last?", CPU_1H, _CPU),
        line("Memory, week over week", "When does memory differ from last week's?", MEMORY_1H, _CPU),
        line("Active labs, week over week", "When does the number of labs differ from last week's?", ACTIVE_LABS_1H, _LABS),
    ]


def _days() -> list[Panel]:
    def daily(title: str, question: str, metric: ByHour, style: Style) -> Panel:
        kinds: tuple[tuple[Statistic, str], ...] = (("avg", "average"), ("min", "lowest"), ("max", "highest"))
        queries = [Query(f"{kind}({over_time(kind, metric, SELECTED, '1d')})", legend, interval="1d") for kind, legend in kinds]
        return graph(
            title,
            question,
            "Each column covers the preceding 24 hours: the average of all workers, and the lowest and highest value of any.",
            queries,
            style,
            width=8,
            columns=True,
        )

    by_day = over_time("avg", CPU_1H, SELECTED, "1d")
    there = f"last_over_time({hourly_history(INFO_1H, SELECTED, '1d')})"
    hours = running_hours(SELECTED, "1d")
    rank = f"avg_over_time({hourly_history(CPU_1H.avg, SELECTED, '$__range', at='@ end()')})"
    return [
        daily("CPU by day", "Which days were busy?", CPU_1H, _CPU),
        daily("Memory by day", "On which days was memory full?", MEMORY_1H, _CPU),
        daily("Active labs by day", "On which days were they used?", ACTIVE_LABS_1H, _LABS),
        graph(
            "Workers by day",
            "Does the number of workers rise?",
            "Workers that existed on each day, and the same weighted by the share of the day each one ran.",
            [
                Query(f"count({there})", "existing", interval="1d"),
                Query(f"sum({hours}) / 24", "running", interval="1d"),
            ],
            replace(_LABS, fixed={"existing": {"decimals": 0}}),
            columns=True,
        ),
        graph(
            "CPU of the busiest workers by day",
            "Which workers were busy on which days?",
            "Daily average of the three workers with the highest average in the time range, including terminated ones, and the "
            "mean of all.",
            [
                Query(_name(only_top(max_by_worker(by_day), rank, conventions.LINES)), "{{worker}}", interval="1d"),
                Query(f"avg({by_day})", "mean of all", interval="1d"),
            ],
            replace(_CPU, links=conventions.SERIES_LINK, fixed=conventions.MEAN),
        ),
    ]


def _hours() -> list[Panel]:
    def ranked(title: str, question: str, description: str, hours: str, style: Style) -> Panel:
        query = instant(_name(f"topk($top, {max_by_worker(hours)})"), "{{worker}}")
        return bars(title, question, description, query, replace(style, links=conventions.SERIES_LINK), width=9)

    return [
        ranked(
            "Running hours",
            "Which workers ran longest?",
            "Hours in which a worker ran in the time range: the share of each hour's samples that say so, by status, else "
            "by CPU. The current hour does not count yet. An hour in which a worker was created or removed counts as a whole.",
            running_hours(SELECTED, "$__range"),
            _HOURS,
        ),
        ranked(
            "Idle hours",
            "Which workers were idle for longest?",
            "Whole hours in the time range in which a worker ran without a lab and with almost no CPU load.",
            idle_hours(SELECTED, "$__range"),
            _HOURS,
        ),
        stat(
            "Idling cost",
            "What did idle workers cost?",
            "Dollars that the idle time of all selected workers cost in the time range, by `workers.hourly_price`, since this "
            "Prometheus exists. A worker without a price counts as 0.",
            [instant(idle_hours_cost(SELECTED, "$__range"))],
            Style("currencyUSD", "Set workers.hourly_price", decimals=2, minimum=0),
            width=6,
            height=8,
        ),
    ]


_WORKERS = (
    Column("worker", "Worker", conventions.ROW_LINK),
    Column("region", "Region"),
    Column("Value #B", "CPU 24 h", conventions.CPU_CELL),
    Column("Value #C", "CPU 7 d", conventions.CPU_CELL),
    Column("Value #D", "7 d before", conventions.RATIO_CELL),
    Column("Value #E", "CPU highest", conventions.RATIO_CELL),
    Column("Value #F", "Memory 7 d", conventions.RATIO_CELL),
    Column("Value #G", "Running hours", {"unit": conventions.HOURS, "decimals": 1}),
    Column("Value #H", "Idle hours", {"unit": conventions.HOURS, "decimals": 0}),
    Column("worker_id", "Worker id"),
)


def _tables() -> list[Panel]:
    names = f"topk by ({WORKER}) (1, max by ({WORKER}, worker) ({history_info(SELECTED)}))"
    # Compares with the newest sample of any worker, because the history also covers time before this Prometheus. While the
    # history lags by hours, the recorded status says who is there.
    newest = f"scalar(max({last_seen('', '2h')})) - {GONE_AFTER_SECONDS}"
    there = f"{last_seen(SELECTED, '2h')} >= {newest}"
    alive = f'cml_worker:status:current{{{SELECTED},status!="terminated"}}'

    def of_gone(expr: str) -> str:
        return f"{expr} unless on ({WORKER}) {there} unless on ({WORKER}) {alive}"

    return [
        table(
            "Workers",
            "What are the averages of each worker, and did they change?",
            "Every worker with history in the time range. Columns with 24 h or 7 d cover fixed times, others the time range.",
            [
                instant(names),
                instant(max_by_worker(over_time("avg", CPU_1H, SELECTED, "1d"))),
                instant(max_by_worker(over_time("avg", CPU_1H, SELECTED, "7d"))),
                instant(max_by_worker(over_time("avg", CPU_1H, SELECTED, "7d", before=WEEK_BEFORE))),
                instant(max_by_worker(over_time("max", CPU_1H, SELECTED, "$__range"))),
                instant(max_by_worker(over_time("avg", MEMORY_1H, SELECTED, "7d"))),
                instant(max_by_worker(running_hours(SELECTED, "$__range"))),
                instant(max_by_worker(idle_hours(SELECTED, "$__range"))),
            ],
            _WORKERS,
            Style("none", conventions.NO_HOURS),
            sort="CPU 7 d",
            height=12,
        ),
        table(
            "Terminated workers",
            "Which workers are gone, and since when?",
            "Workers with history in the time range but not at its end: terminated, or their worker document was deleted.",
            [
                instant(of_gone(_name(f"1000 * {max_by_worker(last_seen(SELECTED))}"))),
                instant(of_gone(max_by_worker(running_hours(SELECTED, "$__range")))),
                instant(of_gone(max_by_worker(over_time("avg", CPU_1H, SELECTED, "$__range")))),
            ],
            (
                Column("worker", "Worker", conventions.ROW_LINK),
                Column("region", "Region"),
                Column("Value #A", "Last seen", {"unit": "dateTimeAsIso"}),
                Column("Value #B", "Running hours", {"unit": conventions.HOURS, "decimals": 1}),
                Column("Value #C", "Average CPU", conventions.CPU_CELL),
                Column("worker_id", "Worker id"),
            ),
            Style("none", "No worker disappeared in this time range"),
            sort="Last seen",
        ),
    ]


DASHBOARD = Dashboard(
    uid=conventions.TRENDS,
    title="CML / Trends",
    description="The history by hour, day, and week: complete, including time before Prometheus ran and workers that are gone.",
    items=[
        Row("Averages"),
        *_averages(),
        Row("Week over week"),
        *_weeks(),
        Row("By day"),
        *_days(),
        Row("Hours in the time range"),
        *_hours(),
        Row("Workers"),
        *_tables(),
    ],
    variables=[conventions.history_region_variable(), conventions.history_worker_variable(several=True), conventions.TOP],
    annotations=[conventions.alerts(IN_REGION), conventions.RESTARTS],
    time_from="now-7d",
    refresh="",
)
