"""Run `verify --repair` in a process that kills itself at one of its MongoDB commands."""

import asyncio
import io
import os
import signal
import sys
from typing import Literal

from pymongo import monitoring

from exporter.commands.verify import repair
from exporter.core import logs
from exporter.core.settings import Settings
from exporter.storage import rewrite

When = Literal["started", "succeeded"]
QUIET = ("hello", "ping", "endSessions")
PAGE_SAMPLES = 10
"""Small pages, so that a few samples take several commands."""


class Killer(monitoring.CommandListener):
    """Ends the process without a trace: before the n-th command is sent, or after its answer has come."""

    def __init__(self, number: int, when: When) -> None:
        self._left, self._when = number, when

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self._count("started", event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._count("succeeded", event.command_name)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass

    def _count(self, when: When, command: str) -> None:
        if when == self._when and command not in QUIET:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def run_repair(uri: str, since: int, number: int, when: When) -> None:
    """Repair everything since the UTC second `since`; die at command `number` (0: never)."""
    logs.configure("error", "logfmt", sys.stderr)
    rewrite.PAGE_SAMPLES = PAGE_SAMPLES
    if number:
        monitoring.register(Killer(number, when))
    settings = Settings.model_validate({"mongodb": {"uri": uri}})
    options = repair.Options(since, yes=True)
    sys.exit(asyncio.run(repair.run(settings, options, io.StringIO(), io.StringIO(), patience=5)))
