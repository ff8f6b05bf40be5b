"""What one exporter has polled of CloudWatch, as another one of the same workers shows it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.core.model import Points


@dataclass(frozen=True, slots=True)
class CloudWatchSnapshot:
    """What the gauges of the exporter that leads show of CloudWatch, for those that stand by."""

    at: int
    """When the collection cycle ended that polled it, in UTC seconds of MongoDB's clock."""
    points: Points
    accounts: Mapping[str, str]
    """Instance → the AWS account that it is in, where it is known."""
