"""Builders of the dashboards' PromQL.

Names come from the catalog, thresholds from prometheus/rules/settings.yml. With several exporters, or the old and the new one
during a redeploy, the greater value counts, as in the recording rules. The history is read through ranges only, because its
newest sample is older than Prometheus's lookback.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from exporter.core.catalog import HOURLY_PRICE, INFO, METRICS_BY_NAME, STATUS, Metric
from exporter.core.history_metrics import (
    ACTIVE_LABS_1H,
    INFO_1H,
    LOOKBACK_SECONDS,
    NEWEST_1H,
    RUNNING_1H,
    STORE,
    UNUSED_CPU_1H,
    ByHour,
    HourlyMetric,
)
from exporter.core.model import STATUSES
from exporter.core.periods import format_duration

WORKER = "worker_id, region"
"""The labels that identify a worker."""
IN_REGION = 'region=~"$region"'
SELECTED = f'{IN_REGION},worker_id=~"$workers"'
THE_WORKER = 'worker_id="$worker_id"'
_STORED = f'store="{STORE}"'
RUNNING = 'status="running"'
HISTORY_LOOKBACK = format_duration(LOOKBACK_SECONDS)
"""The range of a selector of the history that reads one sample per worker."""
HISTORY_STEP = "5m"
"""The minimum step of a graph of the history: the default period."""
HISTORY_SAMPLE = "4m59s"
"""The range of a selector in a subquery in HISTORY_STEP: a second shorter, so that each sample is read once. Prometheus's
lookback is as long as the step and before Prometheus 3 includes both ends: it repeats the sample before a missing one."""
HOURLY_STEP = "1h"
"""The minimum step of a graph of hourly aggregates."""

_SETTINGS = Path(__file__).parents[1] / "prometheus" / "rules" / "settings.yml"


def threshold(name: str, **labels: str) -> float:
    """Return the alert threshold `cml:threshold:<name>` that has these labels. Raises KeyError."""
    return _constant(f"cml:threshold:{name}", **labels)


def _constant(record: str, **labels: str) -> float:
    """Return the recorded constant that has these labels. Raises KeyError."""
    for rule in _rules():
        if rule.get("record") == record and rule.get("labels", {}) == labels:
            return float(rule["expr"].rpartition("vector(")[2].removesuffix(")"))
    raise KeyError(f"{record} with the labels {labels} is not in {_SETTINGS}")


@cache
def _rules() -> list[dict[str, Any]]:
    """Return the rules of the settings; read once, because each threshold is looked up in them."""
    return [rule for group in yaml.safe_load(_SETTINGS.read_text())["groups"] for rule in group["rules"]]


_CODES = {status: int(_constant("cml:status:code", status=status)) for status in STATUSES}
CODES = {status: _CODES[status] for status in sorted(STATUSES, key=_CODES.__getitem__)}
"""Status → its number, for panels that take only numbers; ascending."""

SEVERITY_CODES = {
    severity: int(_constant("cml:severity:code", severity=severity)) for severity in ("critical", "warning", "info")
}
"""Severity of an alert → its number, for a table that is sorted by it."""


def exporter_metric(name: str, matchers: str = "") -> str:
    """Return a selector of an exporter metric, by its name without the prefix cml_exporter_."""
    metric = METRICS_BY_NAME[f"cml_exporter_{name}"]
    return f"{metric.name}{_braced(matchers)}"


def live(metric: Metric, matchers: str, more: str = "") -> str:
    """Return the newest value of each worker on /metrics."""
    return f"max by ({WORKER}) ({metric.name}{{{_join(matchers, more)}}})"


def of_running(metric: Metric, matchers: str) -> str:
    """Return the newest recorded value of each worker that runs; another has none from the moment its status says so."""
    return f"{metric.name.replace('cml_worker_', 'cml_worker:')}:running{{{matchers}}}"


def history_selector(metric: Metric, matchers: str, more: str = "") -> str:
    """Return a selector of the history, to be used with a range."""
    return f"{metric.name}{{{_join(_STORED, matchers, more)}}}"


def history_running(metric: Metric, matchers: str) -> str:
    """Return the history's value of each worker that no status says not to run, for subqueries in HISTORY_STEP."""
    values = f"last_over_time({history_selector(metric, matchers)}[{HISTORY_SAMPLE}])"
    other = history_selector(STATUS, matchers, 'status!="running"')
    return f"({values} unless on ({WORKER}) last_over_time({other}[{HISTORY_SAMPLE}]) == 1)"


WEEK_BEFORE = "6d23h59m59s"
"""One week minus the second of `hourly_history`."""


def hourly_history(rollup: HourlyMetric, matchers: str, window: str, *, before: str = "", at: str = "") -> str:
    """Return a range of hourly aggregates.

    Their timestamps are the ends of hours. Before Prometheus 3 a range includes both its ends, so a day that ends on the hour
    would have 25 values. The offset shifts the range by a second; therefore `before` is a second less than the intended time.
    """
    return f"{rollup.name}{{{_join(_STORED, matchers)}}}[{window}]{_suffixed(at)} {_offset(before)}"


def _offset(before: str) -> str:
    """Return the offset of `hourly_history`."""
    return f"offset {before or '-1s'}"


Statistic = Literal["avg", "min", "max"]


def over_time(function: Statistic, metric: ByHour, matchers: str, window: str, *, before: str = "") -> str:
    """Return `function`_over_time of each worker's hourly aggregates."""
    return f"{function}_over_time({hourly_history(getattr(metric, function), matchers, window, before=before)})"


def max_by_worker(expr: str) -> str:
    """Return one series per worker without further labels, such as the history's `store`, for what a panel shows as it is."""
    return f"max by ({WORKER}) ({expr})"


def unnamed(selector: str) -> str:
    """Return the same series without their name, which in a table is a column: rows of two names are not merged."""
    return f"0 + {selector}"


def _suffixed(at: str) -> str:
    return f" {at}" if at else ""


def _join(*matchers: str) -> str:
    return ",".join(each for each in matchers if each)


def in_status(status: str, matchers: str) -> str:
    """Return 1 for each worker whose recorded status is this one."""
    return f"cml_worker:status:current{{{_join(matchers, _status(status))}}}"


def _status(status: str) -> str:
    return f'status="{status}"'


# -- names -------------------------------------------------------------------------------------------------------------


def with_display_name(expr: str, info: str) -> str:
    """Add the label `worker` to series of workers: the name, or the id of a worker without a name.

    topk leaves one info series per worker, also with two exporters or after a rename.
    """
    return f"{expr} * on ({WORKER}) group_left (worker) topk by ({WORKER}) (1, {info})"


def live_info(matchers: str) -> str:
    """Return the info series of /metrics."""
    return f"{INFO.name}{{{matchers}}}"


def history_info(matchers: str) -> str:
    """Return the info series of every worker with history in the time range, including those that are gone.

    They are hourly, so a range below an hour may contain none: then those of the last two hours.
    """
    facts = (f"last_over_time({hourly_history(INFO_1H, matchers, window)})" for window in ("$__range", "2h"))
    return f"({' or '.join(facts)})"


def only_top(expr: str, rank: str, most: str = "$top") -> str:
    """Keep only the first workers by `rank`, which is one number for the whole range, so that a graph stays readable."""
    return f"({expr} and on ({WORKER}) topk({most}, {rank}))"


def step_average(metric: Metric, matchers: str) -> str:
    """Return the average over a step of the graph of each worker that runs at its end: a peak between two points counts."""
    value = of_running(metric, matchers)
    return f"(avg_over_time({value}[$__interval]) and {value})"


# -- made of several metrics -------------------------------------------------------------------------------------------


def status_code(status_is_1: str) -> str:
    """Return each worker's status as a number, from series per status of which one is 1.

    The numbers are those at the end of the range, also for the time before they were recorded.
    """
    return f"max by ({WORKER}) ({status_is_1} * on (status) group_left () (cml:status:code @ end()))"


def recorded_status_code(matchers: str) -> str:
    """Return each worker's newest recorded status as a number."""
    return f"cml_worker:status:code{{{matchers}}}"


def alerts_firing(matchers: str = "") -> str:
    """Return the number of the severity of each alert that fires, with all of its labels."""
    return f"cml:alert_severity:firing{_braced(matchers)}"


def alerts_since(matchers: str = "") -> str:
    """Return the time (seconds) since which each alert that fires is active, with all of its labels."""
    return f"cml:alert_active_timestamp_seconds:firing{_braced(matchers)}"


def _braced(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""


def runs_now(matchers: str) -> str:
    """Return 1 for each worker that runs, 0 for each other one."""
    return f"(cml_worker:status:code{{{matchers}}} == bool {CODES['running']})"


def status_now(matchers: str) -> str:
    """Return the series of each worker's current status, with the label `status` and the value 1."""
    return f"max by ({WORKER}, status) (cml_worker:status:current{{{matchers}}})"


def history_status_code(matchers: str, window: str, at: str = "") -> str:
    """Return `status_code` from the newest sample of the history in the window."""
    return status_code(f"last_over_time({history_selector(STATUS, matchers)}[{window}]{_suffixed(at)})")


def idle_seconds(matchers: str) -> str:
    """Return the recorded seconds since each running worker's last activity, with the label `worker`."""
    return f"cml_worker:idle_seconds:running{{{matchers}}}"


def running_hours(matchers: str, window: str, *, before: str = "") -> str:
    """Return the hours each worker ran: the share of each hour's samples of a running worker, independent of the period."""
    return f"sum_over_time({hourly_history(RUNNING_1H, matchers, window, before=before)})"


def hours_missing(matchers: str, window: str, hours: int) -> str:
    """Return the share of a window's whole hours in which no worker is known to have run or not."""
    return f"min(1 - count_over_time({hourly_history(RUNNING_1H, matchers, window)}) / {hours})"


def idle_hours(matchers: str, window: str, *, before: str = "") -> str:
    """Return the whole hours in which each worker ran without a lab and with CPU below the alert threshold; else 0."""
    return f"sum_over_time(({idle_by_hour(matchers)})[{window}:1h] {_offset(before)})"


def idle_by_hour(matchers: str) -> str:
    """Return 1 for each worker that ran in the whole last hour without a lab and with CPU below the alert threshold; else 0.

    The threshold is the current one, also for time before it was recorded; where the whole range is before that, the one of
    prometheus/rules/settings.yml at the time of `make dashboards`.
    """
    shipped = threshold("idle_cpu_ratio")
    threshold_now = f"on () group_left () (max(cml:threshold:idle_cpu_ratio @ end()) or vector({shipped}))"
    return f"{_each_hour(UNUSED_CPU_1H, matchers)} < bool {threshold_now}"


def fleet_labs(matchers: str, window: str, *, before: str = "") -> str:
    """Return the average over time of the labs of all workers: each hour's sum counts once, whichever workers existed.

    A worker that did not run in an hour counts as 0: the history keeps what the document of a stopped worker says. An hour in
    which none ran counts as 0, also where no document says anything; one without any sample does not count.
    """
    total = f"sum({_each_hour(ACTIVE_LABS_1H.running, matchers)})"
    return f"avg_over_time({total}[{window}:1h] {_offset(before)})"


def _each_hour(rollup: HourlyMetric, matchers: str) -> str:
    """Return each worker's value of the hour that ends now, for subqueries in steps of an hour."""
    return f"last_over_time({hourly_history(rollup, matchers, '1h')})"


def signed_change(change: str) -> str:
    """Return one series of value 1 whose label `change` is the number with a sign and an arrow, with one decimal.

    No unit of Grafana has a sign, an arrow, and a suffix at once. The label `number` is the number alone.
    """
    text = f'count_values("number", round({change}, 0.1))'
    for pattern, shown in (("(.*)", "▲ +$1"), ("-(.+)", "▼ −$1"), ("-?0", "= 0")):
        text = f'label_replace({text}, "change", "{shown}", "number", "{pattern}")'
    return text


def last_seen(matchers: str, window: str = "$__range") -> str:
    """Return the UTC second in which the newest period of each worker in the window ended."""
    return f"max_over_time({hourly_history(NEWEST_1H, matchers, window)})"


# -- counters of the exporters -----------------------------------------------------------------------------------------


def counted(counter: str, window: str = "$__interval", matchers: str = "") -> str:
    """Return by how much a counter of all exporters rose in one step of the graph, as a whole number.

    Recorded by the minute in prometheus/rules/dashboards.yml, with the counter's labels that tell what it counted. Prometheus's
    `increase` would extrapolate, and miss what is counted between two windows or before the first scrape.
    """
    return f"sum_over_time(cml_exporter:{counter}:increase1m{_braced(matchers)}[{window}])"


def counted_by_exporter(counter: str, matchers: str, by: str = "") -> str:
    """Return the same for the exporters that the matchers select, by exporter."""
    selected = _join(matchers, f'counter="{counter}"')
    labels = ", ".join(filter(None, ("instance", by)))
    return f"sum by ({labels}) (sum_over_time(cml_exporter:counters:increase1m{{{selected}}}[$__interval]))"


# -- the fleet at a glance ---------------------------------------------------------------------------------------------


def with_history(live_value: str, history: str) -> str:
    """Return `live_value`, and `history` at times at which this Prometheus has recorded no status, such as before it existed.

    Elsewhere a worker without a live value has none: a stopped worker's last hour must not return. The recorded status, not a
    scraped series, because `live_value` is recorded, too: an upgrade that brings the rule leaves no hole.
    """
    return f"{live_value} or (({history}) unless on () count(cml_worker:status:code))"


def of_running_by_hour(metric: ByHour, matchers: str) -> str:
    """Return each worker's average of the last whole hour, of workers that ran in it."""
    return _each_hour(metric.running, matchers)


def running_by_hour(matchers: str) -> str:
    """Return the share of the last whole hour in which each worker ran."""
    return _each_hour(RUNNING_1H, matchers)


def ranked(metric: Metric, by_hour: ByHour, matchers: str) -> str:
    """Return each worker's average of the time range: that of /metrics, or the history's where there is none."""
    here = f"avg_over_time({metric.name}{{{matchers}}}[$__range] @ end())"
    past = f"avg_over_time({hourly_history(by_hour.avg, matchers, '$__range', at='@ end()')})"
    return f"({max_by_worker(here)} or {max_by_worker(past)})"


def infos_of_range(matchers: str) -> str:
    """Return the info series of every worker of the time range, from /metrics and from the history."""
    past = f"last_over_time({hourly_history(INFO_1H, matchers, '$__range', at='@ end()')})"
    return f"(last_over_time({INFO.name}{{{matchers}}}[$__range] @ end()) or {past})"


_IDLE_STEP_MINUTES = 5


def idle_hours_cost(matchers: str, window: str) -> str:
    """Return the dollars that the idle time of a window cost, of workers whose price Prometheus knows in the window.

    The idle time is that which Prometheus recorded, every 5 minutes: the history's idle hours are slow for a large fleet.
    """
    price = max_by_worker(f"last_over_time({HOURLY_PRICE.name}{{{matchers}}}[{window}])")
    idle = f"sum_over_time(cml_worker:idle:bool{{{matchers}}}[{window}:{_IDLE_STEP_MINUTES}m])"
    return f"sum({idle} * on ({WORKER}) {price}) * {_IDLE_STEP_MINUTES} / 60 or 0 * sum({price})"


PREDICTION_HOURS = 24
"""As prometheus/rules/dashboards.yml records what fills up."""


def filling(matchers: str) -> tuple[str, str, str]:
    """Return values of running workers' disks and memory that fill up: in 24 hours, now, and seconds until full.

    They have the label `what`: disk or memory. The first has the label `worker`. Only of the first few (variable `top`) by it.
    """
    first = f"topk($top, cml_worker:utilization_ratio:predict24h{{{matchers}}})"
    labels = f"{WORKER}, what"

    def same(recorded: str) -> str:
        return f"max by ({labels}) ({recorded}{{{matchers}}} and on ({labels}) {first})"

    return first, same("cml_worker:utilization_ratio:filling"), same("cml_worker:full_seconds:deriv6h")
