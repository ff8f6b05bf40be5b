"""Prometheus' side of remote read, for tests: requests as it sends them, answers as it reads them.

Its messages are described here a second time, and whole, so that the exporter's own packing is read by protobuf itself.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import cramjam
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = {"int64": 3, "double": 1, "string": 9, "int32": 5}
_MESSAGES: Mapping[str, tuple[tuple[str, int, str, bool], ...]] = {
    "Label": (("name", 1, "string", False), ("value", 2, "string", False)),
    "Sample": (("value", 1, "double", False), ("timestamp", 2, "int64", False)),
    "TimeSeries": (("labels", 1, "Label", True), ("samples", 2, "Sample", True)),
    "QueryResult": (("timeseries", 1, "TimeSeries", True),),
    "ReadResponse": (("results", 1, "QueryResult", True),),
    "LabelMatcher": (("type", 1, "int32", False), ("name", 2, "string", False), ("value", 3, "string", False)),
    "ReadHints": (
        ("step_ms", 1, "int64", False),
        ("func", 2, "string", False),
        ("start_ms", 3, "int64", False),
        ("end_ms", 4, "int64", False),
    ),
    "Query": (
        ("start_timestamp_ms", 1, "int64", False),
        ("end_timestamp_ms", 2, "int64", False),
        ("matchers", 3, "LabelMatcher", True),
        ("hints", 4, "ReadHints", False),
    ),
    "ReadRequest": (("queries", 1, "Query", True), ("accepted_response_types", 2, "int32", True)),
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="tests/prompb.proto", package="tests_prompb", syntax="proto3")
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            row = described.field.add(name=field, number=number, label=3 if repeated else 1)
            if kind in _TYPES:
                row.type = _TYPES[kind]  # type: ignore[assignment]
            else:
                row.type, row.type_name = 11, f".tests_prompb.{kind}"  # type: ignore[assignment]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tests_prompb.{n}")) for n in _MESSAGES}


_CLASSES = _classes()
_OPERATORS = ("=", "!=", "=~", "!~")
Selector = Iterable[tuple[str, str, str]]
"""(label, operator, value)."""


def request(
    *queries: tuple[int, int, Selector],
    func: str | None = None,
    hints: tuple[int, int] | None = None,
    accepted: Iterable[int] = (0,),
) -> bytes:
    """A compressed ReadRequest: (start, end, matchers) in milliseconds for each query."""
    message = _CLASSES["ReadRequest"](accepted_response_types=accepted)
    for start, end, matchers in queries:
        query = message.queries.add(start_timestamp_ms=start, end_timestamp_ms=end)
        for name, operator, value in matchers:
            query.matchers.add(type=_OPERATORS.index(operator), name=name, value=value)
        if func is not None or hints is not None:
            low, high = hints or (start, end)
            query.hints.func, query.hints.start_ms, query.hints.end_ms = func or "", low, high
    return bytes(cramjam.snappy.compress_raw(message.SerializeToString()))


Found = dict[tuple[tuple[str, str], ...], list[tuple[int, float]]]
"""Sorted labels → (milliseconds, value)."""


def answer(body: bytes) -> list[Found]:
    """The series of each query; fails where one comes twice."""
    message = _CLASSES["ReadResponse"]()
    message.ParseFromString(bytes(cramjam.snappy.decompress_raw(body)))
    results: list[Found] = []
    for result in message.results:
        found: Found = {}
        for series in result.timeseries:
            labels = tuple((label.name, label.value) for label in series.labels)
            assert labels == tuple(sorted(labels)), labels
            assert labels not in found, labels
            found[labels] = [(sample.timestamp, sample.value) for sample in series.samples]
        results.append(found)
    return results


def is_stale(value: float) -> bool:
    """Whether this is the NaN that ends a series, not another one."""
    return struct.pack("<d", value) == struct.pack("<Q", 0x7FF0000000000002)
