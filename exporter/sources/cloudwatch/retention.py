"""CloudWatch's retention of datapoints by resolution.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch_concepts.html, Metrics retention: datapoints of
60 s for 15 days, of 300 s for 63 days, of 1 hour for 455 days.
"""

from exporter.core.periods import DAY, HOUR, MINUTE, align_up

TIERS = ((15 * DAY, MINUTE), (63 * DAY, 5 * MINUTE), (455 * DAY, HOUR))
"""(age, finest resolution that CloudWatch has up to that age), both in seconds."""
OLDEST = TIERS[-1][0]
"""Age in seconds beyond which CloudWatch has no datapoints."""
EXPIRY_MARGIN_SECONDS = HOUR
"""Seconds before the end of a tier at which the exporter switches to the next one: datapoints age while a query runs."""


def reach(resolution: int) -> int:
    """Return the age in seconds up to which CloudWatch answers for periods of `resolution` seconds.

    A tier qualifies if its datapoints divide the resolution.
    """
    return max(age for age, finest in TIERS if resolution % finest == 0)


def resolution_at(age: int, period: int) -> int:
    """Return the finest resolution (seconds) of datapoints that are `age` seconds old; never finer than `period`."""
    finest = next((finest for limit, finest in TIERS if age <= limit - EXPIRY_MARGIN_SECONDS), TIERS[-1][1])
    return align_up(period, finest)
