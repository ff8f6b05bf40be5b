"""The exporter metrics: counters and gauges from the catalog, on a registry that the caller passes (never the global one)."""

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from exporter import __version__
from exporter.core import logs
from exporter.core.budget import BUDGET_STATES, Budget, BudgetState, ReaderBudget, dollars
from exporter.core.catalog import METRICS_BY_NAME
from exporter.core.errors import MALFORMED_KINDS, OUTBOX_FAILURE_REASONS
from exporter.core.model import METRICS, ExporterMetrics
from exporter.core.shards import Shard
from exporter.metrics.catalogued import catalogued
from exporter.metrics.forward_metrics import ForwardMetrics
from exporter.metrics.gzip_member import deflated

_log = logs.get("cloudwatch")


class OptionalGauge(Collector):
    """A gauge without labels that is absent until it has a value: a time that was never set must not read 1970."""

    def __init__(self, name: str, registry: CollectorRegistry) -> None:
        self.value: float | None = None
        self._metric = METRICS_BY_NAME[name]
        registry.register(self)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the family for the registry's check of duplicates."""
        return [GaugeMetricFamily(self._metric.name, self._metric.help)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield the family, without samples while there is no value."""
        yield GaugeMetricFamily(self._metric.name, self._metric.help, value=self.value)


class Telemetry:
    """The catalog's exporter metrics, one attribute each, plus process_* and python_info."""

    def __init__(
        self, registry: CollectorRegistry, *, revision: str = "", monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic = monotonic
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the catalog has no _created series
        self.registry = registry
        gauge, counter = partial(catalogued, Gauge, registry), partial(catalogued, Counter, registry)
        self.build_info = gauge("build_info")
        self.build_info.labels(__version__, revision, platform.python_version()).set(1)
        self.leader = OptionalGauge("cml_exporter_leader", registry)
        self.leader_snapshot = OptionalGauge("cml_exporter_leader_snapshot_timestamp_seconds", registry)
        self.shard_info, self.shards = gauge("shard_info"), gauge("shards")
        self.source_up, self.source_duration = gauge("source_up"), gauge("source_duration_seconds")
        self.source_last_success = gauge("source_last_success_timestamp_seconds")
        self.account_up = gauge("cloudwatch_account_up")
        self._accounts: dict[tuple[str, str, str], dict[str, bool]] = {}
        """(account id, account, region) → operation → whether its last call succeeded."""
        self.workers_skipped = gauge("workers_skipped")
        self.requests = counter("cloudwatch_requests_total")
        self.request_failures = counter("cloudwatch_request_failures_total")
        self.metrics_requested = counter("cloudwatch_metrics_requested_total")
        self.estimated_cost = counter("cloudwatch_estimated_cost_dollars_total")
        self.day_cost = gauge("cloudwatch_day_cost_dollars")
        self.budget = OptionalGauge("cml_exporter_cloudwatch_budget_dollars", registry)
        self.budget_state = gauge("cloudwatch_budget_state")
        self.reader_day_cost = gauge("cloudwatch_reader_day_cost_dollars")
        self.reader_budget = OptionalGauge("cml_exporter_cloudwatch_reader_budget_dollars", registry)
        self.reader_requests_refused = counter("cloudwatch_reader_requests_refused_total")
        self.malformed = counter("cloudwatch_malformed_total")
        self._malformed_logged: set[tuple[str, str]] = set()
        self.outbox_samples = gauge("outbox_samples")
        self.outbox_oldest = OptionalGauge("cml_exporter_outbox_oldest_timestamp_seconds", registry)
        self.outbox_write_failures = counter("outbox_write_failures_total")
        self.outbox_replaced = counter("outbox_replaced_total")
        self.outbox_free = OptionalGauge("cml_exporter_outbox_free_bytes", registry)
        self.outbox_day = OptionalGauge("cml_exporter_outbox_day_bytes", registry)
        self.samples_dropped, self.samples_lost = counter("samples_dropped_total"), counter("samples_lost_total")
        self.mirror_samples = counter("mirror_samples_total")
        self.mirror_failures = counter("mirror_failures_total")
        self.mirror_last_success = OptionalGauge("cml_exporter_mirror_last_success_timestamp_seconds", registry)
        self.history_duplicates = OptionalGauge("cml_exporter_history_duplicates", registry)
        self.history_replaced = counter("history_replaced_total")
        self.forward = ForwardMetrics(registry)
        self.otlp_pushes, self.samples_gap_filled = counter("otlp_pushes_total"), counter("samples_gap_filled_total")
        self.samples_unavailable = counter("samples_unavailable_total")
        self.samples_late, self.samples_revised = counter("samples_late_total"), counter("samples_revised_total")
        self.http_connections = gauge("http_connections")
        self.http_connections_closed = counter("http_connections_closed_total")
        self.config_reload_successful = gauge("config_last_reload_successful")
        self.config_reload_success = gauge("config_last_reload_success_timestamp_seconds")
        self._start_at_zero()
        self.mirrored, self.dollars = 0, 0.0
        """Samples inserted, and the estimated cost, since the start, for the log."""
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._rendered, self._rendered_at = ExporterMetrics(b"", b""), 0.0
        self.refresh()

    def _start_at_zero(self) -> None:
        """Show the counters whose labels are known before they count: increase() ignores a counter's first value."""
        for counter, values in (
            (self.malformed, MALFORMED_KINDS),
            (self.outbox_write_failures, OUTBOX_FAILURE_REASONS),
            (self.samples_unavailable, METRICS),
            (self.samples_late, METRICS),
            (self.samples_revised, METRICS),
            (self.history_replaced, ("collection", "backup", "marker")),
            (self.mirror_samples, ("inserted", "already_present", "rejected")),
        ):
            for value in values:
                counter.labels(value)

    def show_shard(self, shard: Shard, *, collects: bool) -> None:
        """Show which shard this exporter is, and whether it collects: not while another division of the fleet is in force."""
        self.shard_info.labels(str(shard.index), str(shard.count)).set(collects)
        self.shards.set(shard.count)

    def region_is_known(self, region: str, operations: Iterable[str]) -> None:
        """Show the counters of a region at 0, before its first request: increase() ignores a counter's first value."""
        self.metrics_requested.labels(region)
        for operation in operations:
            self.requests.labels(operation, region)

    def refresh(self) -> None:
        """Render and compress all exporter metrics, with /proc as of now; safe from any thread.

        It takes half a millisecond while nothing else runs. But it makes dozens of system calls, and after each the thread
        waits for the interpreter behind the threads of a cycle. That caused most of the slowest percent of scrapes, so while
        the process is busy this is done ahead of them.
        """
        at = self._monotonic()
        text = generate_latest(self.registry)
        self._rendered, self._rendered_at = ExporterMetrics(text, deflated(text)), at

    def rendered(self, max_age: float) -> ExporterMetrics:
        """Return all exporter metrics as of at most `max_age` seconds ago."""
        if self._monotonic() - self._rendered_at > max_age:
            self.refresh()
        return self._rendered

    def source_succeeded(self, source: str, region: str, at: float, seconds: float) -> None:
        """Record a successful read of a source that took `seconds` and ended at the UTC second `at`."""
        self.source_up.labels(source, region).set(1)
        self.source_duration.labels(source, region).set(seconds)
        self.source_last_success.labels(source, region).set(at)

    def source_failed(self, source: str, region: str, seconds: float) -> None:
        """Record a failed read that took `seconds`; the time of the last success stays."""
        self.source_up.labels(source, region).set(0)
        self.source_duration.labels(source, region).set(seconds)

    def source_gone(self, source: str, region: str) -> None:
        """Remove the series of a source that is no longer read."""
        for gauge in (self.source_up, self.source_duration, self.source_last_success):
            with suppress(KeyError):  # older versions of prometheus-client raise where there is no such series
                gauge.remove(source, region)
        for key in [key for key in self._accounts if key[2] == region]:
            del self._accounts[key]
            self.account_up.remove(*key)

    def accounts_answered(self, region: str, account_ids: Iterable[str], name: str, operation: str, *, ok: bool) -> None:
        """Record whether a call answered for these accounts; `name` is what errors call them, empty: by their ids."""
        for account_id in account_ids:
            key = account_id, name or account_id, region
            operations = self._accounts.setdefault(key, {})
            operations[operation] = ok
            self.account_up.labels(*key).set(all(operations.values()))

    def metrics_were_requested(self, region: str, count: int) -> None:
        """Count `count` queries of one GetMetricData request, which AWS bills."""
        self.metrics_requested.labels(region).inc(count)
        self.estimated_cost.inc(dollars(count))
        self.dollars += dollars(count)

    def show_budget(self, budget: Budget, state: BudgetState) -> None:
        """Set the gauges of today's cost and of the budget and its state."""
        self.day_cost.set(dollars(budget.spent()[1]))
        self.budget.value = budget.max_usd
        for each in BUDGET_STATES:
            self.budget_state.labels(each).set(each == state)

    def show_readers(self, readers: ReaderBudget) -> None:
        """Set the gauges of what HTTP readers have cost today and of their share of the budget."""
        self.reader_day_cost.set(dollars(readers.spent()[1]))
        self.reader_budget.value = readers.max_usd

    def parts_were_malformed(self, region: str, counts: Mapping[str, int]) -> None:
        """Count the parts of an answer that were dropped, by kind; log the first of each kind and region."""
        for kind, count in counts.items():
            self.malformed.labels(kind).inc(count)
            if (region, kind) not in self._malformed_logged:
                self._malformed_logged.add((region, kind))
                _log.warning("malformed parts of CloudWatch's answers dropped", region=region, kind=kind, count=count)

    def samples_were_mirrored(self, *, inserted: int, already_present: int, rejected: int, gap_filled: int) -> None:
        """Count the results of one batch of the mirror; `gap_filled` is a part of `inserted`."""
        self.mirror_samples.labels("inserted").inc(inserted)
        self.mirror_samples.labels("already_present").inc(already_present)
        self.mirror_samples.labels("rejected").inc(rejected)
        self.samples_gap_filled.inc(gap_filled)
        self.mirrored += inserted
