"""The types of settings: how a text is parsed and what is refused, and the base class of the sections."""

import math
import re
from ipaddress import ip_address, ip_network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from exporter.core.periods import parse_duration

OWN_COLLECTIONS = ("worker_metrics_inventory", "cml_exporter_state")
"""Collections beside the history that the exporter writes; `mongodb.workers` and `mongodb.history` must be others."""


def _duration(value: object) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit; write a duration such as 30s, 5m, 1h or 30d")
    raise ValueError("it must be a duration such as 30s, 5m, 1h or 30d")


def listed_addresses(value: object) -> object:
    """Return a list of addresses: of one, of a text that separates them by commas, or as it is; a number is a port."""
    items = listed(value)
    items = items if isinstance(items, list) else [items]
    return [f":{item}" if isinstance(item, int) and not isinstance(item, bool) else item for item in items]


def _address(value: str) -> str:
    if value.isdecimal():
        value = f":{value}"
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{value!r} is not host:port; write :9877, 127.0.0.1:9877 or [::1]:9877")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{value!r}: put an IPv6 address in brackets, such as [::1]:9877")
    return value


def _collection(value: str) -> str:
    if not value or value.startswith("system.") or set(value) & set("$\0"):
        raise ValueError(f"{value!r} is not a collection name; write one without $ that does not begin with system.")
    if value in OWN_COLLECTIONS:
        raise ValueError(f"{value!r} is reserved for the exporter; choose another name")
    return value


def _field_name(value: str) -> str:
    if not all(part and not part.startswith("$") for part in value.split(".")) or "\0" in value:
        raise ValueError(f"{value!r} is not a field name; write keys joined by dots, none of them empty or beginning with $")
    return value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^/\s@]+", value):
        raise ValueError(f"{value!r} is not an origin; write https://host or https://host:port without a path, or *")
    return value


def checked_url(value: str) -> str:
    """Return the value if it is a URL.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"https?://[^/\s]\S*", value):
        raise ValueError("it is not a URL; write http://host:port or https://host")
    return value


def _route_prefix(value: str) -> str:
    if value == "/":
        return ""
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", value):
        raise ValueError(f"{value!r} is not a path; write one such as /workers, of letters, digits and -._~, or / for none")
    return value.rstrip("/")


def _network(value: str) -> str:
    try:
        return str(ip_network(value, strict=False)) if "/" in value else str(ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an address or network; write 10.0.0.7, 10.0.0.0/24 or fd00::/8") from None


def _dollars(value: object) -> object:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{value!r} is not an amount of dollars; write a number above 0, such as 1.50")
    return number


def _instance_type(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", value):
        raise ValueError(f"{value!r} is not an EC2 instance type; write one as AWS does, such as m5zn.metal")
    return value


def _share(value: object) -> object:
    text = value.strip() if isinstance(value, str) else ""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)? ?%", text) or float(text.rstrip("% ")) > 100:
        raise ValueError(f"{value!r} is not a share; write a percentage from 0% to 100%, such as 10%")
    return float(text.rstrip("% ")) / 100


def listed(value: object) -> object:
    """Return the items of a text that separates them by commas; anything else unchanged."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Dollars = Annotated[float, BeforeValidator(_dollars)]
Share = Annotated[float, BeforeValidator(_share)]
"""A part of a whole, 0 to 1, written as a percentage."""
Duration = Annotated[int, BeforeValidator(_duration)]
"""Whole seconds, written as a Prometheus duration."""
Address = Annotated[str, AfterValidator(_address)]
Collection = Annotated[str, AfterValidator(_collection)]
InstanceType = Annotated[str, AfterValidator(_instance_type)]
FieldName = Annotated[str, AfterValidator(_field_name)]
"""Keys joined by dots."""
FieldNames = Annotated[list[FieldName], BeforeValidator(listed)]
Network = Annotated[str, AfterValidator(_network)]
RoutePrefix = Annotated[str, AfterValidator(_route_prefix)]
Origin = Annotated[str, AfterValidator(_origin)]
Url = Annotated[str, AfterValidator(checked_url)]


class Section(BaseModel):
    """A mapping of settings: unknown keys are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)
