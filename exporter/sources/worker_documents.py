"""Parse worker documents (the manager's aggregates) into workers. Pure."""

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from bson import Binary, DatetimeMS, Decimal128, ObjectId
from bson.binary import UuidRepresentation

from exporter.core.errors import ExporterError
from exporter.core.model import STATUSES, Fleet, Worker
from exporter.core.periods import LATEST, to_seconds
from exporter.core.settings import WorkersSettings

FIELDS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "_id"),
    "name": ("name",),
    "region": ("aws_region",),
    "instance": ("aws_instance_id",),
    "address": ("private_ip",),
    "status": ("status",),
    "cpu": ("cpu_utilization", "cloudwatch_cpu_utilization"),
    "memory": ("memory_utilization", "cloudwatch_memory_utilization"),
    "collected_at": ("cloudwatch_last_collected_at",),
    "active_labs": ("active_labs_count", "cml_labs_count", "metrics.labs_count"),
    "last_activity": ("last_activity_at",),
    "instance_type": ("instance_type",),
    "cml_version": ("cml_version", "metrics.version"),
    "created_at": ("created_at",),
    "terminated_at": ("terminated_at",),
}
"""Meaning → the manager's field names, of all its generations; names of `workers.fields` are tried first."""

STATE = "state"
"""The key that holds the fields where they are not at top level."""

MAX_ID_CHARACTERS = 1024
"""Ids identify workers everywhere, so unlike other texts a long id cannot be cut: two workers could become one."""

_MILLISECONDS_FROM = 1e11  # as seconds that is the year 5138, as milliseconds 1973
_MOST_LABS = 2**31 - 1

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


class InvalidFieldError(ExporterError):
    """A value does not have the type or range of its field; the message names what the field should hold."""


def projection(settings: WorkersSettings) -> dict[str, int]:
    """Return the projection of all known names, at top level and under `state`, without a path inside another.

    MongoDB refuses a projection that holds both `a` and `a.b`.
    """
    names = {name for names in _names(settings).values() for name in names} | {gauge.field for gauge in settings.extra}
    paths = names | {f"{STATE}.{name}" for name in names}
    inside = {path for path in paths if any(path[:dot] in paths for dot in _dots(path))}
    return dict.fromkeys(sorted(paths - inside), 1)


def parse(documents: Iterable[Mapping[str, Any]], date: int, settings: WorkersSettings) -> Fleet:
    """Return the workers of the documents; parse each independently of the others.

    Args:
        documents: as MongoDB returned them; they may hold anything.
        date: MongoDB's clock in UTC seconds when the read began.
        settings: additional field names and gauges.
    """
    parser = DocumentParser(
        paths={meaning: tuple(map(_path, names)) for meaning, names in _names(settings).items()},
        extra=tuple((gauge.metric, (_path(gauge.field),)) for gauge in settings.extra),
    )
    for document in documents:
        parser.parse(document)
    return Fleet(date, tuple(parser.workers.values()), parser.skipped, tuple(parser.complaints))


@dataclass(slots=True)
class DocumentParser:
    """Parser of one read of the collection, with the workers and complaints found so far."""

    paths: Mapping[str, FieldPaths]
    extra: tuple[tuple[str, FieldPaths], ...]
    workers: dict[str, Worker] = field(default_factory=dict)
    by_instance: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def parse(self, document: object) -> None:
        """Add the worker of one document, or count it as skipped and add a complaint that says why."""
        if not isinstance(document, Mapping):
            self._skip("not_a_document", f"a worker document is {_shortened(document)} instead of a document; remove it")
            return
        state = document.get(STATE)
        places = (document, state) if isinstance(state, Mapping) else (document,)
        worker_id = self._id(places)
        if worker_id is None:
            return
        region = self._value(places, worker_id, self.paths["region"], _text)
        if region is None:
            self._skip(
                "no_region",
                f"worker {_shortened(worker_id)} has no region and is left out; the manager must write {self._first('region')}",
            )
            return
        if worker_id in self.workers:
            self._skip(
                "duplicate_id",
                f"two worker documents have the id {_shortened(worker_id)} and the second is left out; remove one of them",
            )
            return
        worker = self._worker(places, worker_id, region)
        self.workers[worker_id] = worker
        self._note_instance(worker)

    def _worker(self, places: Places, worker_id: str, region: str) -> Worker:
        def value(meaning: str, convert: Callable[[object], T]) -> T | None:
            return self._value(places, worker_id, self.paths[meaning], convert)

        cpu, memory = measured(value("cpu", _percent), value("memory", _percent))
        return Worker(
            id=worker_id,
            region=region,
            instance_id=value("instance", _instance),
            status=value("status", _status) or "unknown",
            name=value("name", _text),
            address=value("address", _text),
            instance_type=value("instance_type", _text),
            cml_version=value("cml_version", _text),
            active_labs=value("active_labs", _labs),
            cpu=cpu,
            memory=memory,
            collected_at=value("collected_at", _time),
            last_activity_at=value("last_activity", _time),
            created_at=value("created_at", _time),
            terminated_at=value("terminated_at", _time),
            extra=self._extra(places, worker_id) if self.extra else (),
        )

    def _id(self, places: Places) -> str | None:
        name, raw = _find(places, self.paths["id"])
        if raw is None or raw == "":
            self._skip("no_id", f"a worker document has no id and is left out; the manager must write {self._first('id')}")
            return None
        try:
            return _identity(raw)
        except InvalidFieldError as error:
            self._skip("bad_id", f"{name} of a worker document is {_shortened(raw)}, not {error}; the document is left out")
            return None

    def _extra(self, places: Places, worker_id: str) -> tuple[tuple[str, float], ...]:
        values = ((metric, self._value(places, worker_id, paths, _gauge)) for metric, paths in self.extra)
        return tuple((metric, value) for metric, value in values if value is not None)

    def _value(self, places: Places, worker_id: str, paths: FieldPaths, convert: Callable[[object], T]) -> T | None:
        name, raw = _find(places, paths)
        if raw is None or raw == "":
            return None
        try:
            return convert(raw)
        except InvalidFieldError as error:
            consequence = "reads unknown" if convert is _status else "is left out"
            self.complaints.append(
                f"worker {_shortened(worker_id)}: {name} is {_shortened(raw)}, not {error}; "
                f"it {consequence} until the manager corrects it"
            )
            return None

    def _note_instance(self, worker: Worker) -> None:
        if worker.instance_id is None:
            return
        other = self.by_instance.setdefault(worker.instance_id, worker.id)
        if other != worker.id:
            self.complaints.append(
                f"workers {_shortened(other)} and {_shortened(worker.id)} have the same instance "
                f"{_shortened(worker.instance_id)}, so both get its CPU and memory; the manager must correct one of them"
            )

    def _skip(self, reason: str, sentence: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        self.complaints.append(sentence)

    def _first(self, meaning: str) -> str:
        return self.paths[meaning][0].name


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


def _identity(raw: object) -> str:
    if isinstance(raw, ObjectId | UUID) or (isinstance(raw, int) and not isinstance(raw, bool)):
        return str(raw)
    if isinstance(raw, Binary):
        return str(_uuid(raw))
    if isinstance(raw, str) and len(raw) <= MAX_ID_CHARACTERS:
        return _encodable(raw)
    raise InvalidFieldError(f"a text of at most {MAX_ID_CHARACTERS} characters, an ObjectId or a UUID")


def _uuid(raw: Binary) -> UUID:
    # Old drivers wrote subtype 3, in several byte orders; that of the Python driver is the most likely.
    representation = UuidRepresentation.STANDARD if raw.subtype == 4 else UuidRepresentation.PYTHON_LEGACY
    try:
        return raw.as_uuid(representation)
    except ValueError as error:
        raise InvalidFieldError("a UUID") from error


def _text(raw: object) -> str:
    if isinstance(raw, str):
        return _encodable(raw)
    if isinstance(raw, int | float) and not isinstance(raw, bool):  # a version such as 2.8
        return str(raw)
    raise InvalidFieldError("a text")


def _instance(raw: object) -> str:
    text = _text(raw).strip()
    if not text or "," in text or len(text.split()) != 1:  # the outbox joins several with blanks
        raise InvalidFieldError("the id of one instance")
    return text


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 can carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _status(raw: object) -> str:
    if isinstance(raw, Mapping):  # an enumeration written as {"value": …}
        raw = raw.get("value")
    status = raw.strip().lower().replace("_", "-").replace(" ", "-") if isinstance(raw, str) else None
    if status in STATUSES:
        return status
    raise InvalidFieldError(f"one of {', '.join(STATUSES)}")


def _number(raw: object) -> float | None:
    """Return the finite number that a number or a text holds, else None; a boolean is not a number."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str | Decimal128):
        return None
    try:
        number = float(raw.to_decimal() if isinstance(raw, Decimal128) else raw)
    except (ValueError, OverflowError):
        return None
    return number + 0.0 if math.isfinite(number) else None  # + 0.0 turns -0.0 into 0.0


def _percent(raw: object) -> float:
    number = _number(raw)
    if number is None or not 0 <= number <= 100:
        raise InvalidFieldError("a number from 0 to 100")
    return number


def _labs(raw: object) -> int:
    number = _number(raw)
    if number is None or not 0 <= number <= _MOST_LABS or not number.is_integer():
        raise InvalidFieldError("a whole number of at least 0")
    return int(number)


def _time(raw: object) -> int:
    time = _seconds(raw)
    # Several languages write the year 1 for a date that was never set.
    if time is None or not 0 < time <= LATEST:
        raise InvalidFieldError("a date, such as 2026-01-31T12:00:00Z")
    return int(time)


def _seconds(raw: object) -> float | None:
    """Return the UTC seconds of a BSON date, an ISO 8601 text or a Unix time in seconds or milliseconds, else None."""
    if isinstance(raw, datetime):
        return to_seconds(raw)
    if isinstance(raw, DatetimeMS):
        return int(raw) / 1000
    if isinstance(raw, str):
        try:
            return to_seconds(datetime.fromisoformat(raw.strip()))
        except ValueError:
            return None
    number = _number(raw)
    return number / 1000 if number is not None and number > _MILLISECONDS_FROM else number


def _gauge(raw: object) -> float:
    if isinstance(raw, bool):
        return float(raw)
    number = _number(raw)
    if number is None:
        number = _seconds(raw)
    if number is None:
        raise InvalidFieldError("a number, a boolean or a date")
    return float(number)


CONVERTERS: Mapping[str, Callable[[object], object]] = {
    "id": _identity,
    "region": _text,
    "name": _text,
    "status": _status,
    "cpu": _percent,
    "memory": _percent,
    "active_labs": _labs,
}
"""Meaning → the function that returns the value of a raw one, or raises InvalidFieldError; for the manager's events."""
