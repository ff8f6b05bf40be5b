"""Parse the JSON of CloudWatch's answers and drop malformed parts, each at its own cost only. Pure.

botocore's parser raises an error of its own for an element of another type than the service model's, which would cost the whole
call; it also takes several times as long. So the hook `parse_body` hands the elements over unparsed, and `datapoints` and
`dimensions` check each.
"""

import json
import math
from collections import Counter
from collections.abc import Container, Mapping, MutableMapping
from typing import Any

from botocore.utils import parse_timestamp

from exporter.core.model import Dimensions

RESULT_KEYS = {"GetMetricData": "MetricDataResults", "ListMetrics": "Metrics"}
"""The key that a complete answer has. botocore parses a 200 whose body was cut into an empty answer without an error."""
LARGEST_VALUE = 2.0**360
"""CloudWatch's own limit for a value."""
PERCENT_TOLERANCE = 1.0
"""A percentage of up to this more than 100 is 100: averages are rounded. More is malformed."""

Malformed = Counter[str]
"""How many parts of each of `catalog.MALFORMED_KINDS` were dropped."""


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
        # A whole number of thousands of digits is infinite, not an error.
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


def datapoints(
    result: Mapping[str, Any], start: int, end: int, period: int, limits: tuple[float, float], malformed: Malformed
) -> dict[int, float] | None:
    """Return the datapoints of one element of MetricDataResults in [start, end); None if values and times do not match.

    Args:
        result: as CloudWatch sent it.
        start: first UTC second of the window.
        end: the second after the window.
        period: seconds; every timestamp is a multiple of it.
        limits: the lowest and the highest value that counts.
        malformed: counts what is dropped.
    """
    times, values = result.get("Timestamps", []), result.get("Values", [])
    if not isinstance(times, list) or not isinstance(values, list) or len(times) != len(values):
        malformed["length"] += 1
        return None
    lowest, highest = limits
    found: dict[int, float] = {}
    for at, value in zip(times, values, strict=True):
        # A boolean is an int in Python, but of another type; NaN is between no limits.
        if type(at) in (float, int) and type(value) in (float, int) and lowest <= value <= highest and not at % period:
            if start <= at < end:
                found[int(at)] = float(value)
        elif (pair := _examined(at, value, period, limits, malformed)) and start <= pair[0] < end:
            found[pair[0]] = pair[1]
    return found


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
    """Return the dimensions of one element of ListMetrics; none if it is malformed."""
    pairs = listed.get("Dimensions", []) if isinstance(listed, Mapping) else None
    if isinstance(pairs, list):
        found = tuple(
            (name, value)
            for pair in pairs
            if isinstance(pair, Mapping)
            and isinstance(name := pair.get("Name"), str)
            and isinstance(value := pair.get("Value"), str)
        )
        if len(found) == len(pairs):
            return found
    malformed["listed_metric"] += 1
    return ()


def result_id(result: object, known: Container[str], malformed: Malformed) -> str | None:
    """Return the Id of one element of MetricDataResults; None if it is malformed or of no query."""
    found = result.get("Id") if isinstance(result, Mapping) else None
    if isinstance(found, str) and found in known:
        return found
    malformed["result"] += 1
    return None
