"""Remote reads of hourly aggregates: the panels of a dashboard select the same series, and wait for one answer."""

from collections.abc import Callable

import httpx
import pytest

from exporter.core.periods import DAY, HOUR
from exporter.web import prometheus_handlers
from tests.helpers import prompb
from tests.helpers.fleets import Hours
from tests.integration.web.test_routes import NOW, Memory, entry, serving

CPU = "cml_worker:cpu_utilization_ratio:avg1h"
Ask = Callable[..., prompb.Found]


def asking(client: httpx.Client) -> Ask:
    def ask(name: str = CPU, end: int = NOW) -> prompb.Found:
        body = prompb.request(((NOW - DAY) * 1000, end * 1000, [("__name__", "=", name)]))
        (found,) = prompb.parse_response(client.post("/api/v1/read", content=body).raise_for_status().content)
        return found

    return ask


def memory(hourly: Hours) -> Memory:
    known = [entry(f"w{number}", last_seen=NOW) for number in range(3)]
    return Memory(hourly=hourly, known=known)


def test_the_same_selector_is_answered_once_until_a_backfill_writes() -> None:
    hourly = Hours()
    with serving(memory(hourly)) as client:
        ask = asking(client)
        first = ask()
        assert len(first) == 3
        assert [ask(), ask()] == [first, first]
        assert len(hourly.queries) == 1
        ask(end=NOW - HOUR)
        ask("cml_worker:memory_utilization_ratio:avg1h")
        assert len(hourly.queries) == 3, "another range, another metric"
        hourly.change = "2"
        ask()
        assert len(hourly.queries) == 4, "after a backfill"
        hourly.change = None
        ask()
        ask()
        assert len(hourly.queries) == 6, "during one"


def test_an_answer_is_sent_again_for_some_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_handlers, "ANSWER_TTL_SECONDS", 0)
    hourly = Hours()
    with serving(memory(hourly)) as client:
        ask = asking(client)
        assert ask() == ask()
        assert len(hourly.queries) == 2
