"""The parts that the dashboards' queries are made of.

Names come from the catalog, thresholds from prometheus/rules/settings.yml. Of several exporters, or of the old and the new one
of a redeploy, the greater value counts, as in the recording rules. The history is read through ranges only, since its newest
sample is older than Prometheus' lookback.
"""

from pathlib import Path
from typing import Literal

import yaml

from exporter.core.catalog import INFO, LAST_ACTIVITY, METRICS_BY_NAME, STATUS, Metric
from exporter.core.history_metrics import ACTIVE_LABS_1H, CPU_1H, INFO_1H, NEWEST_1H, RUNNING_1H, STORE, ByHour, HourlyMetric
from exporter.core.model import STATUSES

WORKER = "worker_id, region"
"""What makes a worker's series one."""
IN_REGION = 'region=~"$region"'
SELECTED = f'{IN_REGION},worker_id=~"$workers"'
THE_WORKER = 'worker_id="$worker_id"'
_STORED = f'store="{STORE}"'
RUNNING = 'status="running"'
HISTORY_STEP = "5m"
"""The least distance of two points of a graph of the history: its usual period."""
HOURS_STEP = "1h"
"""The same of a graph of the history by the hour."""

_SETTINGS = Path(__file__).parents[1] / "prometheus" / "rules" / "settings.yml"

CODES = {status: code for code, status in enumerate(("running", *(each for each in STATUSES if each != "running")), 1)}
"""Status → the number that stands for it where a panel takes only numbers."""


def threshold(name: str, **labels: str) -> float:
    """The alerts' number `cml:threshold:<name>`, of several the one with these labels."""
    for group in yaml.safe_load(_SETTINGS.read_text())["groups"]:
        for rule in group["rules"]:
            if rule.get("record") == f"cml:threshold:{name}" and rule.get("labels", {}) == labels:
                return float(rule["expr"].removeprefix("vector(").removesuffix(")"))
    raise KeyError(f"cml:threshold:{name} is not in {_SETTINGS}")


def own(name: str, matchers: str = "") -> str:
    """A selector of one of the exporter's own metrics, by the name without prefix."""
    metric = METRICS_BY_NAME[f"cml_exporter_{name}"]
    return f"{metric.name}{{{matchers}}}"


def live(metric: Metric, matchers: str, more: str = "") -> str:
    """What /metrics says of each worker."""
    return f"max by ({WORKER}) ({metric.name}{{{_all(matchers, more)}}})"


def past(metric: Metric, matchers: str, more: str = "") -> str:
    """A selector of the history; only for the functions of ranges below."""
    return f"{metric.name}{{{_all(_STORED, matchers, more)}}}"


WEEK_BEFORE = "6d23h59m59s"
"""A week, less the second of `past_hours`."""


def past_hours(rollup: HourlyMetric, matchers: str, window: str, *, before: str = "", at: str = "") -> str:
    """A range of the history by the hour.

    Its values stand at the ends of hours, and until Prometheus 3 a range has both its ends, so that on the hour a day would
    have 25 of them. A second later it never has: hence the offset, which makes `before` a second less than what is meant.
    """
    return f"{rollup.name}{{{_all(_STORED, matchers)}}}[{window}]{_after(at)} {_late(before)}"


def _late(before: str) -> str:
    """The offset of `past_hours`."""
    return f"offset {before or '-1s'}"


Statistic = Literal["avg", "min", "max"]


def over(function: Statistic, metric: ByHour, matchers: str, window: str, *, before: str = "") -> str:
    """`function`_over_time of each worker's history; an average is that of the hours."""
    return by_worker(f"{function}_over_time({past_hours(getattr(metric, function), matchers, window, before=before)})")


def by_worker(expr: str) -> str:
    """One series for each worker: one of two regions counts with the greater value."""
    return f"max by ({WORKER}) ({expr})"


def _after(at: str) -> str:
    return f" {at}" if at else ""


def _all(*matchers: str) -> str:
    return ",".join(each for each in matchers if each)


def in_status(status: str, matchers: str) -> str:
    """The workers that are in this status now: 1."""
    return f"({live(STATUS, matchers, _status(status))} == 1)"


def _status(status: str) -> str:
    return f'status="{status}"'


# -- names -------------------------------------------------------------------------------------------------------------


def named(expr: str, info: str) -> str:
    """Give the series of workers the label `worker`, which is the name, or the id of a worker without one."""
    return f"{expr} * on ({WORKER}) group_left (worker) {display_names(info)}"


def display_names(info: str) -> str:
    """One series of value 1 for each worker with the label `worker`; also while two names of it are known, after a rename."""
    return f"topk by ({WORKER}) (1, max by ({WORKER}, worker) ({display_name(info)}))"


def display_name(info: str) -> str:
    """Give each series of `info` the label `worker`: the name, or the id where there is none."""
    return f'label_replace(label_replace({info}, "worker", "$1", "worker_id", "(.+)"), "worker", "$1", "name", "(.+)")'


def live_info(matchers: str) -> str:
    """The descriptive facts as /metrics says them."""
    return f"{INFO.name}{{{matchers}}}"


def past_info(matchers: str) -> str:
    """The descriptive facts of every worker with history in the time shown, also of those that are gone.

    By the hour, so in a time of less than one there may be none: then those of the last two.
    """
    facts = (f"last_over_time({past_hours(INFO_1H, matchers, window)})" for window in ("$__range", "2h"))
    return f"({' or '.join(facts)})"


def top(expr: str, rank: str) -> str:
    """Only the workers that are first by `rank`, which is one number for the whole range: a thousand lines are no graph."""
    return f"({expr} and on ({WORKER}) topk($top, {rank}))"


# -- made of several metrics -------------------------------------------------------------------------------------------


def status_code(status_is_1: dict[str, str]) -> str:
    """The number of the status each worker is in, of one vector for each status that is 1 where it applies."""
    parts = (f"{CODES[status]} * ({vector} == 1)" for status, vector in status_is_1.items())
    return f"max by ({WORKER}) ({' or '.join(parts)})"


def live_status_code(matchers: str) -> str:
    """`status_code` by /metrics."""
    return status_code({status: f"{STATUS.name}{{{_all(matchers, _status(status))}}}" for status in CODES})


def past_status_code(matchers: str, window: str, at: str = "") -> str:
    """`status_code` by the newest sample of the window of the history."""
    return status_code(
        {status: f"last_over_time({past(STATUS, matchers, _status(status))}[{window}]{_after(at)})" for status in CODES}
    )


def idle_seconds(matchers: str) -> str:
    """How long ago each worker's last activity was; a time of 0 is none."""
    return f"(time() - max by ({WORKER}) ({LAST_ACTIVITY.name}{{{matchers}}} > 0))"


def running_hours(matchers: str, window: str, *, before: str = "") -> str:
    """How long each worker ran: of each hour the part of its samples that say so, whatever the period."""
    return by_worker(f"sum_over_time({past_hours(RUNNING_1H, matchers, window, before=before)})")


def idle_hours(matchers: str, window: str, *, before: str = "") -> str:
    """The whole hours in which each worker ran, had no lab and hardly used its CPU; 0 for one that ran otherwise.

    Hardly is what the alerts say: today's number, also for the time before it was recorded. Without it there is no answer.
    """
    ran = f"({_each_hour(RUNNING_1H, matchers)} == bool 1)"
    no_lab = f"({_each_hour(ACTIVE_LABS_1H.max, matchers)} == bool 0)"
    hardly = "on () group_left () max(cml:threshold:idle_cpu_ratio @ end())"
    little = f"({_each_hour(CPU_1H.avg, matchers)} < bool {hardly})"
    return f"sum_over_time(({ran} * {no_lab} * {little})[{window}:1h] {_late(before)})"


def over_fleet(metric: ByHour, matchers: str, window: str, *, before: str = "") -> str:
    """The average over time of what all workers had together: each hour's sum counts once, whoever came and went."""
    total = f"sum({_each_hour(metric.avg, matchers)})"
    return f"avg_over_time({total}[{window}:1h] {_late(before)})"


def _each_hour(rollup: HourlyMetric, matchers: str) -> str:
    """Each worker's value of the hour that ends now, for subqueries in steps of an hour."""
    return by_worker(f"last_over_time({past_hours(rollup, matchers, '1h')})")


def last_seen(matchers: str, window: str = "$__range") -> str:
    """The UTC second in which the newest period of each worker in the window ended."""
    return by_worker(f"max_over_time({past_hours(NEWEST_1H, matchers, window)})")


def added(counter: str, by: str = "") -> str:
    """What a counter gained in a step of the graph.

    A counter with labels appears with its first value, which increase() does not see: one that is new counts as a whole.
    """
    total = f"({counter} unless last_over_time({counter}[1h] offset $__rate_interval)) or increase({counter}[$__rate_interval])"
    return f"sum{_after(f'by ({by})' if by else '')} ({total})"


def added_within(counter: str, window: str, by: str = "") -> str:
    """What a counter gained in a fixed window until now, a new one as a whole; see `added`."""
    total = f"({counter} unless last_over_time({counter}[1h] offset {window})) or increase({counter}[{window}])"
    return f"sum{_after(f'by ({by})' if by else '')} ({total})"
