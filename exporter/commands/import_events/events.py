"""Parse the manager's domain events into observations: what was true of a worker at a time. Pure.

An event is a document with its fields at top level, or an envelope with a payload under `data`, `event` or `payload`. The type
of an event stands in the envelope or in the payload. Another program writes these documents, so any field may hold anything: a
malformed value costs that value, an event without worker or time is skipped, and both are counted.
"""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from bson import DatetimeMS

from exporter.core.event_settings import EventFields
from exporter.core.periods import LATEST, MILLISECONDS_FROM, as_utc, to_datetime
from exporter.sources import field_values
from exporter.sources.field_values import InvalidFieldError
from exporter.sources.worker_documents import inclusion, measured

TYPE_KEYS = ("type", "event_type", "__type__", "name")
"""Keys that may hold the type of an event, in the order of search."""
PAYLOAD_KEYS = ("data", "event", "payload")
"""Keys that may hold the payload of an event, in the order of search."""
TEXT_PAYLOAD = "text_payload"
"""Key that `projection` adds: whether a key of the payload holds a text, such as JSON, which is not parsed."""

VALUES = ("cpu", "memory", "labs", "status")
"""What a sample holds of an event."""
_CONVERTERS: Mapping[str, Callable[[object], object]] = {
    "cpu": field_values.percent,
    "memory": field_values.percent,
    "labs": field_values.count,
    "status": field_values.status,
    "region": field_values.text,
    "name": field_values.text,
}
"""Field of `EventFields` → the function that converts a raw value of it."""
_EPOCH = to_datetime(0)

Document = Mapping[str, Any]


class Observation(NamedTuple):
    """What one event tells of a worker; utilizations are percent, None is not told."""

    worker_id: str
    at: int
    """Milliseconds since 1970."""
    cpu: float | None = None
    memory: float | None = None
    labs: int | None = None
    status: str | None = None
    region: str | None = None
    name: str | None = None

    @property
    def empty(self) -> bool:
        """Whether it tells nothing that a sample holds."""
        return all(getattr(self, name) is None for name in VALUES)


class SkippedEvent(NamedTuple):
    """An event without a worker or a time."""

    reason: str
    """A key of `plan.SKIPPED`."""
    example: str
    """What it holds instead, or which event it is."""


@dataclass(frozen=True, slots=True)
class ParsedEvent:
    """One event of a configured type."""

    type: str
    result: Observation | SkippedEvent
    invalid: tuple[tuple[str, str], ...] = ()
    """(field, what it holds) of each value that is left out."""


class EventParser:
    """Parses events of the configured types.

    Args:
        types: event type → where its fields are.
    """

    def __init__(self, types: Mapping[str, EventFields]) -> None:
        self._paths = {
            name: {meaning: [_Path(path) for path in getattr(fields, meaning)] for meaning in EventFields.model_fields}
            for name, fields in types.items()
        }

    def query(self) -> dict[str, Any]:
        """Return the MongoDB filter of the events that `parse` knows."""
        names = sorted(self._paths)
        return {"$or": [{path: {"$in": names}} for path in _everywhere(TYPE_KEYS)]}

    def projection(self) -> dict[str, Any]:
        """Return the MongoDB projection of all fields that `parse` reads, and TEXT_PAYLOAD."""
        names = {
            path.name for paths in self._paths.values() for each in paths.values() for path in each if path.literal is None
        }
        types = [{"$type": f"${key}"} for key in PAYLOAD_KEYS if key != "event"]  # `event` may hold the name of the event
        return {**inclusion({*_everywhere([*TYPE_KEYS, *names])}), TEXT_PAYLOAD: {"$in": ["string", types]}}

    def parse(self, document: Document) -> ParsedEvent | None:
        """Return what an event tells; None if its type is not configured."""
        payload = next((inner for key in PAYLOAD_KEYS if isinstance(inner := document.get(key), Mapping)), document)
        name = self._type((document, payload))
        if name is None:
            return None
        paths = self._paths[name]
        key = _key(paths, payload, document)
        if isinstance(key, SkippedEvent):
            return ParsedEvent(name, key)
        told: dict[str, Any] = {}
        invalid: list[tuple[str, str]] = []
        for meaning, convert in _CONVERTERS.items():
            path, raw = _find((payload,), paths[meaning])
            if raw is None or raw == "" or (meaning == "name" and raw == name):  # of a flat event, `name` may be its type
                continue
            try:
                told[meaning] = convert(raw)
            except InvalidFieldError as error:
                invalid.append((path, f"{_shortened(raw)}, not {error}"))
        told["cpu"], told["memory"] = measured(told.get("cpu"), told.get("memory"))
        return ParsedEvent(name, Observation(*key, **told), tuple(invalid))

    def _type(self, places: Iterable[Document]) -> str | None:
        values = (place.get(key) for place in places for key in TYPE_KEYS)
        return next((value for value in values if isinstance(value, str) and value in self._paths), None)


class _Path:
    """A dotted name and its keys; `literal` is the value itself where the name begins with =."""

    __slots__ = ("keys", "literal", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys = tuple(name.split("."))
        self.literal = name[1:] if name.startswith("=") else None


def _find(places: Iterable[Document], paths: Sequence[_Path]) -> tuple[str, object]:
    """Return the first name that has a value, and the value; ("", None) if none has. A null counts as absent."""
    for place in places:
        for path in paths:
            if path.literal is not None:
                return path.name, path.literal
            value: Any = place
            for key in path.keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                return path.name, value
    return "", None


def _key(paths: Mapping[str, Sequence[_Path]], payload: Document, document: Document) -> tuple[str, int] | SkippedEvent:
    """Return worker id and milliseconds, or why the event cannot be placed."""
    path, raw = _find((payload, document), paths["worker_id"])
    if raw is None or raw == "":
        if document.get(TEXT_PAYLOAD):
            return SkippedEvent("text_payload", f"_id {_shortened(document.get('_id'))}")
        return SkippedEvent("no_worker_id", f"_id {_shortened(document.get('_id'))}")
    try:
        worker_id = field_values.identity(raw)
    except InvalidFieldError as error:
        return SkippedEvent("no_worker_id", f"{path} is {_shortened(raw)}, not {error}")
    path, raw = _find((payload, document), paths["time"])
    at = milliseconds(raw)
    if at is None:
        what = f"{path} is {_shortened(raw)}" if path else f"_id {_shortened(document.get('_id'))}"
        return SkippedEvent("no_time", what)
    return worker_id, at


def _everywhere(names: Iterable[str]) -> Iterator[str]:
    """Yield each name at top level and in each payload."""
    for name in names:
        yield name
        yield from (f"{key}.{name}" for key in PAYLOAD_KEYS)


def milliseconds(raw: object) -> int | None:
    """Return the milliseconds since 1970 of a BSON date, an ISO 8601 text or a Unix time in seconds or milliseconds.

    None for anything else, for times before 1970, and beyond the year 9999.
    """
    if isinstance(raw, str):
        try:
            raw = datetime.fromisoformat(raw.strip())
        except ValueError:
            return None
    if isinstance(raw, datetime):
        at = (as_utc(raw) - _EPOCH) // timedelta(milliseconds=1)
    elif isinstance(raw, DatetimeMS):
        at = int(raw)
    elif isinstance(raw, int | float) and not isinstance(raw, bool) and abs(raw) <= LATEST * 1000:  # False for NaN
        at = int(raw) if raw > MILLISECONDS_FROM else int(raw * 1000)
    else:
        return None
    return at if 0 < at <= LATEST * 1000 else None


def _shortened(raw: object) -> str:
    return reprlib.repr(raw)
