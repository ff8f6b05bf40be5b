"""CloudWatch's first answers as a later `verify` needs them: by worker, metric, and UTC day, four bytes a period. Pure.

The first answer of a period is kept and later ones are not, so that a value that CloudWatch revised is told as such by every
later run, too.
"""

from array import array
from collections.abc import Mapping

from exporter.commands.backfill.plan import Answer
from exporter.commands.verify.compare import NO_DATAPOINT, UNKNOWN
from exporter.core.model import METRICS, MetricName
from exporter.core.periods import DAY, align

KEPT_SECONDS = 14 * DAY
"""Age up to which answers are kept. CloudWatch accepts datapoints that are up to two weeks old, so later it revises none:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricData.html"""

Days = dict[tuple[MetricName, int], "array[float]"]
"""(metric, start of the UTC day) → one value per period of that day: percent, NO_DATAPOINT, or UNKNOWN."""


def days_of(answer: Answer, period: int) -> Days:
    """Return the values of an answer by day."""
    days: Days = {}
    for metric in METRICS:
        values = answer.cpu if metric == "cpu" else answer.memory
        for start in answer.starts(period):
            day = align(start, DAY)
            if (metric, day) not in days:
                days[metric, day] = array("f", [UNKNOWN]) * (DAY // period)
            days[metric, day][(start - day) // period] = values.get(start, NO_DATAPOINT)
    return days


def value_in(days: Mapping[tuple[MetricName, int], "array[float]"], metric: MetricName, start: int, period: int) -> float:
    """Return the value of one period in percent, NO_DATAPOINT, or UNKNOWN."""
    day = align(start, DAY)
    values = days.get((metric, day))
    return UNKNOWN if values is None else values[(start - day) // period]


def merge(first: "array[float]", later: "array[float]") -> "array[float]":
    """Return the values of a day: the first ones, and the later ones of periods that these do not know."""
    return array("f", (new if old == UNKNOWN else old for old, new in zip(first, later, strict=True)))
