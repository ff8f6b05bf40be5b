"""The immutable records that travel between the packages.

Units, everywhere in the package: times are whole UTC seconds since 1970 (datetimes exist only at the edges: BSON, HTTP, the
customer's own record), utilizations are percent (0..100) and become ratios only on `/metrics`. A missing value is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Literal, NamedTuple

from exporter.core.errors import SourceError
from exporter.core.periods import to_datetime
from exporter.core.shards import Part, WorkerKey

MetricName = Literal["cpu", "memory"]
METRICS: tuple[MetricName, ...] = ("cpu", "memory")

STATUSES: tuple[str, ...] = (
    "pending",
    "starting",
    "running",
    "stopping",
    "stopped",
    "shutting-down",
    "terminated",
    "failed",
    "unknown",
)
_BY_CODE = "running pending starting stopping stopped shutting-down terminated failed unknown"
STATUS_CODES = {status: code for code, status in enumerate(_BY_CODE.split(), 1)}
"""Status → its number, as in the recorded series `cml:status:code` (prometheus/rules/settings.yml)."""
IDLE_STATUSES = frozenset({"stopped", "terminated"})
"""In every other status the instance may be running, so CloudWatch may have data."""

EC2_CHECK_STATES: tuple[str, ...] = ("ok", "impaired", "insufficient-data", "initializing", "not-applicable", "unknown")
"""Results of EC2's instance and system status checks."""
SERVICE_STATES: tuple[str, ...] = ("available", "unavailable", "starting", "error", "unknown")
"""States of the HTTPS service of CML."""
LICENSE_STATES: tuple[str, ...] = ("registered", "unregistered", "evaluation", "expired", "invalid", "unknown")

Dimensions = tuple[tuple[str, str], ...]
"""A CloudWatch dimension set as (name, value) pairs, in the order CloudWatch listed them."""


def normal_state(text: str) -> str:
    """Return a state as it is compared and exposed: lower case, words joined by hyphens."""
    return text.strip().lower().replace("_", "-").replace(" ", "-")


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the manager writes about a worker beside its status: latest values, None where the document lacks them."""

    ready: bool | None = None
    """Whether CML answers and is ready."""
    uptime: float | None = None
    """Seconds since CML started."""
    nodes_running: int | None = None
    nodes_total: int | None = None
    disk_used: float | None = None
    """Bytes."""
    disk_total: float | None = None
    memory_total: float | None = None
    """Bytes."""
    licensed: bool | None = None
    auto_pauses: int | None = None
    """How often the manager's idle detection has paused the worker."""
    idle_pause_at: int | None = None
    """When the manager will pause the worker unless it sees activity."""
    detailed_monitoring: bool | None = None
    instance_check: str | None = None
    """One of EC2_CHECK_STATES, like `system_check`."""
    system_check: str | None = None
    service_status: str | None = None
    """One of SERVICE_STATES."""
    license_status: str | None = None
    """One of LICENSE_STATES."""

    @property
    def disk_utilization(self) -> float | None:
        """The share of the disk in use, 0 to 1."""
        return self.disk_used / self.disk_total if self.disk_used is not None and self.disk_total else None


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker document (the manager's aggregate) as read: the latest state of a worker."""

    id: str
    region: str
    """Empty where the document has none; then CloudWatch cannot be queried."""
    instance_id: str | None
    status: str
    name: str | None = None
    address: str | None = None
    instance_type: str | None = None
    cml_version: str | None = None
    active_labs: int | None = None
    cpu: float | None = None
    """The document's own CPU utilization in percent, measured at `collected_at`."""
    memory: float | None = None
    collected_at: int | None = None
    last_activity_at: int | None = None
    created_at: int | None = None
    terminated_at: int | None = None
    facts: WorkerFacts = WorkerFacts()
    extra: tuple[tuple[str, float | str], ...] = ()
    """(metric name, value) of the further fields configured in `workers.extra`; the value of a state set is its state."""
    account_id: str | None = None
    """The AWS account of the instance, which no document has: CloudWatch's ListMetrics or the role tells it."""

    @property
    def display_name(self) -> str:
        """The name, else the id: never empty."""
        return self.name or self.id

    @property
    def key(self) -> WorkerKey:
        """What decides which exporter has the worker."""
        return WorkerKey(self.id, self.region, self.name or "")

    @property
    def cloudwatch_instance(self) -> str | None:
        """The instance that CloudWatch can be queried for: it takes a region, too."""
        return self.instance_id if self.region else None


class Datapoint(NamedTuple):
    """One CloudWatch Average: the start of its period and its value in percent."""

    timestamp: int
    value: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """One complete read of the worker documents. `date` is MongoDB's clock when the read began."""

    date: int
    workers: tuple[Worker, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Number of documents left out, by reason."""
    complaints: tuple[str, ...] = ()
    """One sentence for each malformed document or field, for the log."""
    namespace: str = ""
    """database.collection that holds the documents; where none does, all that were searched, joined by " or "."""
    part: Part = field(default_factory=Part)
    """Which workers the exporter had when it read."""
    elsewhere: Mapping[str, WorkerKey] = field(default_factory=dict)
    """The workers that are in the collection and not in this part, by id."""

    def has_moved(self, worker_id: str) -> bool:
        """Return whether another exporter has the worker, which this one may have had before."""
        return worker_id in self.elsewhere or not self.part.has_id(worker_id)


class HandedWorker(NamedTuple):
    """A worker on its way from one exporter to another."""

    key: WorkerKey
    content: str
    """Its state and samples, as `pipeline.handover` writes them."""


class WorkerGauges(NamedTuple):
    """The gauges of one worker in one snapshot. A tuple, because one per worker is made for each snapshot.

    Each value (percent) comes with the end of its period; the time is shown longer than its value, so that its age is visible.
    """

    worker: Worker
    observed_at: int
    show_state: bool
    """Whether status and labs are fresh enough to be shown."""
    show_load: bool = True
    """Whether the instance may be running: a stopped or terminated worker has no labs, nodes, CPU or memory."""
    cpu: float | None = None
    cpu_time: int | None = None
    memory: float | None = None
    memory_time: int | None = None
    cloudwatch: tuple[tuple[str, float], ...] = ()
    """(metric name, value) of the gauges of `cloudwatch.extra`, in the unit of the gauge."""
    hourly_price: float | None = None
    """US dollars per hour of the instance type; None where `workers.hourly_price` does not name it."""

    @property
    def active_labs(self) -> int | None:
        """The labs to show."""
        return self.worker.active_labs if self.show_state and self.show_load else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The worker block of /metrics: rendered after each observation and poll, replaced in one assignment.

    `texts` are the parts of text format 0.0.4, `gzipped` the same as one gzip member. `fresh_until` is a time of the local
    clock: from then on the block is left out, because the loop that should have renewed it has stopped.
    """

    workers: tuple[WorkerGauges, ...]
    texts: tuple[bytes, ...]
    gzipped: bytes
    fresh_until: float

    @property
    def body(self) -> bytes:
        """The whole text, in a copy."""
        return b"".join(self.texts)


Points = Mapping[str, Mapping[str, Datapoint]]
"""Metric (a MetricName, or the name of a gauge of `cloudwatch.extra`) → instance → its newest datapoint in CloudWatch."""


@dataclass(frozen=True, slots=True)
class ExporterMetrics:
    """The exporter metrics: text format 0.0.4, and the same compressed to follow a worker block."""

    text: bytes
    deflated: bytes


@dataclass(frozen=True, slots=True)
class WorkerMetricsSample:
    """One worker in one period: the customer's record, and the shape of a history document.

    `timestamp` is the period's start, timezone-aware UTC. Utilizations are percent. None means missing.
    """

    worker_id: str
    region: str
    timestamp: datetime
    cpu_utilization: float | None = None
    memory_utilization: float | None = None
    active_labs_count: int | None = None
    status: str | None = None


@lru_cache(maxsize=4096)  # thousands of samples have the same start; a backfill goes through two weeks of them for each worker
def naive_datetime(start: int) -> datetime:
    """Convert UTC seconds to a naive datetime in UTC, which is what BSON encodes fastest."""
    return to_datetime(start).replace(tzinfo=None)


class FinalSample(NamedTuple):
    """A final sample as it leaves the outbox: the fields of a WorkerMetricsSample, at a tenth of what making one costs."""

    worker_id: str
    start: int
    """Of the period, in UTC seconds."""
    region: str
    cpu_utilization: float | None = None
    memory_utilization: float | None = None
    active_labs_count: int | None = None
    status: str | None = None

    @property
    def timestamp(self) -> datetime:
        """The period's start, a naive datetime in UTC."""
        return naive_datetime(self.start)


class MetricQuery(NamedTuple):
    """One metric of one instance, as GetMetricData queries it. A tuple, because it is hashed very often as a key."""

    instance_id: str
    metric: str
    """A MetricName, or the name of a gauge of `cloudwatch.extra`."""
    dimensions: Dimensions
    account: str | None = ""
    """The account of the instance; empty where there is only one, None: no account lists the instance."""


Outcome = Literal["ok", "empty", "partial", "failed"]


class MetricResult(NamedTuple):
    """CloudWatch's result of one query for the window [start, end).

    Only `ok` and `empty` decide a sample: CloudWatch called the result Complete. `values` maps period starts to percent.
    """

    outcome: Outcome
    start: int
    end: int
    values: Mapping[int, float]

    @property
    def complete(self) -> bool:
        """Whether the result covers the whole window."""
        return self.outcome in ("ok", "empty")


@dataclass(frozen=True, slots=True)
class MetricResults:
    """The results of one GetMetricData call (all its pages), and the server's clock at the first page."""

    date: int
    by_query: Mapping[MetricQuery, MetricResult]
    dates: Mapping[MetricQuery, int] = field(default_factory=dict)
    """The server's clock for a call that was made in parts: by account, or because of a malformed instance id."""
    failures: tuple[SourceError, ...] = ()
    """The errors of the accounts that did not answer; the results of their queries are "failed"."""

    def date_of(self, query: MetricQuery) -> int:
        """Return the server's clock when it answered this query, in UTC seconds."""
        return self.dates.get(query, self.date) if self.dates else self.date


@dataclass(frozen=True, slots=True)
class Listing:
    """One complete ListMetrics result for one metric of one region, from all of its accounts.

    It has every series that had a datapoint in [since, date − 15 min]; `series` maps an instance to its dimension sets.
    """

    date: int = -1
    since: int = 0
    series: Mapping[str, tuple[Dimensions, ...]] = field(default_factory=dict)
    accounts: Mapping[str, str] = field(default_factory=dict)
    """Instance → the account that it is in."""
    account: str | None = ""
    """The account of an instance that is not in `accounts`; None: of several accounts, none lists it."""
    windows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Account → its own (since, date), where its answer is older than that of others."""

    def account_of(self, instance_id: str) -> str | None:
        """Return the account of an instance; None: no account lists it, empty: there is only one, whose id is not known."""
        return self.accounts.get(instance_id, self.account)

    def window_of(self, instance_id: str) -> tuple[int, int]:
        """Return (since, date) for the series of one instance."""
        return self.windows.get(self.accounts.get(instance_id, ""), (self.since, self.date))


class InstanceInterval(NamedTuple):
    """An instance of a worker, from the first to the last observation with it."""

    instance_id: str
    region: str
    first: int
    last: int

    def until(self, now: int) -> "InstanceInterval":
        """Return the interval after an observation with the instance at `now`; it never becomes shorter."""
        return InstanceInterval(self.instance_id, self.region, self.first, max(self.last, now))


@dataclass(frozen=True, slots=True)
class InventoryEntry:
    """The permanent record of a worker, so that a terminated one keeps its name and its instances."""

    worker_id: str
    region: str
    name: str | None
    instance_type: str | None
    cml_version: str | None
    created_at: int | None
    terminated_at: int | None
    status: str
    first_seen: int
    last_seen: int
    instances: tuple[InstanceInterval, ...] = ()
    """Oldest first."""
    account_id: str | None = None
    """The AWS account that the worker was last known to be in."""

    @property
    def display_name(self) -> str:
        """The name, else the id: never empty."""
        return self.name or self.worker_id


# -- querying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HistoryMark:
    """What the newest acknowledged batch left behind: which collection it went into, and how many had been acknowledged."""

    history: str
    """UUID of the collection."""
    sequence: int
    """Grows with every batch."""
    newest: int
    """Start of the newest acknowledged period in UTC seconds."""


class PendingQuery(NamedTuple):
    """The metrics of one worker's instances that must be queried, from `oldest` (UTC seconds) on."""

    worker_id: str
    region: str
    instances: tuple[str, ...]
    oldest: int
