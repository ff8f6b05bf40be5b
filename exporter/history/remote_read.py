"""Prometheus remote read, the pure part: bytes → queries, matchers → worker series, samples → bytes.

The protocol is prompb's `ReadRequest` and `ReadResponse`, in snappy's block format
(https://prometheus.io/docs/prometheus/latest/querying/remote_read_api/). The answer is of the SAMPLES type, which every version
accepts. A sample takes 18 bytes, packed by hand: protobuf's own encoder needs ten times as long for them.
"""

import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Literal

import cramjam
import re2
from google.protobuf.message import DecodeError

from exporter.core.errors import RequestError
from exporter.history import remote_read_pb2 as pb

MAX_BODY = 1 << 20
"""Bytes of a request, before and after decompression: a matcher that names 10,000 workers takes a third of it."""
MAX_SELECTORS = 64
"""Queries in one request; Prometheus sends one for each selector of an expression."""
MAX_MATCHERS = 32
"""In one query; there are nine labels."""
STALE = struct.pack("<Q", 0x7FF0000000000002)
"""The NaN that ends a series: https://github.com/prometheus/prometheus/blob/main/model/value/value.go"""
CONTENT_TYPE = "application/x-protobuf"

_MAX_TIME = 253_402_300_799_000
"""9999-12-31, in milliseconds; Prometheus asks for ±2^63 when it means "everything"."""


# -- the request -------------------------------------------------------------------------------------------------------

Operator = Literal["=", "!=", "=~", "!~"]
_OPERATORS: tuple[Operator, ...] = ("=", "!=", "=~", "!~")  # by their number in prompb's LabelMatcher.Type


@dataclass(frozen=True, slots=True)
class Matcher:
    """One label matcher, with Prometheus' meaning: fully anchored RE2, and an absent label is an empty one."""

    name: str
    operator: Operator
    value: str

    def predicate(self) -> Callable[[str], bool]:
        """Return the test of a label's value.

        Raises:
            RequestError: the value is no RE2 expression, or too large a one.
        """
        if self.operator in ("=", "!="):
            wanted = frozenset({self.value})
        elif _ALTERNATIVES.fullmatch(self.value):  # a|b|c, which is what Grafana's variables send
            wanted = frozenset(self.value.split("|"))
        else:
            compiled = _compile(self.value)
            if self.operator == "=~":
                return lambda value: compiled.fullmatch(value) is not None
            return lambda value: compiled.fullmatch(value) is None
        if self.operator in ("=", "=~"):
            return wanted.__contains__
        return lambda value: value not in wanted


_ALTERNATIVES = re.compile(r"[\w:/@, -]*(\|[\w:/@, -]*)*", re.ASCII)


def _compile(pattern: str) -> Any:  # noqa: ANN401  # google-re2 ships no types
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20  # RE2 is linear in time; this bounds what (a{1000}){1000} would take
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise RequestError(f"{pattern[:100]!r} is not a regular expression of RE2: {reason}") from error


@dataclass(frozen=True, slots=True)
class SeriesSelector:
    """One selector: the samples of [start, end] (milliseconds, both included) of every series all matchers agree with."""

    start: int
    end: int
    matchers: tuple[Matcher, ...]
    labels_only: bool
    """Prometheus looks for series, not for samples."""


def decode(body: bytes) -> tuple[SeriesSelector, ...]:
    """Read a request.

    Raises:
        RequestError: it is not snappy, not a ReadRequest, or larger than anybody needs.
    """
    if len(body) > MAX_BODY:
        raise RequestError(f"the request has {len(body)} bytes; at most {MAX_BODY} are read")
    try:
        size = cramjam.snappy.decompress_raw_len(body)
        if size > MAX_BODY:
            raise RequestError(f"the request has {size} bytes when decompressed; at most {MAX_BODY} are read")
        raw = bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise RequestError("the body is not compressed in snappy's block format, or it was cut") from error
    try:
        request = pb.ReadRequest.FromString(raw)
    except DecodeError as error:
        raise RequestError("the body is not a prometheus.ReadRequest") from error
    if len(request.queries) > MAX_SELECTORS:
        raise RequestError(f"the request has {len(request.queries)} queries; at most {MAX_SELECTORS} are answered together")
    return tuple(map(_query, request.queries))


def _query(query: pb.Query) -> SeriesSelector:
    start, end = query.start_timestamp_ms, query.end_timestamp_ms
    if query.HasField("hints") and query.hints.end_ms:
        # What the function will look at; the query itself may be wider.
        start, end = max(start, query.hints.start_ms), min(end, query.hints.end_ms)
    return SeriesSelector(
        start=max(0, min(start, _MAX_TIME)),
        end=max(0, min(end, _MAX_TIME)),
        matchers=_matchers(query.matchers),
        labels_only=query.HasField("hints") and query.hints.func == "series",
    )


def _matchers(matchers: Sequence[pb.LabelMatcher]) -> tuple[Matcher, ...]:
    if len(matchers) > MAX_MATCHERS:
        raise RequestError(f"a query has {len(matchers)} matchers; at most {MAX_MATCHERS} are taken")
    return tuple(map(_matcher, matchers))


def _matcher(matcher: pb.LabelMatcher) -> Matcher:
    if not 0 <= matcher.type < len(_OPERATORS):
        raise RequestError(f"matcher type {matcher.type} is none of =, !=, =~ and !~")
    return Matcher(matcher.name, _OPERATORS[matcher.type], matcher.value)


# -- which series ------------------------------------------------------------------------------------------------------

Labels = Mapping[str, str]


class Selection:
    """All matchers of a query, compiled.

    Raises:
        RequestError: one of them is no RE2 expression.
    """

    def __init__(self, matchers: Iterable[Matcher]) -> None:
        self._tests = [(matcher.name, matcher.predicate()) for matcher in matchers]

    def accepts(self, labels: Labels, unknown: Collection[str] = ()) -> bool:
        """Whether every matcher agrees with the series; labels that are not known yet may be anything."""
        return all(test(labels.get(name, "")) for name, test in self._tests if name not in unknown)


# -- the answer --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def _stamp(milliseconds: int) -> bytes:
    """The timestamp field of a sample. Workers share their periods, so each is encoded once."""
    return b"\x10" + _varint(milliseconds)


@dataclass(frozen=True, slots=True)
class Series:
    """One encoded TimeSeries and the number of its samples."""

    encoded: bytes
    samples: int


def encode_series(labels: Labels, stamps: Sequence[int], values: Sequence[float], *, stale_at: int | None = None) -> Series:
    """Encode a series.

    Args:
        labels: with `__name__`; empty ones are left out, since an absent label is the same.
        stamps: milliseconds, ascending, each once.
        values: as many.
        stale_at: milliseconds after the last stamp at which the series ends for good, None if it goes on.
    """
    head = b"".join(
        _message(1, _message(1, name.encode()) + _message(2, value.encode())) for name, value in sorted(labels.items()) if value
    )
    encoded = list(map(_stamp, stamps))
    if all(len(stamp) == 7 for stamp in encoded):  # every time from 2004 to 3084
        body = struct.pack(
            "<" + "3sd7s" * len(stamps), *chain.from_iterable(zip(repeat(b"\x12\x10\x09"), values, encoded, strict=False))
        )
    else:
        body = b"".join(_sample(struct.pack("<d", v), stamp) for v, stamp in zip(values, encoded, strict=True))
    if stale_at is not None:
        body += _sample(STALE, _stamp(stale_at))
    return Series(head + body, len(stamps))


def _sample(value: bytes, stamp: bytes) -> bytes:
    return _message(2, b"\x09" + value + stamp)


def encode_answer(results: Iterable[Iterable[Series]]) -> bytes:
    """Return the compressed ReadResponse: one result for each query, in their order."""
    raw = b"".join(_message(1, b"".join(_message(1, series.encoded) for series in result)) for result in results)
    return bytes(cramjam.snappy.compress_raw(raw))


def _message(field: int, content: bytes) -> bytes:
    return bytes((field << 3 | 2,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def in_order(stamps: Sequence[int], values: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the pairs ascending by time, each time once; MongoDB gives them bucket by bucket."""
    last = -1
    for stamp, value in sorted(zip(stamps, values, strict=True), key=lambda pair: pair[0]):
        if stamp != last:
            yield stamp, value
        last = stamp
