"""Replaces variables and macros in a query as Grafana (9.1 to 12) does before it sends the query to Prometheus."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_NICE = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 604800, 2592000)
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?:\.[^:}]+)?(?::(\w+))?\}")
POINTS = 1000
"""Across a panel of usual width."""


def seconds(text: str) -> int:
    """The length of a duration such as 5m, or of the range of now-6h."""
    number, unit = re.fullmatch(r"(?:now-)?(\d+)([smhdw])", text).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


@dataclass(frozen=True, slots=True)
class View:
    """What the viewer has selected: the length of the range, the data source's scrape interval, and the variables.

    A text is a variable of one value; a sequence one of several; None is one of several with "all" chosen.
    """

    range: int
    scrape: int
    variables: Mapping[str, str | Sequence[str] | None]

    def interval(self, least: str | None = None) -> int:
        """The interval that the browser computes: at least the panel's min interval, else the data source's scrape interval."""
        return max(seconds(least) if least else self.scrape, self._nice())

    def step(self, panel: Json, target: Json) -> int:
        """The distance of two points of a graph: at least the query's min step, else at least the panel's interval."""
        least = target.get("interval")
        return max(seconds(least) if least else self.interval(panel.get("interval")), self._nice())

    def _nice(self) -> int:
        return next(nice for nice in _NICE if nice >= self.range / POINTS)

    def expand(self, text: str, panel: Json | None = None, target: Json | None = None) -> str:
        """The query that Prometheus gets.

        `$__rate_interval` as in Grafana's Prometheus data source: the query's min step, if it has one, takes the place of the
        scrape interval, so four of them are the least.
        """
        panel, target = panel or {}, target or {}
        step = self.step(panel, target)
        scrape = seconds(target["interval"]) if target.get("interval") else self.scrape
        rate = max(self.interval(panel.get("interval")) + scrape, 4 * scrape)
        macros = {
            "__interval": f"{step}s",
            "__interval_ms": f"{1000 * step}",
            "__range": f"{self.range}s",
            "__range_s": f"{self.range}",
            "__rate_interval": f"{rate}s",
        }

        def replaced(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name in macros:
                return macros[name]
            if name.isdigit():  # $1 of label_replace; Grafana leaves what it does not know
                return match[0]
            return _value(self.variables[name])

        return _VARIABLE.sub(replaced, text)


def _value(value: str | Sequence[str] | None) -> str:
    if value is None:
        return ".*"
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace('"', '\\"')
    escaped = [re.sub(r"([\\^$.*+?()\[\]{}|])", r"\\\\\1", each) for each in value]
    return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"


def panels(dashboard: Json) -> Iterator[Json]:
    """All panels but the headings, those of collapsed rows too."""
    for item in dashboard["panels"]:
        if item["type"] == "row":
            yield from item["panels"]
        else:
            yield item


def queries(dashboard: Json) -> Iterator[tuple[str, Json, Json]]:
    """Every (name, panel, target); the name is for messages."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield f"{dashboard['uid']} / {panel['title']} / {target['refId']}", panel, target
