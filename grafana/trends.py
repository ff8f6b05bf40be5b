"""Trends: the history by day and week, also of workers that are gone."""

from dataclasses import replace

from exporter.core.catalog import STATUS
from exporter.core.history_metrics import ACTIVE_LABS_1H, CPU_1H, GONE_AFTER_SECONDS, INFO_1H, MEMORY_1H, ByHour
from grafana import looks
from grafana.panels import Column, Dashboard, Panel, Query, Row, Style, bars, graph, now, stat, table
from grafana.promql import (
    HOURS_STEP,
    IN_REGION,
    SELECTED,
    WEEK_BEFORE,
    WORKER,
    Statistic,
    by_worker,
    display_name,
    idle_hours,
    last_seen,
    named,
    over,
    over_fleet,
    past_hours,
    past_info,
    running_hours,
    top,
)

_LABS = Style("none", looks.NO_HOURS, decimals=1, least=0)
_HOURS = Style("h", looks.NO_HOURS, decimals=0, least=0)
_CHANGE = Style("percentunit", "No history of the week before", decimals=1)
_CPU = replace(looks.RATIO, empty=looks.NO_HOURS, decimals=1)


def _name(expr: str) -> str:
    return named(expr, past_info(SELECTED))


def _fleet(metric: ByHour, window: str, before: str = "") -> str:
    """The mean of the workers' means; of labs the mean of their sum."""
    if metric is ACTIVE_LABS_1H:
        return over_fleet(metric, SELECTED, window, before=before)
    return f"avg({over('avg', metric, SELECTED, window, before=before)})"


def _averages() -> list[Panel]:
    def compared(title: str, question: str, what: str, metric: ByHour, style: Style) -> Panel:
        windows = (("1d", "24 h"), ("7d", "7 days"), ("30d", "30 days"))
        queries = [now(_fleet(metric, window), legend) for window, legend in windows]
        said = f"{what} of the last 24 hours, 7 days and 30 days, by whole hours."
        return stat(title, question, said, queries, style, width=8)

    workers = "Average of the workers' averages"
    return [
        compared("Average CPU", "How busy were the workers?", workers, CPU_1H, _CPU),
        compared("Average memory", "How full was their memory?", workers, MEMORY_1H, _CPU),
        compared(
            "Average active labs",
            "How much were they used?",
            "Labs running at a time, all workers together,",
            ACTIVE_LABS_1H,
            _LABS,
        ),
    ]


def _change(metric: ByHour) -> str:
    return f"{_fleet(metric, '7d')} - {_fleet(metric, '7d', WEEK_BEFORE)}"


def _weeks() -> list[Panel]:
    running = f"sum({running_hours(SELECTED, '7d')})"
    before = f"sum({running_hours(SELECTED, '7d', before=WEEK_BEFORE)})"
    points = "in percentage points: 5 % means from 20 % to 25 %, for example."

    def line(title: str, question: str, metric: ByHour, style: Style) -> Panel:
        queries = [
            Query(_fleet(metric, "$__interval"), "now", interval=HOURS_STEP),
            Query(_fleet(metric, "$__interval", WEEK_BEFORE), "a week earlier", interval=HOURS_STEP),
        ]
        said = "The workers chosen above by the hour, and the same a week earlier."
        return graph(title, question, said, queries, style, width=8)

    return [
        stat(
            "CPU against the week before",
            "Are the workers busier than last week?",
            f"Average of the last 7 days less that of the 7 days before, {points}",
            [now(_change(CPU_1H))],
            _CHANGE,
            width=6,
        ),
        stat(
            "Memory against the week before",
            "Do they need more memory than last week?",
            f"Average of the last 7 days less that of the 7 days before, {points}",
            [now(_change(MEMORY_1H))],
            _CHANGE,
            width=6,
        ),
        stat(
            "Labs against the week before",
            "Are they used more than last week?",
            "Labs running at a time on average of the last 7 days, less that of the 7 days before.",
            [now(_change(ACTIVE_LABS_1H))],
            replace(_CHANGE, unit="none"),
            width=6,
        ),
        stat(
            "Running hours against the week before",
            "Do we pay for more hours than last week?",
            "Hours that workers ran in the last 7 days, and in the 7 days before.",
            [now(running, "7 days"), now(before, "week before")],
            _HOURS,
            width=6,
        ),
        line("CPU, week over week", "When does this week differ from the last?", CPU_1H, _CPU),
        line("Memory, week over week", "When does memory differ from last week's?", MEMORY_1H, _CPU),
        line("Active labs, week over week", "When does use differ from last week's?", ACTIVE_LABS_1H, _LABS),
    ]


def _days() -> list[Panel]:
    def daily(title: str, question: str, metric: ByHour, style: Style) -> Panel:
        kinds: tuple[tuple[Statistic, str], ...] = (("avg", "average"), ("min", "lowest"), ("max", "highest"))
        queries = [Query(f"{kind}({over(kind, metric, SELECTED, '1d')})", legend, interval="1d") for kind, legend in kinds]
        return graph(
            title,
            question,
            "Each point stands for the 24 hours before it: the average worker, and the lowest and the highest value of any.",
            queries,
            style,
            width=8,
        )

    there = by_worker(f"last_over_time({past_hours(INFO_1H, SELECTED, '1d')})")
    hours = running_hours(SELECTED, "1d")
    rank = by_worker(f"avg_over_time({past_hours(CPU_1H.avg, SELECTED, '$__range', at='@ end()')})")
    return [
        daily("CPU by day", "Which days were busy?", CPU_1H, _CPU),
        daily("Memory by day", "On which days was memory full?", MEMORY_1H, _CPU),
        daily("Active labs by day", "On which days were they used?", ACTIVE_LABS_1H, _LABS),
        graph(
            "Workers by day",
            "Do we have more workers than we had?",
            "Workers that were there on each day, and how many that makes if each counts for the part of the day it ran.",
            [
                Query(f"count({there})", "there", interval="1d"),
                Query(f"sum({hours}) / 24", "running", interval="1d"),
            ],
            _LABS,
        ),
        graph(
            "CPU of the busiest workers by day",
            "Which workers were busy on which days?",
            "Daily average of the workers with the highest average in the time shown, terminated ones included.",
            [Query(_name(top(over("avg", CPU_1H, SELECTED, "1d"), rank)), "{{worker}}", interval="1d")],
            replace(_CPU, links=looks.SERIES_LINK),
        ),
    ]


def _hours() -> list[Panel]:
    def ranked(title: str, question: str, description: str, hours: str, style: Style) -> Panel:
        query = now(_name(f"topk($top, {hours})"), "{{worker}}")
        return bars(title, question, description, query, replace(style, links=looks.SERIES_LINK), width=12)

    return [
        ranked(
            "Running hours",
            "Which workers ran longest?",
            "Hours in the status running in the time shown, by worker: of each hour the part of its samples that say so. The "
            "hour under way does not count yet; of a worker that came or went within an hour all of it does.",
            running_hours(SELECTED, "$__range"),
            _HOURS,
        ),
        ranked(
            "Idle hours",
            "Which workers ran for nothing?",
            "Whole hours of the time shown in which a worker ran, had no lab and hardly used its CPU.",
            idle_hours(SELECTED, "$__range"),
            _HOURS,
        ),
    ]


_WORKERS = (
    Column("worker", "Worker", looks.ROW_LINK),
    Column("region", "Region"),
    Column("Value #B", "CPU 24 h", looks.CPU_CELL),
    Column("Value #C", "CPU 7 d", looks.CPU_CELL),
    Column("Value #D", "7 d before", looks.RATIO_CELL),
    Column("Value #E", "CPU highest", looks.RATIO_CELL),
    Column("Value #F", "Memory 7 d", looks.RATIO_CELL),
    Column("Value #G", "Running hours", {"unit": "h", "decimals": 1}),
    Column("Value #H", "Idle hours", {"unit": "h", "decimals": 0}),
    Column("worker_id", "Worker id"),
)


def _tables() -> list[Panel]:
    names = f"topk by ({WORKER}) (1, max by ({WORKER}, worker) ({display_name(past_info(SELECTED))}))"
    # Seen last before all others were: by the history itself, which knows times from before this Prometheus, too.
    seen = f"({last_seen(SELECTED)} < scalar(max({last_seen('')})) - {GONE_AFTER_SECONDS})"
    alive = f'max by ({WORKER}) ({STATUS.name}{{{SELECTED},status!="terminated"}}) == 1'
    return [
        table(
            "Workers",
            "How does each worker do, and did it change?",
            "Every worker with history in the time shown: averages of fixed times, the rest of the time shown.",
            [
                now(names),
                now(over("avg", CPU_1H, SELECTED, "1d")),
                now(over("avg", CPU_1H, SELECTED, "7d")),
                now(over("avg", CPU_1H, SELECTED, "7d", before=WEEK_BEFORE)),
                now(over("max", CPU_1H, SELECTED, "$__range")),
                now(over("avg", MEMORY_1H, SELECTED, "7d")),
                now(running_hours(SELECTED, "$__range")),
                now(idle_hours(SELECTED, "$__range")),
            ],
            _WORKERS,
            Style("none", looks.NO_HOURS),
            sort="CPU 7 d",
            height=12,
        ),
        table(
            "Terminated workers",
            "Which workers are gone, and since when?",
            "Workers with history in the time shown but none at its end: terminated, or no longer listed by the manager.",
            [
                now(f"{_name(f'1000 * {seen}')} unless on ({WORKER}) ({alive})"),
                now(f"{running_hours(SELECTED, '$__range')} and on ({WORKER}) {seen} unless on ({WORKER}) ({alive})"),
                now(f"{over('avg', CPU_1H, SELECTED, '$__range')} and on ({WORKER}) {seen} unless on ({WORKER}) ({alive})"),
            ],
            (
                Column("worker", "Worker", looks.ROW_LINK),
                Column("region", "Region"),
                Column("Value #A", "Last seen", {"unit": "dateTimeAsIso"}),
                Column("Value #B", "Running hours", {"unit": "h", "decimals": 1}),
                Column("Value #C", "Average CPU", looks.CPU_CELL),
                Column("worker_id", "Worker id"),
            ),
            Style("none", "No worker has gone in this time"),
            sort="Last seen",
        ),
    ]


DASHBOARD = Dashboard(
    uid=looks.TRENDS,
    title="CML / Trends",
    description="The history by hour, day and week: complete, from before Prometheus ran, and with the workers that are gone.",
    items=[
        Row("Averages"),
        *_averages(),
        Row("Week over week"),
        *_weeks(),
        Row("By day"),
        *_days(),
        Row("Hours in the time shown"),
        *_hours(),
        Row("Workers"),
        *_tables(),
    ],
    variables=[looks.past_region(), looks.past_worker(several=True), looks.TOP],
    annotations=[looks.alerts(IN_REGION), looks.RESTARTS],
    time_from="now-7d",
    refresh="",
)
