"""Prometheus's side of remote read, for tests: builds requests and parses responses with protobuf's own classes."""

import struct
from collections.abc import Iterable

import cramjam

from exporter.history import remote_read_pb2 as pb

_TYPES = {"=": pb.LabelMatcher.EQ, "!=": pb.LabelMatcher.NEQ, "=~": pb.LabelMatcher.RE, "!~": pb.LabelMatcher.NRE}
Selector = Iterable[tuple[str, str, str]]
"""(label, operator, value)."""


def request(
    *queries: tuple[int, int, Selector],
    func: str | None = None,
    hints: tuple[int, int] | None = None,
    range_ms: int = 0,
    accepted: Iterable[pb.ReadRequest.ResponseType] = (pb.ReadRequest.SAMPLES,),
) -> bytes:
    """Build a compressed ReadRequest from (start, end, matchers) per query, in milliseconds."""
    message = pb.ReadRequest(accepted_response_types=accepted)
    for start, end, matchers in queries:
        query = message.queries.add(start_timestamp_ms=start, end_timestamp_ms=end)
        for name, operator, value in matchers:
            query.matchers.add(type=_TYPES[operator], name=name, value=value)
        if func is not None or hints is not None:
            low, high = hints or (start, end)
            query.hints.func, query.hints.start_ms, query.hints.end_ms = func or "", low, high
            query.hints.range_ms = range_ms
    return bytes(cramjam.snappy.compress_raw(message.SerializeToString()))


Found = dict[tuple[tuple[str, str], ...], list[tuple[int, float]]]
"""Sorted labels → (milliseconds, value)."""


def parse_response(body: bytes) -> list[Found]:
    """Return the series of each query; fails on unsorted labels and on duplicate series."""
    message = pb.ReadResponse.FromString(bytes(cramjam.snappy.decompress_raw(body)))
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
    """Whether a value is the stale marker and not another NaN."""
    return struct.pack("<d", value) == struct.pack("<Q", 0x7FF0000000000002)
