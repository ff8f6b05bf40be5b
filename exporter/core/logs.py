"""The log: one line per event on standard error, logfmt or JSON, with the keys and levels of Prometheus's programs.

    ts=2026-01-31T12:00:00.123456Z level=info msg="collection cycle finished" workers=12 took=0.4

structlog passes its events to the standard library's logging, so warnings and errors of uvicorn, botocore and pymongo pass
through the same renderer. The renderer masks the credentials of every URL in a line.
"""

import logging
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, TextIO

import structlog
from structlog.stdlib import BoundLogger
from structlog.types import EventDict, Processor, WrappedLogger

ROOT = "exporter"
"""Loggers below this name log at the configured level, all others at warning."""

REPEAT_SECONDS = 600
"""How long the same text of a lasting fault is not logged again."""

_REMEMBERED = 6
"""For how many times as long it is remembered how often a text was not logged."""

_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s\"]|\\\")*@", re.IGNORECASE)
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_PROMETHEUS_LEVELS = {"warning": "warn", "critical": "error", "exception": "error"}


class _Handler(logging.StreamHandler[TextIO]):
    """The exporter's handler; its class tells it from other handlers when the log is configured again."""


def configure(level: str, format: Literal["logfmt", "json"], stream: TextIO | None = None) -> None:
    """Send all logging of the process to `stream`, replacing an earlier configuration.

    Args:
        level: debug, info, warn or error.
        format: logfmt or json.
        stream: standard error when None.
    """
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        _prometheus_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("msg"),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared[:2],
            _once(),
            *shared[2:],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # so that a second call of `configure` affects every logger
    )
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _masked(_renderer(format))],
        )
    )
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, _LEVELS[level]))
    if format == "json":  # what reads the log reads no plain text
        warnings.showwarning = lambda message, *_, **__: get("warnings").warning(str(message))
    logging.getLogger(ROOT).setLevel(_LEVELS[level])


def get(name: str) -> BoundLogger:
    """Return the logger of a module (`__name__`); `log.info("what happened", key=value)` writes one line."""
    # A module run with `python -m` is named __main__, which is not below ROOT.
    inside = name == ROOT or name.startswith(f"{ROOT}.")
    logger: BoundLogger = structlog.stdlib.get_logger(name if inside else f"{ROOT}.{name}")
    return logger


class Repeats:
    """Tells whether a text is worth another log line, so that a fault that lasts for hours is one line, and then its count.

    Args:
        seconds: how long the same text is not logged again.
        monotonic: seconds of a clock that is never set.
    """

    def __init__(self, seconds: float = REPEAT_SECONDS, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._logged: dict[str, _Logged] = {}
        """By text, in the order of their last lines."""
        self.count: dict[str, int] = {}
        """{"repeated": n}, for the line that `is_due` or `reset` has just allowed: how often a text was not logged since its
        last line; empty if never."""

    def is_due(self, text: str) -> bool:
        """Return whether the text was not logged within the last `seconds`; if so, it counts as logged now."""
        now = self._monotonic()
        while self._logged and next(iter(self._logged.values())).at <= now - _REMEMBERED * self._seconds:
            del self._logged[next(iter(self._logged))]
        last = self._logged.get(text)
        if last is not None and last.at > now - self._seconds:
            last.repeated += 1
            return False
        self._logged.pop(text, None)
        self._logged[text] = _Logged(now)
        self._note(last.repeated if last else 0)
        return True

    def reset(self) -> bool:
        """Forget what was logged, because the fault is over; return whether anything was logged since the last call."""
        logged = bool(self._logged)
        self._note(sum(last.repeated for last in self._logged.values()))
        self._logged.clear()
        return logged

    def _note(self, repeated: int) -> None:
        self.count = {"repeated": repeated} if repeated else {}


@dataclass(slots=True)
class _Logged:
    """The last line of a text: its time, and how often the text was not logged since."""

    at: float
    repeated: int = 0


def _once() -> Processor:
    """Return a processor that drops warnings and errors that were logged a short time ago with the same values."""
    repeats = Repeats()

    def drop(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if event["level"] in ("warn", "error"):
            if not repeats.is_due(repr((logger.name, sorted(event.items(), key=itemgetter(0))))):
                raise structlog.DropEvent
            event.update(repeats.count)
        return event

    return drop


def mask(text: str) -> str:
    """Replace the user and password of every URL in the text with stars."""
    return _CREDENTIALS.sub(r"\1***@", text)


def _renderer(format: Literal["logfmt", "json"]) -> Callable[[WrappedLogger, str, EventDict], str | bytes]:
    if format == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    return structlog.processors.LogfmtRenderer(key_order=["ts", "level", "msg"], drop_missing=True, bool_as_flag=False)


def _masked(renderer: Callable[[WrappedLogger, str, EventDict], str | bytes]) -> Processor:
    """Mask the rendered line: by then a secret in a value, an exception or a nested mapping is plain text."""

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        return mask(str(renderer(logger, method, event)))

    return render


def _prometheus_level(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["level"] = _PROMETHEUS_LEVELS.get(event["level"], event["level"])
    return event
