"""Values of the fields of a worker document: each function converts one, or says what the field should hold. Pure."""

import math
import sys
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from uuid import UUID

from bson import Binary, DatetimeMS, Decimal128, ObjectId
from bson.binary import UuidRepresentation

from exporter.core.errors import ExporterError
from exporter.core.model import STATUSES, normal_state
from exporter.core.periods import LATEST, MILLISECONDS_FROM, to_seconds
from exporter.core.regions import parse_region

MAX_ID_CHARACTERS = 1024
"""Ids identify workers everywhere, so unlike other texts a long id cannot be cut: two workers could become one."""

_MOST_COUNT = 2**31 - 1
_MOST_AMOUNT = 2**63 - 1
_FLAGS: Mapping[object, bool] = {"true": True, "false": False, "1": True, "0": False, 1: True, 0: False}


class InvalidFieldError(ExporterError):
    """A value does not have the type or range of its field; the message names what the field should hold."""


def identity(raw: object) -> str:
    """Convert an id to a text."""
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


def text(raw: object) -> str:
    """Convert a text; a number, such as the version 2.8, becomes one."""
    if isinstance(raw, str):
        return _encodable(raw)
    if isinstance(raw, int | float) and not isinstance(raw, bool):  # a version such as 2.8
        return str(raw)
    raise InvalidFieldError("a text")


def kind(raw: object) -> str:
    """Convert a text that many workers have in common; one object serves them all."""
    return sys.intern(text(raw))


def instance(raw: object) -> str:
    """Convert the id of an instance."""
    name = text(raw).strip()
    if not name or "," in name or len(name.split()) != 1:  # the outbox joins several with blanks
        raise InvalidFieldError("the id of one instance")
    return name


def region(raw: object) -> str:
    """Convert the name of an AWS region."""
    try:
        return sys.intern(parse_region(text(raw)))
    except ValueError as error:
        raise InvalidFieldError("an AWS region such as eu-west-1") from error


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 can carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def status(raw: object) -> str:
    """Convert a worker's status to one of STATUSES."""
    status = _state(raw)
    if status in STATUSES:
        return sys.intern(status)
    raise InvalidFieldError(f"one of {', '.join(STATUSES)}")


def _state(raw: object) -> str | None:
    """Return the normal form of a state, which may be an enumeration written as {"value": …}; None if it is no text."""
    if isinstance(raw, Mapping):
        raw = raw.get("value")
    return normal_state(raw) if isinstance(raw, str) else None


def _number(raw: object) -> float | None:
    """Return the finite number that a number or a text holds, else None; a boolean is not a number."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str | Decimal128):
        return None
    try:
        number = float(raw.to_decimal() if isinstance(raw, Decimal128) else raw)
    except (ValueError, OverflowError):
        return None
    return number + 0.0 if math.isfinite(number) else None  # + 0.0 turns -0.0 into 0.0


def flag(raw: object) -> bool:
    """Convert a boolean, which may be written as 0 or 1 or as a text."""
    known = (
        _FLAGS.get(raw.strip().lower() if isinstance(raw, str) else raw) if isinstance(raw, str | bool | int | float) else None
    )
    if known is None:
        raise InvalidFieldError("true or false")
    return known


def amount(raw: object) -> float:
    """Convert a quantity that cannot be negative: bytes, seconds."""
    number = _number(raw)
    if number is None or not 0 <= number <= _MOST_AMOUNT:
        raise InvalidFieldError("a number of at least 0")
    return number


def state_of(states: Collection[str]) -> Callable[[object], str]:
    """Return a converter to one of the states: a text that is none of them reads "unknown"."""

    def state(raw: object) -> str:
        text = _state(raw)
        if text is None:
            raise InvalidFieldError(f"a text such as {next(iter(states))}")
        return text if text in states else "unknown"

    return state


def percent(raw: object) -> float:
    """Convert a percentage."""
    number = _number(raw)
    if number is None or not 0 <= number <= 100:
        raise InvalidFieldError("a number from 0 to 100")
    return number


def count(raw: object) -> int:
    """Convert a whole number of at least 0."""
    number = _number(raw)
    if number is None or not 0 <= number <= _MOST_COUNT or not number.is_integer():
        raise InvalidFieldError("a whole number of at least 0")
    return int(number)


def time(raw: object) -> int:
    """Convert a date to UTC seconds."""
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
    return number / 1000 if number is not None and number > MILLISECONDS_FROM else number


def any_number(raw: object) -> float:
    """Convert a number, a boolean (0 or 1) or a date (UTC seconds)."""
    if isinstance(raw, bool):
        return float(raw)
    number = _number(raw)
    if number is None:
        number = _seconds(raw)
    if number is None:
        raise InvalidFieldError("a number, a boolean or a date")
    return float(number)
