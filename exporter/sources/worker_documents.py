"""Parse worker documents (the manager's aggregates) into workers. Pure."""

import reprlib
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

from exporter.core.model import EC2_CHECK_STATES, LICENSE_STATES, SERVICE_STATES, Fleet, Worker, WorkerFacts
from exporter.core.shards import WorkerKey
from exporter.core.workers_settings import ExtraMetric, WorkersSettings
from exporter.sources import field_values as values
from exporter.sources import system_info

FIELDS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "_id"),
    "name": ("name",),
    "region": ("aws_region",),
    "instance": ("aws_instance_id",),
    "address": ("private_ip",),
    "status": ("status",),
    "cpu": ("cpu_utilization", "cloudwatch_cpu_utilization", "cloudwatch_metrics.cpu_utilization"),
    "memory": ("memory_utilization", "cloudwatch_memory_utilization", "cloudwatch_metrics.memory_utilization"),
    "collected_at": ("cloudwatch_last_collected_at", "cloudwatch_metrics.collected_at"),
    "active_labs": ("active_labs_count", "cml_labs_count", "metrics.labs_count"),
    "last_activity": ("last_activity_at",),
    "instance_type": ("instance_type",),
    "cml_version": ("cml_version", "metrics.version"),
    "created_at": ("created_at",),
    "terminated_at": ("terminated_at",),
    "ready": ("cml_ready", "metrics.ready"),
    "uptime": ("cml_uptime_seconds", "metrics.uptime_seconds"),
    "nodes_running": ("metrics.system_info.running_nodes", "cml_system_info.running_nodes"),
    "nodes_total": ("metrics.system_info.total_nodes", "cml_system_info.total_nodes"),
    "disk_used": ("metrics.system_info.disk_used", "metrics.system_info.all_disk_used", "cml_system_info.all_disk_used"),
    "disk_total": ("metrics.system_info.disk_total", "metrics.system_info.all_disk_total", "cml_system_info.all_disk_total"),
    "memory_total": (
        "metrics.system_info.memory_total",
        "metrics.system_info.all_memory_total",
        "cml_system_info.all_memory_total",
    ),
    "licensed": ("cml_system_health.is_licensed", "metrics.system_health.is_licensed"),
    "license_status": ("license_status", "license.status"),
    "service_status": ("service_status",),
    "instance_check": ("ec2_instance_state_detail",),
    "system_check": ("ec2_system_status_check",),
    "detailed_monitoring": ("cloudwatch_detailed_monitoring_enabled",),
    "auto_pauses": ("auto_pause_count",),
    "idle_pause_at": ("target_pause_at",),
}
"""Meaning → the manager's field names, of all its generations; names of `workers.fields` are tried first."""

SYSTEM_INFO = ("metrics.system_info", "cml_system_info")
"""Names of CML's system information; its figures of each compute node stand in for those of the worker."""

_FACTS: Mapping[str, Callable[[object], object]] = {
    "ready": values.flag,
    "uptime": values.amount,
    "nodes_running": values.count,
    "nodes_total": values.count,
    "disk_used": values.amount,
    "disk_total": values.amount,
    "memory_total": values.amount,
    "licensed": values.flag,
    "license_status": values.state_of(LICENSE_STATES),
    "service_status": values.state_of(SERVICE_STATES),
    "instance_check": values.state_of(EC2_CHECK_STATES),
    "system_check": values.state_of(EC2_CHECK_STATES),
    "detailed_monitoring": values.flag,
    "auto_pauses": values.count,
    "idle_pause_at": values.time,
}
"""Field of WorkerFacts, which is also the meaning of its names, and how it is converted."""

_CONSEQUENCES: Mapping[Callable[..., object], str] = {
    values.status: "it reads unknown",
    values.region: "CloudWatch is not queried for the worker",
}
"""What a malformed value of a field leads to, where that is not the absence of the field alone."""

STATE = "state"
"""The key that holds the fields where they are not at top level."""

T = TypeVar("T")
Places = tuple[Mapping[str, Any], ...]
"""The parts of a document that may hold a field, in the order of search."""


class FieldPath(NamedTuple):
    """A field's dotted name and the keys it consists of."""

    name: str
    key: str
    deeper: tuple[str, ...]


FieldPaths = tuple[FieldPath, ...]
"""The names that a field may have, in the order of search."""


class _ShortRepr(reprlib.Repr):
    """A repr of any value that fits into one line of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 60
        self.maxlevel = 2


_shortened = _ShortRepr().repr


def projection(settings: WorkersSettings) -> dict[str, int]:
    """Return the MongoDB projection of all known names, at top level and under `state`."""
    names = {name for names in _names(settings).values() for name in names} | {each.field for each in settings.extra}
    names |= {*SYSTEM_INFO}
    return inclusion(names | {f"{STATE}.{name}" for name in names})


def key_projection(settings: WorkersSettings) -> dict[str, int]:
    """Return the MongoDB projection of what decides which exporter has a worker."""
    names = {name for meaning in WorkerKey._fields for name in _names(settings)[meaning]}
    return inclusion(names | {f"{STATE}.{name}" for name in names} | {"_id"})


def inclusion(paths: Set[str]) -> dict[str, int]:
    """Return the MongoDB projection of the dotted paths, without a path inside another: MongoDB refuses both `a` and `a.b`."""
    inside = {path for path in paths if any(path[:dot] in paths for dot in _dots(path))}
    return dict.fromkeys(sorted(paths - inside), 1)


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """What one worker document says, whatever the other documents are."""

    worker: Worker | None
    """None: it was left out."""
    skipped: str = ""
    """Why it was left out, as in `Fleet.skipped`."""
    complaints: tuple[str, ...] = ()


def parse(documents: Iterable[object], date: int, settings: WorkersSettings) -> Fleet:
    """Return the workers of the documents; parse each independently of the others.

    Args:
        documents: as MongoDB returned them; they may hold anything.
        date: MongoDB's clock in UTC seconds when the read began.
        settings: additional field names and gauges.
    """
    return assemble(map(DocumentParser.of(settings).parse, documents), date)


def assemble(documents: Iterable[ParsedDocument], date: int) -> Fleet:
    """Return the fleet of one read; of two documents with one id the second is left out. `date` is as for `parse`."""
    workers: dict[str, Worker] = {}
    by_instance: dict[str, str] = {}
    skipped: dict[str, int] = {}
    complaints: list[str] = []
    for document in documents:
        worker, reason = document.worker, document.skipped
        if worker is not None and worker.id in workers:
            reason = "duplicate_id"
            complaints.append(
                f"two worker documents have the id {_shortened(worker.id)} and the second is left out; remove one of them"
            )
        else:
            complaints += document.complaints
        if reason or worker is None:
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        workers[worker.id] = worker
        if worker.instance_id is None:
            continue
        other = by_instance.setdefault(worker.instance_id, worker.id)
        if other != worker.id:
            complaints.append(
                f"workers {_shortened(other)} and {_shortened(worker.id)} have the same instance "
                f"{_shortened(worker.instance_id)}, so both get its CPU and memory; the manager must correct one of them"
            )
    return Fleet(date, tuple(workers.values()), skipped, tuple(complaints))


@dataclass(slots=True)
class DocumentParser:
    """Parser of single documents, with the complaints about the one at hand."""

    paths: Mapping[str, FieldPaths]
    system_info: FieldPaths
    extra: tuple[tuple[str, FieldPaths, Callable[[object], float | str]], ...]
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, settings: WorkersSettings) -> "DocumentParser":
        """Return the parser for additional field names and gauges."""
        return cls(
            paths={meaning: tuple(map(_path, names)) for meaning, names in _names(settings).items()},
            system_info=tuple(map(_path, SYSTEM_INFO)),
            extra=tuple((each.metric, (_path(each.field),), _converter(each)) for each in settings.extra),
        )

    def parse(self, document: object) -> ParsedDocument:
        """Return the worker of a document, or why it is left out, with a complaint for each malformed field."""
        self.complaints = []
        if not isinstance(document, Mapping):
            return _left_out("not_a_document", f"a worker document is {_shortened(document)} instead of a document; remove it")
        places = _places(document)
        worker_id = self._id(places)
        if isinstance(worker_id, ParsedDocument):
            return worker_id
        worker = self._worker(places, worker_id)
        if not worker.region and _find(places, self.paths["region"])[1] in (None, ""):
            self.complaints.append(
                f"worker {_shortened(worker_id)} has no region, so CloudWatch is not queried for it; "
                f"the manager must write {self._first('region')}"
            )
        return ParsedDocument(worker, "", tuple(self.complaints))

    def key(self, document: Mapping[str, Any]) -> WorkerKey | None:
        """Return what decides which exporter has the worker, as `parse` reads it; None for a document without a usable id."""
        places = _places(document)
        worker_id = self._id(places)
        if isinstance(worker_id, ParsedDocument):
            return None
        region = self._value(places, worker_id, self.paths["region"], values.region) or ""
        return WorkerKey(worker_id, region, self._value(places, worker_id, self.paths["name"], values.text) or "")

    def _worker(self, places: Places, worker_id: str) -> Worker:
        def value(meaning: str, convert: Callable[[object], T]) -> T | None:
            return self._value(places, worker_id, self.paths[meaning], convert)

        cpu, memory = measured(value("cpu", values.percent), value("memory", values.percent))
        return Worker(
            id=worker_id,
            region=value("region", values.region) or "",
            instance_id=value("instance", values.instance),
            status=value("status", values.status) or "unknown",
            name=value("name", values.text),
            address=value("address", values.text),
            instance_type=value("instance_type", values.kind),
            cml_version=value("cml_version", values.kind),
            active_labs=value("active_labs", values.count),
            cpu=cpu,
            memory=memory,
            collected_at=value("collected_at", values.time),
            last_activity_at=value("last_activity", values.time),
            created_at=value("created_at", values.time),
            terminated_at=value("terminated_at", values.time),
            facts=self._facts(places, worker_id),
            extra=self._extra(places, worker_id) if self.extra else (),
        )

    def _id(self, places: Places) -> str | ParsedDocument:
        name, raw = _find(places, self.paths["id"])
        if raw is None or raw == "":
            return _left_out(
                "no_id", f"a worker document has no id and is left out; the manager must write {self._first('id')}"
            )
        try:
            return values.identity(raw)
        except values.InvalidFieldError as error:
            sentence = f"{name} of a worker document is {_shortened(raw)}, not {error}; the document is left out"
            return _left_out("bad_id", sentence)

    def _facts(self, places: Places, worker_id: str) -> WorkerFacts:
        found = {meaning: self._value(places, worker_id, self.paths[meaning], convert) for meaning, convert in _FACTS.items()}
        name, info = _find(places, self.system_info)
        if info is not None:

            def report(path: str, raw: object, error: values.InvalidFieldError) -> None:
                self._complain(worker_id, f"{name}.{path}", raw, str(error))

            for meaning in system_info.FIGURES:
                if found[meaning] is None:
                    found[meaning] = system_info.total(info, meaning, report)
        return WorkerFacts(**cast(dict[str, Any], found))

    def _extra(self, places: Places, worker_id: str) -> tuple[tuple[str, float | str], ...]:
        found = ((metric, self._value(places, worker_id, paths, convert)) for metric, paths, convert in self.extra)
        return tuple((metric, value) for metric, value in found if value is not None)

    def _value(self, places: Places, worker_id: str, paths: FieldPaths, convert: Callable[[object], T]) -> T | None:
        name, raw = _find(places, paths)
        if raw is None or raw == "":
            return None
        try:
            return convert(raw)
        except values.InvalidFieldError as error:
            self._complain(worker_id, name, raw, str(error), _CONSEQUENCES.get(convert, "it is left out"))
            return None

    def _complain(self, worker_id: str, name: str, raw: object, expected: str, consequence: str = "it is left out") -> None:
        self.complaints.append(
            f"worker {_shortened(worker_id)}: {name} is {_shortened(raw)}, not {expected}; "
            f"{consequence} until the manager corrects it"
        )

    def _first(self, meaning: str) -> str:
        return self.paths[meaning][0].name


def _places(document: Mapping[str, Any]) -> Places:
    state = document.get(STATE)
    return (document, state) if isinstance(state, Mapping) else (document,)


def _left_out(reason: str, sentence: str) -> ParsedDocument:
    return ParsedDocument(None, reason, (sentence,))


def measured(cpu: float | None, memory: float | None) -> tuple[float | None, float | None]:
    """Return the document's CPU and memory without zeros that were not measured.

    The manager writes memory 0.0 where CloudWatch has no datapoint, and CPU 0.0 beside it where CloudWatch has neither. No
    running machine uses 0 % of its memory. A document's CPU is only a fallback for a missing datapoint, so a CPU of 0 beside
    such a memory is not a measurement either.
    """
    if memory != 0:
        return cpu, memory
    return (None if cpu == 0 else cpu), None


def _names(settings: WorkersSettings) -> dict[str, tuple[str, ...]]:
    return {meaning: (*settings.fields.get(meaning, ()), *names) for meaning, names in FIELDS.items()}


def _converter(extra: ExtraMetric) -> Callable[[object], float | str]:
    if extra.state_names:
        return values.state_of(extra.state_names)
    return values.time if extra.type == "timestamp" else values.any_number


def _path(name: str) -> FieldPath:
    key, *deeper = name.split(".")
    return FieldPath(name, key, tuple(deeper))


def _dots(path: str) -> Iterable[int]:
    return (at for at, character in enumerate(path) if character == ".")


def _find(places: Places, paths: FieldPaths) -> tuple[str, object]:
    """Return the first name that has a value, and the value; ("", None) if none has. A null counts as absent."""
    for name, key, deeper in paths:
        for place in places:
            value = place.get(key)
            for further in deeper:
                value = value.get(further) if isinstance(value, Mapping) else None
            if value is not None:
                return name, value
    return "", None
