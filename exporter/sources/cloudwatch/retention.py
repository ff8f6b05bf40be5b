"""How long CloudWatch keeps datapoints, by resolution.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch_concepts.html, Metrics retention: datapoints of
60 s for 15 days, of 300 s for 63 days, of 1 hour for 455 days.
"""

from exporter.core.periods import DAY, HOUR, MINUTE, align_up

TIERS = ((15 * DAY, MINUTE), (63 * DAY, 5 * MINUTE), (455 * DAY, HOUR))
"""(age, the finest datapoints CloudWatch has up to that age), both in seconds."""
OLDEST = TIERS[-1][0]
"""Seconds after which CloudWatch has nothing."""
EXPIRY_MARGIN_SECONDS = HOUR
"""So much younger than its tier ends data is already asked for more coarsely: while we ask it goes on ageing."""


def reach(resolution: int) -> int:
    """Return how many seconds back CloudWatch answers for periods of `resolution` seconds, which its datapoints must divide."""
    return max(age for age, finest in TIERS if resolution % finest == 0)


def resolution_at(age: int, period: int) -> int:
    """Return the resolution CloudWatch still has of what is `age` seconds old; never finer than `period`."""
    finest = next((finest for limit, finest in TIERS if age <= limit - EXPIRY_MARGIN_SECONDS), TIERS[-1][1])
    return align_up(period, finest)
