"""The templates of the pages, and their style sheet and scripts.

Every text is escaped (autoescape), so that a name in a worker document is only text. The style sheet and the scripts are files
of their own: the pages' content security policy allows nothing inline and nothing from elsewhere.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exporter import __version__
from exporter.core.periods import DAY, HOUR, MINUTE, rfc3339

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of a page."""
MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


class StaticFile(NamedTuple):
    """A file that pages load."""

    body: bytes
    media_type: str
    version: str
    """Changes with the body, for the address: browsers may keep the file."""


def _static_files() -> Mapping[str, StaticFile]:
    found = {}
    for each in files("exporter.web.pages").joinpath("static").iterdir():
        media_type = MEDIA_TYPES.get(each.name.rpartition(".")[2])
        if media_type:
            body = each.read_bytes()
            found[each.name] = StaticFile(body, media_type, hashlib.sha256(body).hexdigest()[:12])
    return found


STATIC = _static_files()
"""Name → file."""


def moment(time: int | str | None, zone: tzinfo | None = None) -> Markup:
    """Return a time for people, with its exact form for machines and on hover; a dash for None.

    Args:
        time: UTC second, or RFC 3339.
        zone: whose clocks are shown; None: UTC.
    """
    if time is None:
        return Markup("–")
    second = time if isinstance(time, int) else int(datetime.fromisoformat(time).timestamp())
    local = datetime.fromtimestamp(second, zone or UTC)
    exact = rfc3339(second)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, exact, f"{local:%Y-%m-%d %H:%M} {local:%Z}")


def clock(time: int) -> Markup:
    """Return the UTC time of day of a UTC second, with its date for machines."""
    exact = rfc3339(time)
    return Markup('<time datetime="{}" title="{}">{} UTC</time>').format(exact, exact, exact[11:19])


def ago(time: int, now: int) -> Markup:
    """Return how long ago a time was in its largest unit, such as `3 h`, with the exact time on hover; both in UTC seconds."""
    seconds, exact = max(0, now - time), rfc3339(time)
    unit, name = next(((unit, name) for unit, name in _UNITS if seconds >= 2 * unit), (MINUTE, "min"))
    text = f"{seconds // unit:,} {name}" if seconds >= MINUTE else "< 1 min"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, exact, text)


_UNITS = ((DAY, "d"), (HOUR, "h"))
"""Each counts from twice its length on: 90 min says more than 1 h."""


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units, such as `3 h` or `2 d 4 h`; a dash for None."""
    if seconds is None:
        return "–"
    for unit, name, smaller, smaller_name in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min")):
        if seconds >= unit:
            whole, rest = divmod(int(seconds), unit)
            return f"{whole:,} {name}" + (f" {rest // smaller} {smaller_name}" if rest >= smaller else "")
    return f"{int(seconds // MINUTE)} min" if seconds >= MINUTE else f"{int(seconds)} s"


def number(value: float | None, unit: str = "") -> str:
    """Return a number with at most one decimal; a dash for None."""
    return "–" if value is None else f"{value:,.1f}".removesuffix(".0") + unit


_ENVIRONMENT = Environment(
    loader=PackageLoader("exporter.web.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters |= {"moment": moment, "duration": duration, "clock": clock, "number": number}
VERSION = " ".join([__version__, *(each.version for each in STATIC.values())])
"""Changes when pages look different for the same content."""
_ENVIRONMENT.globals |= {"version": __version__, "static": STATIC}


def render(template: str, **context: Any) -> str:  # noqa: ANN401  # each template has its own
    """Return a page.

    Args:
        template: its file name.
        context: what it shows; `root` is the relative path from the page to the root of the exporter.
    """
    return _ENVIRONMENT.get_template(template).render(context)
