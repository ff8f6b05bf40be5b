"""Prometheus remote read: decodes requests and encodes responses. Pure.

The messages are `ReadRequest` and `ReadResponse` of remote_read.proto, compressed in snappy's block format
(https://prometheus.io/docs/prometheus/latest/querying/remote_read_api/). Responses are of the type SAMPLES, which every version
of Prometheus accepts. Samples, 18 bytes each, are packed here: protobuf's own encoder takes ten times as long.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cramjam
from google.protobuf.message import DecodeError

from exporter.core.errors import RequestError
from exporter.history import remote_read_pb2 as pb
from exporter.history.matching import Labels, Matcher, Operator

MAX_BODY = 1 << 20
"""Limit of a request in bytes, before and after decompression: a matcher that names 10,000 workers takes a third of it."""
MAX_SELECTORS = 64
"""Limit of queries in one request; Prometheus sends one for each selector of an expression."""
MAX_MATCHERS = 32
"""Limit of matchers in one query; there are nine labels."""
STALE = struct.pack("<Q", 0x7FF0000000000002)
"""The stale marker, a NaN that ends a series: https://github.com/prometheus/prometheus/blob/main/model/value/value.go"""
CONTENT_TYPE = "application/x-protobuf"

_MAX_TIME = 253_402_300_799_000
"""9999-12-31, in milliseconds; Prometheus sends ±2^63 for an unlimited range."""


# -- the request -------------------------------------------------------------------------------------------------------

_OPERATORS: tuple[Operator, ...] = ("=", "!=", "=~", "!~")  # at the index of their number in LabelMatcher.Type


@dataclass(frozen=True, slots=True)
class SeriesSelector:
    """One query of a request: the samples in [start, end] milliseconds of every series that all matchers accept."""

    start: int
    end: int
    matchers: tuple[Matcher, ...]
    labels_only: bool
    """Whether Prometheus wants the series without their samples."""
    sole_window: str = ""
    """The function of PromQL whose only window the range is, as in an instant query; empty where it has several."""


def decode(body: bytes) -> tuple[SeriesSelector, ...]:
    """Return the queries of a compressed ReadRequest.

    Raises:
        RequestError: the body is not compressed with snappy, is not a ReadRequest, or exceeds a limit.
    """
    if len(body) > MAX_BODY:
        raise RequestError(f"the request has {len(body)} bytes; at most {MAX_BODY} are accepted")
    try:
        size = cramjam.snappy.decompress_raw_len(body)
        if size > MAX_BODY:
            raise RequestError(f"the request has {size} bytes when decompressed; at most {MAX_BODY} are accepted")
        raw = bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise RequestError(
            "the body is not compressed in snappy's block format, or is truncated; send a prometheus.ReadRequest "
            "as Prometheus does"
        ) from error
    try:
        request = pb.ReadRequest.FromString(raw)
    except DecodeError as error:
        raise RequestError("the body is not a prometheus.ReadRequest") from error
    accepted = request.accepted_response_types
    if accepted and pb.ReadRequest.SAMPLES not in accepted:
        raise RequestError(
            "the request accepts no SAMPLES, only STREAMED_XOR_CHUNKS, and this exporter sends nothing but SAMPLES; "
            "add SAMPLES to its accepted_response_types, as Prometheus does"
        )
    if len(request.queries) > MAX_SELECTORS:
        raise RequestError(f"the request has {len(request.queries)} queries; at most {MAX_SELECTORS} are accepted")
    return tuple(map(_query, request.queries))


def _query(query: pb.Query) -> SeriesSelector:
    start, end = query.start_timestamp_ms, query.end_timestamp_ms
    sole_window = ""
    if query.HasField("hints") and query.hints.end_ms:
        if _is_sole_window(query):
            sole_window = query.hints.func
        # The range that the function needs; the query's own may be wider.
        start, end = max(start, query.hints.start_ms), min(end, query.hints.end_ms)
    return SeriesSelector(
        start=max(0, min(start, _MAX_TIME)),
        end=max(0, min(end, _MAX_TIME)),
        matchers=_matchers(query.matchers),
        labels_only=query.HasField("hints") and query.hints.func == "series",
        sole_window=sole_window,
    )


def _is_sole_window(query: pb.Query) -> bool:
    """Whether the function is evaluated once, over all that is read.

    Then the range is as long as the selector's; since Prometheus 3 a millisecond less, as windows are open on the left.
    A query narrower than its hints is one whose other samples Prometheus has itself.
    """
    hints = query.hints
    is_whole = query.start_timestamp_ms <= hints.start_ms and hints.end_ms <= query.end_timestamp_ms
    return is_whole and hints.range_ms > 1 and hints.end_ms - hints.start_ms in (hints.range_ms, hints.range_ms - 1)


def _matchers(matchers: Sequence[pb.LabelMatcher]) -> tuple[Matcher, ...]:
    if len(matchers) > MAX_MATCHERS:
        raise RequestError(f"a query has {len(matchers)} matchers; at most {MAX_MATCHERS} are accepted")
    return tuple(map(_matcher, matchers))


def _matcher(matcher: pb.LabelMatcher) -> Matcher:
    if not 0 <= matcher.type < len(_OPERATORS):
        raise RequestError(f"matcher type {matcher.type} is not one of =, !=, =~, and !~")
    return Matcher(matcher.name, _OPERATORS[matcher.type], matcher.value)


# -- the response ------------------------------------------------------------------------------------------------------


_RECORD = 18
"""Bytes of a sample at a usual time: three of headers, eight of the value, seven of the timestamp."""
_USUAL_FROM, _USUAL_UNTIL = 1 << 35, 1 << 42
"""Milliseconds, from 1971 to 2109, whose varint has six bytes."""
_VALUE_AT = 3
"""Bytes before the value in a sample."""


def _stamp(milliseconds: int) -> bytes:
    """Encode the timestamp field of a sample."""
    return b"\x10" + _varint(milliseconds)


@lru_cache(maxsize=64)
def _records(stamps: bytes) -> bytes:
    """Encode samples at these times with the value 0; cached, because workers have their samples at the same times.

    Args:
        stamps: milliseconds, as the bytes of an array of the type q.
    """
    return b"".join([_sample(bytes(8), _stamp(stamp)) for stamp in array("q", stamps)])


@lru_cache(maxsize=8192)
def _label(name: str, value: str) -> bytes:
    """Encode a label; cached, because the series of a worker, and of a metric, share most of theirs."""
    return _message(1, _message(1, name.encode()) + _message(2, value.encode()))


def _head(labels: Labels) -> bytes:
    """Encode the labels, sorted; empty ones are left out, since an absent label equals an empty one."""
    return b"".join([_label(name, labels[name]) for name in sorted(labels) if labels[name]])


@dataclass(frozen=True, slots=True)
class Series:
    """One encoded TimeSeries and the number of its samples."""

    encoded: bytes
    samples: int


def encode_series(labels: Labels, stamps: Sequence[int], values: Sequence[float], *, stale_at: int | None = None) -> Series:
    """Encode a TimeSeries.

    Args:
        labels: with `__name__`.
        stamps: milliseconds, ascending, without duplicates.
        values: one per stamp.
        stale_at: milliseconds of the stale marker that ends the series, after the last stamp; None for a series that goes on.
    """
    head = _head(labels)
    body = _encode_samples(array("q", stamps), array("d", values), 1)
    if stale_at is not None:
        body += _sample(STALE, _stamp(stale_at))
    return Series(head + bytes(body), len(stamps))


def encode_table(labels: Sequence[Labels | None], stamps: "array[int]", values: "array[float]") -> list[Series]:
    """Encode a TimeSeries of each row whose labels are not None; all of them have samples at the same times.

    Args:
        labels: as of `encode_series`, one for each row.
        stamps: milliseconds, ascending, without duplicates, at least one.
        values: row after row, one per stamp.
    """
    body = memoryview(_encode_samples(stamps, values, len(labels)))
    size = len(body) // len(labels)
    return [
        Series(b"".join((_head(of_row), body[row * size : (row + 1) * size])), len(stamps))
        for row, of_row in enumerate(labels)
        if of_row is not None
    ]


def _encode_samples(stamps: "array[int]", values: "array[float]", rows: int) -> bytearray:
    """Encode the samples of all rows; at usual times each sample has as many bytes as any other."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    packed = values.tobytes()
    if stamps and stamps[0] >= _USUAL_FROM and stamps[-1] < _USUAL_UNTIL:
        body = bytearray(_records(stamps.tobytes()) * rows)
        for n in range(8):  # the n-th bytes of all values are one slice: no loop over the samples
            body[_VALUE_AT + n :: _RECORD] = packed[n::8]
        return body
    times = [*map(_stamp, stamps)] * rows
    return bytearray().join(_sample(packed[8 * n : 8 * n + 8], stamp) for n, stamp in enumerate(times))


def _sample(value: bytes, stamp: bytes) -> bytes:
    return _message(2, b"\x09" + value + stamp)


def encode_response(results: Iterable[Iterable[Series]]) -> bytes:
    """Return the compressed ReadResponse with one result per query, in their order."""
    parts: list[bytes] = []
    for result in results:
        series = [part for each in result for part in (_field(1, len(each.encoded)), each.encoded)]
        parts += (_field(1, sum(map(len, series))), *series)
    return bytes(cramjam.snappy.compress_raw(b"".join(parts)))


@lru_cache(maxsize=1024)
def _field(field: int, size: int) -> bytes:
    """Encode what precedes a message in a field; cached, because the series of a query have few lengths."""
    return bytes((field << 3 | 2,)) + _varint(size)


def _message(field: int, content: bytes) -> bytes:
    return _field(field, len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def in_order(stamps: Sequence[int], values: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield (time, value) ascending by time, without duplicate times; MongoDB returns them bucket by bucket."""
    last = -1
    for stamp, value in sorted(zip(stamps, values, strict=True), key=lambda pair: pair[0]):
        if stamp != last:
            yield stamp, value
        last = stamp
