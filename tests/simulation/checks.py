"""Checks at the end, after a time without faults. Every exemption names the rule that allows it."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from exporter.core.model import IDLE_STATUSES, METRICS, FinalSample, MetricName, Worker
from exporter.core.periods import align, align_up
from exporter.pipeline.outbox import Outbox
from tests.simulation.world import EPOCH, Document, Machine, World

Observation = tuple[int, Worker]


def check(world: World, outbox: Outbox) -> None:
    """Report each difference between the history and the world.

    Args:
        outbox: of the exporter that holds the lease.
    """
    _check_outbox(world, outbox)
    for machine in world.machines.values():
        check_worker = _WorkerCheck(world, machine)
        start = max(align_up(machine.born, world.rules.period), align(EPOCH - world.rules.gap_fill_window, world.rules.period))
        for period in range(start, align(world.calm_at, world.rules.period), world.rules.period):
            check_worker.check(period)
    for worker_id, start in world.mongodb.documents:
        if worker_id not in world.machines:
            world.violated("a sample of an unknown worker", f"{worker_id} {start}")


def _check_outbox(world: World, outbox: Outbox) -> None:
    """Report samples that should have left the outbox."""
    counts, oldest = outbox.counts(), outbox.oldest()
    # absence_timeout, a quarter of it between two polls of an idle worker, and a few cycles.
    longest = world.rules.absence_timeout * 5 // 4 + 3 * max(world.rules.interval, 600)
    if oldest is not None and oldest < world.now - longest:
        world.violated(
            "stuck in the outbox", f"{counts}, oldest {world.now - oldest} s, {outbox.open_rows('w0', 0, 1 << 40)[:1]}"
        )
    if counts["rejected"]:
        world.violated("set aside", f"{counts}")


@dataclass(frozen=True)
class _Around:
    """One period of one worker between the committed observations before and after its end."""

    before: Observation | None
    after: Observation | None

    def __str__(self) -> str:
        return f"between {_show(self.before)} and {_show(self.after)}"


def _show(observation: Observation | None) -> str:
    if observation is None:
        return "nothing"
    at, worker = observation
    return f"[{_hours(at)} {worker.status} {worker.instance_id} {worker.region}]"


class _WorkerCheck:
    """The history of one worker, compared with the world."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.world, self.rules, self.machine, self.id = world, world.rules, machine, machine.id
        self.observed = sorted(world.observed[machine.id], key=lambda o: o[0])
        self.observed_at = [at for at, _ in self.observed]
        self.read = world.read[machine.id]
        self.read_at = [at for at, _ in self.read]
        self.gaps_opened = world.gaps_opened[machine.id]

    def check(self, start: int) -> None:
        documents = self.world.mongodb.documents.get((self.id, start), [])
        document = documents[0] if documents else None
        if document:
            self._is_correct(start, document.sample)
            self._has_own(start, document)
        self._has_status(start, document)
        for metric in METRICS:
            self._has_value(start, metric, document)

    # -- nothing is invented

    def _is_correct(self, start: int, sample: FinalSample) -> None:
        end = start + self.rules.period
        if sample.status is not None or sample.active_labs_count is not None:
            first = bisect_left(self.read_at, end)
            last = bisect_left(self.read_at, end + self.rules.period)
            observed = {(w.status, w.active_labs) for _, w in self.read[first:last]}
            if (sample.status, sample.active_labs_count) not in observed:
                self._violated("a status that stands for another period", start, f"{sample}, observed {observed}")
        if (
            sample.status is None
            and sample.active_labs_count is None
            and not any(_value(sample, m) is not None for m in METRICS)
        ):
            self._violated("a sample with nothing in it", start, f"{sample}")
        for at, metric in enumerate(METRICS, 1):
            value = _value(sample, metric)
            own = {entry[at] for entry in self.machine.own if start <= entry[0] < end}
            if value is not None and value not in self.world.final_values(self.id, metric, start) and value not in own:
                self._violated(f"a {metric} that never was final", start, f"{value}")

    # -- nothing is lost

    def _has_status(self, start: int, document: Document | None) -> None:
        end, around = start + self.rules.period, self._around(start)
        if around.after is None or around.after[0] >= end + self.rules.period:
            return  # rule 2: it was not observed in time
        if self._lost(around.after[0], document) or self._finished(start, around) or self._created_later(start):
            return
        if self._missed(around):
            return  # rule 5: its last period was opened when it was gone, before it came back
        if document is None or document.sample.status is None:
            self._violated("an observation is lost", start, f"{document}, {around}")

    def _has_value(self, start: int, metric: MetricName, document: Document | None) -> None:
        around = self._around(start)
        known = self._known_instances(start) - self._unrecorded(document, start)
        final = self.world.final_values(self.id, metric, start, known)
        end = start + self.rules.period
        due = [value for value, published in final.items() if published <= end + self.rules.absence_timeout]
        if not due or self._may_lack(start, around):
            return
        # Where it came back with another instance, the inventory may have had that one: then the newer one wins. So it does
        # where another process took over, whose first observation after the period is a later one.
        known = self._known_instances(start, however_missed=True) | self._instances_at_losses(start, document)
        possible = self.world.final_values(self.id, metric, start, known)
        if document is None or _value(document.sample, metric) not in {**final, **possible}:
            self._violated(
                f"CloudWatch's {metric} is lost",
                start,
                f"{due}, {document}, {around}, losses {[_hours(at) for at in self.world.losses]}, "
                f"gaps opened {[_hours(at) for at in self.gaps_opened]}",
            )

    def _has_own(self, start: int, document: Document) -> None:
        """Rule 9: where CloudWatch has nothing, the document's own value counts, if it was observed in time."""
        around, period = self._around(start), self.rules.period
        after = around.after
        if after is None or after[0] >= start + 2 * period or self._lost(after[0], document) or self._finished(start, around):
            return
        worker = after[1]
        if worker.collected_at is not None and start <= worker.collected_at < start + period:
            later = [entry for entry in self.machine.own if worker.collected_at < entry[0] < start + period]
            for metric, own in (("cpu", worker.cpu), ("memory", worker.memory)):
                if own is not None and not later and _value(document.sample, metric) is None:
                    self._violated(f"the document's own {metric} is lost", start, f"{document}")

    def _may_lack(self, start: int, around: _Around) -> bool:
        return (
            (self.id, start)
            in self.world.absent  # rule 10: undecided after `gap_fill_window` and counted (checked where it happens)
            or self._idle(start)
            or (self._finished(start, around) and not self._ended_unseen(start, around))
            or self._created_later(start)
            or self._moved(start)
            # rule 14: opened while it could not know that another one led; rule 4: then it knew of no instance to query
            or (self.id, start) in self.world.opened_placeless
            or not self._was_opened(start, around)
        )

    def _was_opened(self, start: int, around: _Around) -> bool:
        """Whether the rules open the period: by an observation, by the last read of a vanished worker, or as a gap."""
        end, reach = start + self.rules.period, start + self.rules.gap_fill_window
        lost = [at for at in self.world.losses if at >= (around.before[0] if around.before else 0)]
        if around.before and not lost:
            if around.after:
                return around.after[0] <= reach  # rule 1: `gap_fill_window` back
            # rule 5: of a worker that is gone, the period that was open when it was last seen
            gone_noticed = self.world.calm_at + self.rules.period <= reach
            return around.before[0] >= start and around.before[1].status not in IDLE_STATUSES and gone_noticed
        since = max([end, *lost])
        return any(since <= at <= reach for at in self.gaps_opened)  # rule 3

    # -- exemptions

    def _lost(self, since: int, document: Document | None) -> bool:
        """Whether the outbox was lost between the observation and the insert: status and labs cannot be read again."""
        until = document.inserted if document else self.world.now
        return any(since <= at <= until for at in self.world.losses)

    def _idle(self, start: int) -> bool:
        """Rule 8: stopped or terminated in unbroken observations from before the period on."""
        first = bisect_right(self.read_at, start) - 1
        last = bisect_left(self.read_at, start + self.rules.period)
        if first < 0 or last >= len(self.read):
            return False
        around = self.read[first : last + 1]
        return all(worker.status in IDLE_STATUSES for _, worker in around)

    def _finished(self, start: int, around: _Around) -> bool:
        """Rule 5: the last sample of a terminated worker is the period in which that was first seen, or in which it ended."""
        if around.after is None or around.after[1].status != "terminated":
            return False
        ended = around.after[1].terminated_at
        if ended is not None and start <= ended < start + self.rules.period:
            return False
        if around.before is None or around.before[1].status == "terminated":
            return True
        # An outbox that was lost meanwhile has not seen it alive.
        return any(around.before[0] <= at <= around.after[0] for at in self.world.losses)

    def _ended_unseen(self, start: int, around: _Around) -> bool:
        """Rule 3: the periods of a worker that was first read terminated, up to its end, are gaps."""
        if around.before is not None or around.after is None:
            return False
        ended = around.after[1].terminated_at
        return ended is not None and start <= ended

    def _created_later(self, start: int) -> bool:
        created = self.machine.document.created_at
        return created is not None and start < align(created, self.rules.period)

    def _moved(self, start: int) -> bool:
        """Whether the worker changed its region: one call queries one region, and the newer one counts."""
        return len({worker.region for worker in self._near(start, however_missed=True) if worker.region}) > 1

    def _missed(self, around: _Around) -> bool:
        """Whether its document was gone between the two observations."""
        since = around.before[0] if around.before else 0
        until = around.after[0] if around.after else self.world.now
        return any(since < at < until for at in self.world.missed[self.id])

    def _around(self, start: int) -> _Around:
        after = bisect_left(self.observed_at, start + self.rules.period)
        return _Around(
            self.observed[after - 1] if after else None,
            self.observed[after] if after < len(self.observed) else None,
        )

    def _near(self, start: int, *, however_missed: bool = False) -> list[Worker]:
        """The worker from the last observation before the period's start to the first after its end (rule 4)."""
        first = max(0, bisect_right(self.observed_at, start) - 1)
        last = bisect_left(self.observed_at, start + self.rules.period)
        if not however_missed and self._missed(self._around(start)):
            last -= 1  # rule 5: the period was opened while it was gone, before its next instance was known
        return [worker for _, worker in self.observed[first : last + 1]]

    def _known_instances(self, start: int, *, however_missed: bool = False) -> set[str]:
        return self._in_their_region(self._near(start, however_missed=however_missed))

    def _unrecorded(self, document: Document | None, start: int) -> set[str]:
        """The instances that one exporter saw while the inventory could not be written, or right before it crashed (which is
        written after the outbox), before its outbox no longer counted."""
        if not {"not_writable", "crash"} & self.world.scenario.faults or not self._lost(start, document):
            return set()
        entry = self.world.mongodb.inventory.get(self.id)
        recorded = {interval.instance_id for interval in entry.instances} if entry else set()
        return {instance.id for instance in self.machine.instances} - recorded

    def _instances_at_losses(self, start: int, document: Document | None) -> set[str]:
        """The instances seen first after each loss of the outbox between the period and its insert."""
        until = document.inserted if document else self.world.now
        first = (bisect_left(self.observed_at, at) for at in self.world.losses if start <= at <= until)
        return self._in_their_region([self.observed[at][1] for at in first if at < len(self.observed)])

    def _in_their_region(self, workers: Iterable[Worker]) -> set[str]:
        """The instances of these workers, without one whose worker changed its region before it was seen: rule 4 queries
        the region of the worker document."""
        instances = self.world.cloudwatch.instances
        return {
            instance
            for worker in workers
            if (instance := worker.cloudwatch_instance)
            and getattr(instances.get(instance), "region", worker.region) == worker.region
        }

    def _violated(self, what: str, start: int, details: str) -> None:
        self.world.violated(what, f"{self.id} {start} ({_hours(start)}) {details}")


def _hours(at: int) -> str:
    return f"{(at - EPOCH) / 3600:+.2f} h"


def _value(sample: FinalSample, metric: str) -> float | None:
    return sample.cpu_utilization if metric == "cpu" else sample.memory_utilization
