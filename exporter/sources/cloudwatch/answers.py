"""Parse the JSON of CloudWatch's answers and drop malformed parts, each at its own cost only. Pure.

botocore's parser raises an error of its own for an element of another type than the service model's, which would cost the whole
call; it also takes several times as long. So the hook `parse_body` hands the elements over unparsed, and `Window.datapoints`
and `dimensions` check each.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Container, MutableMapping, Sequence
from typing import Any

import orjson
from botocore.utils import parse_timestamp

from exporter.core.model import Dimensions

RESULT_KEYS = {"GetMetricData": "MetricDataResults", "ListMetrics": "Metrics"}
"""The key that a complete answer has. botocore parses a 200 whose body was cut into an empty answer without an error."""
LARGEST_VALUE = 2.0**360
"""CloudWatch's own limit for a value."""
PERCENT_TOLERANCE = 1.0
"""A percentage of up to this more than 100 is 100: averages are rounded. More is malformed."""

Malformed = Counter[str]
"""How many parts of each of `errors.MALFORMED_KINDS` were dropped."""


def parse_body(
    response_dict: MutableMapping[str, Any], customized_response_dict: MutableMapping[str, Any], event_name: str, **_: object
) -> None:
    """Parse the body of a GetMetricData or ListMetrics answer in place of botocore; a hook of its event `before-parse`.

    An answer without its list of results lacks the key, as one that was cut does. botocore itself parses what is not JSON.
    """
    key = RESULT_KEYS.get(event_name.rpartition(".")[2])
    if key is None or response_dict["status_code"] != 200:
        return
    try:
        parsed = orjson.loads(response_dict["body"])
    except ValueError:
        # Python's parser takes more than JSON: NaN, and whole numbers of thousands of digits, which are infinite here.
        try:
            parsed = json.loads(response_dict["body"], parse_int=float)
        except ValueError:
            return
        except RecursionError:
            parsed = None
    response_dict["body"] = b"{}"
    if isinstance(parsed, dict):
        customized_response_dict.update(
            (name, value) for name, value in parsed.items() if isinstance(value, str if name == "NextToken" else list)
        )


class Window:
    """The window of one call, and the check of the datapoints that CloudWatch answers for it.

    Nearly all results of a call have the same timestamps, so they are checked once, and the values as a column.

    Args:
        start: first UTC second.
        end: the second after the window.
        period: seconds; every timestamp is a multiple of it.
        malformed: counts what is dropped.
    """

    def __init__(self, start: int, end: int, period: int, malformed: Malformed) -> None:
        self.start = start
        self.end = end
        self._period = period
        self._malformed = malformed
        self._times: Sequence[object] = []
        self._starts: Sequence[int] = []
        """`_times` as whole seconds; they are all in the window."""

    def datapoints(self, result: dict[str, Any], limits: tuple[float, float]) -> dict[int, float] | None:
        """Return the datapoints of one element of MetricDataResults in the window; None if values and times do not match.

        Args:
            result: as CloudWatch sent it.
            limits: the lowest and the highest value that counts.
        """
        times, values = result.get("Timestamps", []), result.get("Values", [])
        if not isinstance(times, list) or not isinstance(values, list) or len(times) != len(values):
            self._malformed["length"] += 1
            return None
        if not values:
            return {}
        if (times == self._times or self._are_usual(times)) and _are_floats_within(values, limits):
            return dict(zip(self._starts, values, strict=True))
        pairs = (_examined(*pair, self._period, limits, self._malformed) for pair in zip(times, values, strict=True))
        return {pair[0]: pair[1] for pair in pairs if pair and self.start <= pair[0] < self.end}

    def _are_usual(self, times: Sequence[Any]) -> bool:
        """Return whether all timestamps are numbers in the window; then they are kept for the next result."""
        # A boolean is an int in Python, but of another type.
        if not {*map(type, times)} <= {float, int} or any(at % self._period or not self.start <= at < self.end for at in times):
            return False
        self._times, self._starts = times, [int(at) for at in times]
        return True


def _are_floats_within(values: Sequence[Any], limits: tuple[float, float]) -> bool:
    if {*map(type, values)} != {float}:
        return False
    # NaN is between no limits, but `min` and `max` may miss it.
    return limits[0] <= min(values) and max(values) <= limits[1] and not math.isnan(sum(values))


def _examined(
    at: object, value: object, period: int, limits: tuple[float, float], malformed: Malformed
) -> tuple[int, float] | None:
    """Return an unusual datapoint, None if it is malformed."""
    seconds = _seconds(at)
    if seconds is None or seconds % period:
        malformed["timestamp"] += 1
    elif isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        malformed["not_a_number"] += 1
    elif value < limits[0]:
        malformed["negative"] += 1
    elif value > limits[1]:
        if limits[1] == 100 and value <= 100 + PERCENT_TOLERANCE:
            return int(seconds), 100.0
        malformed["too_large"] += 1
    else:
        return int(seconds), float(value)
    return None


def _seconds(at: object) -> float | None:
    """Return the UTC seconds of a timestamp, which may be a number or an ISO 8601 text; None if it is neither."""
    if isinstance(at, str):
        try:
            return float(parse_timestamp(at).timestamp())
        except (ValueError, OverflowError):
            return None
    return float(at) if isinstance(at, int | float) and not isinstance(at, bool) and math.isfinite(at) else None


def dimensions(listed: object, malformed: Malformed) -> Dimensions:
    """Return the dimensions of one element of ListMetrics; none if it is malformed.

    The texts are interned: the names and most values are the same for a whole fleet, and a listing stays in memory.
    """
    pairs = listed.get("Dimensions", []) if isinstance(listed, dict) else None
    if isinstance(pairs, list):
        found = [
            (sys.intern(name), sys.intern(value))
            for pair in pairs
            if isinstance(pair, dict)
            and isinstance(name := pair.get("Name"), str)
            and isinstance(value := pair.get("Value"), str)
        ]
        if len(found) == len(pairs):
            return tuple(found)
    malformed["listed_metric"] += 1
    return ()


def result_id(result: object, known: Container[str], malformed: Malformed) -> str | None:
    """Return the Id of one element of MetricDataResults; None if it is malformed or of no query."""
    found = result.get("Id") if isinstance(result, dict) else None
    if isinstance(found, str) and found in known:
        return found
    malformed["result"] += 1
    return None
