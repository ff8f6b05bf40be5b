"""The simulated world: machines that start and end, CloudWatch, MongoDB, clocks. All randomness comes from the seed.

The servers have the true time (`World.now`); the clock of an exporter may be wrong. Nothing here uses `lifecycle` to decide.
"""

import asyncio
import random
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from exporter.core.model import Dimensions, FinalSample, Fleet, InventoryEntry, MetricName, Worker
from exporter.core.periods import to_seconds
from exporter.pipeline.lifecycle import Rules

EPOCH = 1_767_225_600
"""The simulation begins on 2026-01-01T00:00:00Z."""
REGIONS = ("eu-west-1", "us-east-1")

FAULTS = (
    "late",  # CloudWatch publishes late, after absence_timeout, or never
    "revisions",  # late values are revised too
    "cloudwatch_down",
    "flaky",  # single calls fail, single results are partial
    "mongodb_down",
    "ambiguous",  # an insert fails but is applied: now, later, in part, or uncommitted
    "crash",  # at any statement to the outbox and any message to a server
    "lost_outbox",
    "stale_outbox",  # restored from a copy
    "full_disk",
    "clock",  # the exporter's own
    "slow",  # a call to CloudWatch takes minutes
    "paused",  # the whole process stands still, longer than a lease lasts
    "lifecycle",  # workers are stopped, started, replaced, terminated, reborn, created
    "vanish",  # worker documents disappear, and may come back
    "malformed",  # one instance id that CloudWatch rejects
    "takeover",  # a second exporter
)
LATER_FAULTS = (
    "no_region",  # worker documents lose their region, some from the beginning, and may get it back
    "short_lived",  # a worker document appears when its worker is already terminated
    "late_inserts",  # the network holds an insert and delivers it minutes later, perhaps when another exporter is the writer
    "not_writable",  # MongoDB can be read but not written: no majority, fsync lock
)
"""Drawn apart from FAULTS, so that the scenario of a seed stays otherwise the same."""

Key = tuple[str, int]
"""(worker id, period start): the key of a sample."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The faults, settings and duration drawn from one seed."""

    seed: int
    faults: frozenset[str]
    rules: Rules
    hours: float

    @classmethod
    def of(cls, seed: int, *, hours: float | None = None) -> "Scenario":
        """Draw the scenario of a seed; `hours` cuts it short."""
        rng = random.Random(f"scenario {seed}")
        later = random.Random(f"later faults {seed}")
        drawn_faults = [fault for fault in FAULTS if rng.random() < 0.55]
        faults = frozenset(drawn_faults + [fault for fault in LATER_FAULTS if later.random() < 0.3])
        period = rng.choice([300, 300, 300, 60])
        rules = Rules(
            period=period,
            interval=rng.choice([300, 300, 600]),
            absence_timeout=rng.choice([3600, 3600, 1800]),
            gap_fill_window=rng.choice([4 * 3600, 8 * 3600, 24 * 3600]) if period == 300 else 4 * 3600,
        )
        drawn = rng.choice([6, 9, 12]) if period == 300 else 5
        return cls(seed, faults, rules, hours or drawn)

    def __str__(self) -> str:
        rules = self.rules
        return (
            f"seed {self.seed}: {self.hours:g} h, period {rules.period}, interval {rules.interval}, "
            f"absence_timeout {rules.absence_timeout}, "
            f"gap_fill_window {rules.gap_fill_window}, {' '.join(sorted(self.faults)) or 'no faults'}"
        )


# -- machines ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Instance:
    """One EC2 instance: when it ran, and whether it has a CloudWatch agent."""

    id: str
    region: str
    memory: Dimensions | None
    listing_delay: int
    runs: list[list[float]] = field(default_factory=list)
    """[from, to) in UTC seconds; the last may be open."""

    @property
    def up(self) -> bool:
        return bool(self.runs) and self.runs[-1][1] == float("inf")

    def start(self, at: float) -> None:
        self.runs.append([at, float("inf")])

    def stop(self, at: float) -> None:
        if self.up:
            self.runs[-1][1] = max(at, self.runs[-1][0])

    def ran(self, start: int, end: int) -> bool:
        return any(a < end and b > start for a, b in self.runs)


@dataclass(slots=True)
class Machine:
    """One worker: its instances, and its worker document, which follows a little later."""

    born: int
    document: Worker
    instances: list[Instance]
    listed: bool = True
    own: list[tuple[int, float | None, float | None]] = field(default_factory=list)
    """The document's own values so far: (collected at, cpu, memory)."""

    @property
    def id(self) -> str:
        return self.document.id

    @property
    def real(self) -> Instance:
        """The instance it runs on now, which the document may not have yet."""
        return self.instances[-1]


# -- CloudWatch --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publication:
    """One datapoint over time: a provisional value per minute from `published` to `final_from`, then the final one."""

    final: float
    published: int | None
    final_from: int
    provisional: tuple[float, ...]

    def at(self, now: int) -> float | None:
        if self.published is None or now < self.published:
            return None
        return self.final if now >= self.final_from else self.provisional[now // 60 % len(self.provisional)]


class CloudWatchServer:
    """CloudWatch, whose data is a function of the seed; only outages have state."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._publications: dict[tuple[str, MetricName, int], Publication] = {}
        self.down_until = 0.0
        self.instances: dict[str, Instance] = {}
        self.served: set[tuple[str, MetricName, int, float]] = set()
        """(instance, metric, period, value) of every datapoint ever returned."""

    def publication(self, instance: Instance, metric: MetricName, start: int) -> Publication | None:
        """Return the datapoint of a period; None if there is nothing to publish."""
        end = start + self._scenario.rules.period
        if not instance.ran(start, end) or (metric == "memory" and instance.memory is None):
            return None
        key = instance.id, metric, start
        if key not in self._publications:
            self._publications[key] = self._draw(key, end)
        return self._publications[key]

    def _draw(self, key: tuple[str, MetricName, int], end: int) -> Publication:
        rng, rules = random.Random(f"{self._scenario.seed} {key}"), self._scenario.rules
        faults, chance = self._scenario.faults, rng.random()
        published: int | None = end + rng.randint(60, 480)
        if "late" in faults and chance < 0.08:
            published = end + rng.randint(480, rules.absence_timeout - 300)
        elif "late" in faults and chance < 0.09:
            published = end + rng.randint(rules.absence_timeout + 100, 5 * rules.absence_timeout)
        elif "late" in faults and chance < 0.11:
            published = None
        final_from = end + 240  # within settle_delay
        if (
            published
            and "revisions" in faults
            and end + rules.settle_delay + 60 < published <= end + rules.absence_timeout - 300
        ):
            final_from = published + 240  # what comes late is revised late, but within settle_delay of its publication
        return Publication(rng.random() * 100, published, final_from, tuple(rng.random() * 100 for _ in range(5)))

    def series(self, region: str, now: int, since: int) -> dict[str, tuple[Dimensions, ...]]:
        """Return what ListMetrics lists: every series with a datapoint since `since`, up to 15 minutes late."""
        return {
            instance.id: (instance.memory,)
            for instance in self.instances.values()
            if instance.region == region
            and instance.memory is not None
            and any(a + 300 + instance.listing_delay <= now and b > since for a, b in instance.runs)
        }


# -- MongoDB -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Document:
    """One stored sample."""

    sample: FinalSample
    inserted: int
    committed: bool = True


class MongoServer:
    """The history, the inventory and the lease, as the server holds them."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.down_until = 0.0
        self.readonly_until = 0.0
        self.documents: dict[Key, list[Document]] = defaultdict(list)
        self.running_inserts = 0
        self.raised = 0
        """The number of the fence: an insert that was sent under a lower one is refused."""
        self.inventory: dict[str, InventoryEntry] = {}
        self.leader: str | None = None
        self.lease_expires = 0.0
        self.held_at: dict[str, float] = defaultdict(float)
        """When a host took or renewed the lease last."""
        self.fence = 0

    def leads_elsewhere(self, host: str, since: float = 0) -> bool:
        """Whether another host holds the lease, or held it within the last `since` seconds."""
        return self.leader not in (host, None) and self._world.time < self.lease_expires + since

    def put(self, samples: Iterable[FinalSample], *, committed: bool = True) -> list[Key]:
        keys = []
        for sample in samples:
            key = sample.worker_id, to_seconds(sample.timestamp)
            self.documents[key].append(Document(sample, self._world.now, committed))
            keys.append(key)
            if len(self.documents[key]) > 1:
                self._world.violated("a duplicate", f"{key} {self.documents[key]}")
        return keys

    def put_somehow(self, samples: Sequence[FinalSample]) -> None:
        """Apply an insert that was not acknowledged: all of it, a part, later, or uncommitted."""
        rng, loop = self._world.rng, asyncio.get_running_loop()
        part = rng.choice([samples, [], samples[: len(samples) // 2], [s for s in samples if rng.random() < 0.5]])
        how, delay = rng.choice(["now", "later", "uncommitted"]), rng.uniform(1, 200)
        if how == "now" or not part:
            self.put(part)
        elif how == "later":
            self.running_inserts += 1
            loop.call_later(delay, self._finish, part)
        else:
            keys = self.put(part, committed=False)
            loop.call_later(delay, self._decide, keys, rng.random() < 0.5)

    def deliver_later(self, samples: Sequence[FinalSample], number: int, delay: float) -> None:
        """Let an insert arrive that the network has held: the server does not know of it before, so nothing can wait for it."""
        asyncio.get_running_loop().call_later(delay, self._arrive, samples, number)

    def _arrive(self, samples: Sequence[FinalSample], number: int) -> None:
        refused = number < self.raised
        self._world.figures["late inserts refused" if refused else "late inserts stored"] += 1
        if not refused:
            self.put(samples)

    def _finish(self, samples: Sequence[FinalSample]) -> None:
        self.running_inserts -= 1
        self.put(samples)

    def _decide(self, keys: Sequence[Key], commit: bool) -> None:
        for key in keys:
            if commit:
                self.documents[key][0].committed = True
            else:
                del self.documents[key]


# -- all of it ---------------------------------------------------------------------------------------------------------


class World:
    """The machines, the servers, and the record of events that the checks need."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.rules = scenario, scenario.rules
        self.rng = random.Random(scenario.seed)
        self.network = random.Random(f"network {scenario.seed}")
        """Apart from `rng`, so that the rest of a seed stays the same."""
        self.faults = set(scenario.faults)
        self.cloudwatch = CloudWatchServer(scenario)
        self.mongodb = MongoServer(self)
        self.machines: dict[str, Machine] = {}
        self._frozen: tuple[Worker, ...] = ()
        """The worker documents since MongoDB cannot be written."""
        self._away: set[str] = set()
        """Workers whose documents are gone and will come back."""
        self.skew: dict[str, float] = defaultdict(float)
        """Seconds by which the clock of a host is ahead."""
        self.paused_until: dict[str, float] = defaultdict(float)
        """Until when the process of a host is paused."""
        self.disk_full_until = 0.0
        self.disturbances = 0
        """How often a clock has jumped, a process was paused, a disk was full, or a query was rejected."""

        self.read: dict[str, list[tuple[int, Worker]]] = defaultdict(list)
        """Every read of a worker by the process that held the lease, and every one that was committed without it."""
        self.observed: dict[str, list[tuple[int, Worker]]] = defaultdict(list)
        """Those of them that were committed to an outbox."""
        self.opened_at: dict[str, float] = {}
        """When a host committed an observation last."""
        self.opened_placeless: set[Key] = set()
        """Samples that an exporter opened from a document without a region while another one led, of which it did not know."""
        self.missed: dict[str, list[int]] = defaultdict(list)
        """Every read that did not have a worker."""
        self.gaps_opened: dict[str, list[int]] = defaultdict(list)
        """When the gaps of a worker were opened."""
        self.losses: list[int] = []
        """When an outbox was lost, restored from a copy, or another process became the writer."""
        self.absent: set[Key] = set()
        """The samples that were recorded as absent."""
        self.calm_at = 0
        """When the faults ended."""
        self.violations: list[str] = []
        self.figures: dict[str, int] = defaultdict(int)

        for _ in range(5):
            self._create(EPOCH - self.rng.randint(0, 30 * 3600))
        if "malformed" in self.faults:
            malformed = self._create(EPOCH)
            malformed.document = _changed(malformed.document, instance_id="not an instance".replace(" ", "-"))

    @property
    def time(self) -> float:
        """The true time, which every server has."""
        return EPOCH + asyncio.get_running_loop().time()

    @property
    def now(self) -> int:
        return int(self.time)

    def violated(self, what: str, details: str = "") -> None:
        self.violations.append(f"{what}: {details}")

    def fleet(self) -> tuple[Worker, ...]:
        """Return the worker documents; where MongoDB cannot be written, the manager cannot change them either."""
        if self.time < self.mongodb.readonly_until:
            return self._frozen
        return tuple(machine.document for machine in self.machines.values() if machine.listed)

    def note_read(self, fleet: Fleet) -> None:
        """Record a read of the worker documents."""
        for worker in fleet.workers:
            insort(self.read[worker.id], (fleet.date, worker), key=lambda read: read[0])
        for worker_id in self.machines.keys() - {worker.id for worker in fleet.workers}:
            if self.read[worker_id]:  # else its document never was there
                self.missed[worker_id].append(fleet.date)

    # -- the machines

    async def live(self) -> None:
        """Change something about every minute, until cancelled."""
        while True:
            await asyncio.sleep(self.rng.uniform(45, 75))
            for machine in list(self.machines.values()):
                self._live(machine)
            if self._happens("lifecycle", 1 / 200) and len(self.machines) < 9:
                self._create(self.now)
            if "short_lived" in self.faults and self.rng.random() < 1 / 100 and len(self.machines) < 12:
                self._create_terminated()
            self._break()

    def calm(self) -> None:
        """End all faults except those that CloudWatch always has."""
        self.faults &= {"late", "revisions"}
        self.cloudwatch.down_until = self.mongodb.down_until = self.mongodb.readonly_until = self.disk_full_until = 0
        self.disturbances += 1
        self.skew.clear()
        for worker_id in sorted(self._away):
            self._return(self.machines[worker_id])
        self.calm_at = self.now

    def _happens(self, fault: str, chance: float) -> bool:
        return self.rng.random() < chance and fault in self.faults

    def _break(self) -> None:
        rng, hour = self.rng, 3600
        beyond = self.rules.gap_fill_window + hour if self.rules.gap_fill_window <= 8 * hour else hour
        if self._happens("cloudwatch_down", 1 / 200):
            self.cloudwatch.down_until = self.time + rng.choice([600, hour, 2 * hour, 3 * hour, beyond])
        if self._happens("mongodb_down", 1 / 200):
            self.mongodb.down_until = self.time + rng.choice([20, 300, hour, 3 * hour, beyond])
        if "not_writable" in self.faults and rng.random() < 1 / 100:
            self._frozen = self.fleet()
            self.mongodb.readonly_until = self.time + rng.choice([60, 360, hour, 3 * hour])
        if self._happens("full_disk", 1 / 200):
            self.disk_full_until = self.time + rng.choice([30, 600, 2 * hour])
            self.disturbances += 1
        if self._happens("paused", 1 / 60):
            self.paused_until[rng.choice("AB")] = self.time + rng.choice([20, 60, 300])
            self.disturbances += 1
        if self._happens("clock", 1 / 100):
            host = rng.choice("AB")
            self.skew[host] = rng.choice([-90000, -hour, -400, -200, -30, 30, 200, 400, hour, 90000])
            self.disturbances += 1
            asyncio.get_running_loop().call_later(rng.uniform(60, 2 * hour), self._set_clock, host)

    def _set_clock(self, host: str) -> None:
        self.skew[host] = 0.0
        self.disturbances += 1

    def _create(self, born: int) -> Machine:
        id_ = f"w{len(self.machines)}"
        instance = self._instance()
        instance.start(born)
        created = born if self.rng.random() < 0.8 else None
        document = Worker(id_, instance.region, instance.id, "running", created_at=created, active_labs=0)
        self.machines[id_] = Machine(born, document, [instance])
        if self.rng.random() < 0.5 and born > EPOCH:  # the manager writes the instance a little later
            self.machines[id_].document = _changed(document, instance_id=None, status="pending")
            self._later(self.machines[id_], instance_id=instance.id, status="running")
        return self.machines[id_]

    def _create_terminated(self) -> None:
        """Add a worker that ends after some minutes; its document appears within a minute after that."""
        machine = self._create(self.now)
        machine.listed = False

        def end() -> None:
            machine.real.stop(self.now)
            changes = {"instance_id": machine.real.id, "status": "terminated", "terminated_at": self.now}
            asyncio.get_running_loop().call_later(self.rng.uniform(0, 60), appear, changes)

        def appear(changes: Mapping[str, object]) -> None:
            machine.document = _changed(machine.document, **changes)
            machine.listed = True

        asyncio.get_running_loop().call_later(self.rng.uniform(130, 1800), end)

    def _instance(self, region: str | None = None) -> Instance:
        number, rng = len(self.cloudwatch.instances) + 1, self.rng
        id_ = f"i-{number:08x}"
        dimensions = (("InstanceId", id_), ("ImageId", "ami-1"))[: rng.choice([1, 2])]
        instance = Instance(id_, region or rng.choice(REGIONS), dimensions if rng.random() < 0.8 else None, rng.randint(0, 600))
        self.cloudwatch.instances[id_] = instance
        return instance

    def _later(self, machine: Machine, **changes: object) -> None:
        """Change the document within two minutes."""

        def change() -> None:
            machine.document = _changed(machine.document, **changes)

        asyncio.get_running_loop().call_later(self.rng.uniform(0, 120), change)

    def _live(self, machine: Machine) -> None:
        if machine.listed and self._happens("lifecycle", 1 / 60):
            change = self.rng.choice(self._changes(machine))
            change(machine)
        if "no_region" in self.faults and self.rng.random() < (1 / 20 if not machine.document.region else 1 / 200):
            region = "" if machine.document.region else machine.real.region
            machine.document = _changed(machine.document, region=region)
        if "lifecycle" in self.faults and self.rng.random() < 1 / 30:
            machine.document = _changed(machine.document, active_labs=self.rng.randint(0, 9))
        if machine.listed and self._happens("vanish", 1 / 300):
            machine.listed = False
            if self.rng.random() < 0.7:
                away = self.rng.choice(
                    [300, 3600, self.rules.gap_fill_window + 3600 if self.rules.gap_fill_window < 6 * 3600 else 7200]
                )
                self._away.add(machine.id)
                asyncio.get_running_loop().call_later(away, self._return, machine)
        if machine.document.status == "running" and self.rng.random() < 0.2:
            own = self.now - self.rng.randint(0, 40), self.rng.random() * 100, self.rng.choice([None, 50.0])
            machine.own.append(own)
            machine.document = _changed(machine.document, collected_at=own[0], cpu=own[1], memory=own[2])

    def _return(self, machine: Machine) -> None:
        machine.listed = True
        self._away.discard(machine.id)

    def _changes(self, machine: Machine) -> Sequence[Callable[[Machine], None]]:
        status = machine.document.status
        if status == "running":
            return (self._stop, self._replace, self._replace, self._terminate)
        if status == "stopped":
            return (self._start, self._start, self._terminate)
        return (self._revive,) if status == "terminated" else (lambda _: None,)

    def _stop(self, machine: Machine) -> None:
        machine.real.stop(self.now)
        machine.document = _changed(machine.document, status="stopping")
        self._later(machine, status="stopped")

    def _start(self, machine: Machine) -> None:
        if machine.document.instance_id == machine.real.id:
            machine.real.start(self.now)
            self._later(machine, status="running")

    def _replace(self, machine: Machine) -> None:
        machine.real.stop(self.now)
        moved = self.rng.random() < 0.1
        instance = self._instance(None if moved else machine.real.region)
        machine.instances.append(instance)
        instance.start(self.now + self.rng.randint(0, 200))
        self._later(machine, instance_id=instance.id, region=instance.region, status="running")

    def _terminate(self, machine: Machine) -> None:
        machine.real.stop(self.now)
        self._later(machine, status="terminated", terminated_at=self.now if self.rng.random() < 0.7 else None)

    def _revive(self, machine: Machine) -> None:
        if machine.real.up:
            return
        instance = self._instance(machine.real.region)
        machine.instances.append(instance)
        instance.start(self.now + 60)
        self._later(machine, instance_id=instance.id, status="running", terminated_at=None)

    # -- expectations

    def final_values(
        self, worker_id: str, metric: MetricName, start: int, instances: Iterable[str] | None = None
    ) -> Mapping[float, int]:
        """Return CloudWatch's final values for a worker's period → when they were published."""
        values = {}
        for instance in self.machines[worker_id].instances:
            if instances is None or instance.id in instances:
                publication = self.cloudwatch.publication(instance, metric, start)
                if publication and publication.published is not None:
                    values[publication.final] = publication.published
        return values


def _changed(worker: Worker, **changes: object) -> Worker:
    fields = {name: getattr(worker, name) for name in Worker.__dataclass_fields__}
    return Worker(**{**fields, **changes})
