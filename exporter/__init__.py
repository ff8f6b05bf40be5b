"""CML worker metrics: CloudWatch and the manager's aggregates as gauges and as an exactly-once history."""

__version__ = "0.1.0"
