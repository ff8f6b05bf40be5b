"""The exporter metrics of the targets of `history.forward`."""

from contextlib import suppress
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge

from exporter.core.errors import FORWARD_FAILURES, FORWARD_REFUSALS
from exporter.metrics.catalogued import catalogued

LIMIT = "limit"
"""The reason of samples that are dropped because too many wait."""


class ForwardMetrics:
    """One attribute for each of them; a target has series from `know` to `forget`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge, counter = partial(catalogued, Gauge, registry), partial(catalogued, Counter, registry)
        self.lag = gauge("forward_lag_seconds")
        self.pending = gauge("forward_pending_samples")
        self.samples = counter("forward_samples_total")
        self.failures = counter("forward_failures_total")
        self.dropped = counter("forward_samples_dropped_total")
        self.last_success = gauge("forward_last_success_timestamp_seconds")
        self._by_target = self.lag, self.pending, self.samples, self.last_success
        self._by_reason = (self.failures, FORWARD_FAILURES), (self.dropped, (LIMIT, *FORWARD_REFUSALS))

    def know(self, target: str) -> None:
        """Show its counters before they count: increase() ignores a counter's first value."""
        self.samples.labels(target)
        for counter, reasons in self._by_reason:
            for reason in reasons:
                counter.labels(target, reason)

    def forget(self, target: str) -> None:
        """Remove the series of a target that is no longer forwarded to."""
        for metric in self._by_target:
            with suppress(KeyError):
                metric.remove(target)
        for counter, reasons in self._by_reason:
            for reason in reasons:
                with suppress(KeyError):
                    counter.remove(target, reason)
