"""Remote read without I/O: decodes requests of Prometheus, applies its matchers, and encodes responses that it can parse."""

import math
import struct
from array import array

import cramjam
import pytest
from bson.int64 import Int64
from hypothesis import given
from hypothesis import strategies as st

from exporter.core.errors import RequestError
from exporter.history import remote_read
from exporter.history import remote_read_pb2 as pb
from exporter.history.matching import Matcher
from exporter.history.remote_read import decode, encode_response, encode_series, encode_table, in_order
from tests.helpers import prompb

T = 1_767_225_600_000


def test_a_request_is_decoded() -> None:
    body = prompb.request(
        (T, T + 60_000, [("__name__", "=", "cml_worker_active_labs"), ("worker_id", "!~", "a|b")]),
        (T, T + 1, []),
    )
    first, second = decode(body)
    assert (first.start, first.end, first.labels_only) == (T, T + 60_000, False)
    assert first.matchers == (
        Matcher("__name__", "=", "cml_worker_active_labs"),
        Matcher("worker_id", "!~", "a|b"),
    )
    assert second.matchers == ()


def test_hints_narrow_the_range_and_the_function_series_needs_labels_only() -> None:
    (query,) = decode(prompb.request((T, T + 9000, []), hints=(T + 1000, T + 20_000), func="series"))
    assert (query.start, query.end, query.labels_only) == (T + 1000, T + 9000, True)
    (query,) = decode(prompb.request((T, T + 9000, []), func="rate"))
    assert not query.labels_only


@pytest.mark.parametrize(
    ("start", "end", "hints", "range_ms", "expected"),
    [
        (T, T + 9000, (T, T + 9000), 9000, "avg_over_time"),
        (T + 1, T + 9000, (T + 1, T + 9000), 9000, "avg_over_time"),  # Prometheus 3
        (T - 5000, T + 9999, (T, T + 9000), 9000, "avg_over_time"),  # beside another selector of the query
        (T, T + 9001, (T, T + 9001), 9000, ""),  # another window begins a millisecond later
        (T, T + 18_000, (T, T + 18_000), 9000, ""),
        (T, T + 9000, (T, T + 9000), 0, ""),  # of an instant selector, the function is one of a subquery
        (T, T + 8000, (T, T + 9000), 9000, ""),  # Prometheus has the newest samples itself
        (T + 1000, T + 9000, (T, T + 9000), 9000, ""),
    ],
)
def test_a_function_with_one_window_is_known(
    start: int, end: int, hints: tuple[int, int], range_ms: int, expected: str
) -> None:
    (query,) = decode(prompb.request((start, end, []), hints=hints, range_ms=range_ms, func="avg_over_time"))
    assert query.sole_window == expected


def test_an_unlimited_range_becomes_one_that_mongodb_can_compare() -> None:
    (query,) = decode(prompb.request((-(2**63), 2**63 - 1, [])))
    assert query.start == 0
    assert query.end == 253_402_300_799_000


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_truncated_body_is_refused(cut: int) -> None:
    with pytest.raises(RequestError, match="snappy"):
        decode(prompb.request((T, T, [("a", "=", "b" * 50)]))[:-cut])


def test_garbage_is_refused_with_the_expected_format() -> None:
    with pytest.raises(RequestError, match="snappy"):
        decode(b"SELECT 1")
    with pytest.raises(RequestError, match="ReadRequest"):
        decode(bytes(cramjam.snappy.compress_raw(b"\xff" * 40)))
    with pytest.raises(RequestError, match="snappy"):
        decode(b"")


def test_a_decompression_bomb_is_refused_before_it_is_decompressed() -> None:
    bomb = bytes(cramjam.snappy.compress_raw(b"\x00" * (64 << 20)))
    with pytest.raises(RequestError, match="at most"):
        decode(bomb)
    with pytest.raises(RequestError, match="at most"):
        decode(b"x" * (remote_read.MAX_BODY + 1))


def test_too_many_queries_and_unknown_matchers_are_refused() -> None:
    with pytest.raises(RequestError, match="at most 64"):
        decode(prompb.request(*[(T, T, [])] * 65))


@pytest.mark.parametrize(
    "accepted",
    [(), (pb.ReadRequest.SAMPLES,), (pb.ReadRequest.STREAMED_XOR_CHUNKS, pb.ReadRequest.SAMPLES)],
    ids=["none named", "samples", "chunks preferred"],
)
def test_a_client_that_accepts_samples_is_answered(accepted: tuple[pb.ReadRequest.ResponseType, ...]) -> None:
    assert len(decode(prompb.request((T, T, []), accepted=accepted))) == 1


def test_a_client_that_accepts_only_streamed_chunks_is_told_so() -> None:
    with pytest.raises(RequestError, match="only STREAMED_XOR_CHUNKS, and this exporter sends nothing but SAMPLES"):
        decode(prompb.request((T, T, []), accepted=[pb.ReadRequest.STREAMED_XOR_CHUNKS]))


@given(st.binary(max_size=200))
def test_no_body_raises_anything_but_request_error(body: bytes) -> None:
    for candidate in (body, bytes(cramjam.snappy.compress_raw(body))):
        try:
            decode(candidate)
        except RequestError:
            continue


def test_a_response_is_what_protobuf_parses() -> None:
    labels = {"__name__": "x", "worker_id": 'w "1"', "region": "", "store": "history"}
    stamps = [T, T + 300_000, T + 600_000]
    series = encode_series(labels, stamps, [0.0, 0.1 + 0.2, 1.0], stale_at=T + 900_000)
    first, second = prompb.parse_response(encode_response([[series], []]))
    (found,) = first.items()
    assert found[0] == (("__name__", "x"), ("store", "history"), ("worker_id", 'w "1"')), "an empty label equals an absent one"
    assert found[1][:3] == list(zip(stamps, [0.0, 0.1 + 0.2, 1.0], strict=True))
    at, value = found[1][3]
    assert at == T + 900_000
    assert prompb.is_stale(value)
    assert second == {}


@pytest.mark.parametrize(
    "stamps",
    [[T, T + 300_000], [Int64(T), Int64(T + 300_000)], [1_000, T], [1 << 34, 1 << 43], []],
    ids=["fast path", "MongoDB's integers", "a timestamp of another length", "a shorter and a longer timestamp", "labels only"],
)
def test_a_packed_response_is_byte_for_byte_what_protobuf_writes(stamps: list[int]) -> None:
    values = [0.1 + 0.2, -math.inf][: len(stamps)]
    series = encode_series({"__name__": "x", "worker_id": "ä" * 100, "region": ""}, stamps, values, stale_at=T + 600_000)
    stale = struct.unpack("<d", remote_read.STALE)[0]
    official = pb.TimeSeries(
        labels=[pb.Label(name="__name__", value="x"), pb.Label(name="worker_id", value="ä" * 100)],
        samples=[pb.Sample(value=v, timestamp=at) for at, v in [*zip(stamps, values, strict=True), (T + 600_000, stale)]],
    )
    response = pb.ReadResponse(results=[pb.QueryResult(timeseries=[official, official]), pb.QueryResult()])
    raw = bytes(cramjam.snappy.decompress_raw(encode_response([[series, series], []])))
    assert raw == response.SerializeToString()


@pytest.mark.parametrize("stamps", [[T, T + 300_000, T + 600_000], [1_000, T], [1 << 34, 1 << 43]])
def test_a_table_is_encoded_as_each_of_its_series(stamps: list[int]) -> None:
    labels = [{"__name__": "x", "worker_id": "a"}, None, {"__name__": "x", "worker_id": "ä" * 100, "region": ""}]
    rows = [[0.1 + 0.2, -math.inf, 1.0][: len(stamps)], [5.0] * len(stamps), [float(stamp) for stamp in stamps]]
    table = encode_table(labels, array("q", stamps), array("d", [value for row in rows for value in row]))
    assert table == [encode_series(of, stamps, row) for of, row in zip(labels, rows, strict=True) if of is not None]


def test_a_stale_marker_survives_the_packing_although_it_is_a_nan() -> None:
    (found,) = prompb.parse_response(encode_response([[encode_series({"a": "b"}, [], [], stale_at=T)]]))
    ((_, value),) = next(iter(found.values()))
    assert math.isnan(value)
    assert prompb.is_stale(value)


@given(
    st.dictionaries(st.integers(0, 253_402_300_799_000), st.floats(allow_nan=False), max_size=30),
    st.dictionaries(st.text(min_size=1, max_size=5), st.text(min_size=1, max_size=5), max_size=4),
)
def test_any_times_values_and_labels_survive_a_round_trip(points: dict[int, float], labels: dict[str, str]) -> None:
    stamps = sorted(points)
    (found,) = prompb.parse_response(encode_response([[encode_series(labels, stamps, [points[at] for at in stamps])]]))
    assert found == {tuple(sorted(labels.items())): [(at, points[at]) for at in stamps]}


def test_samples_are_ordered_and_have_no_duplicate_times() -> None:
    assert list(in_order([30, 10, 20, 10], ["c", "a", "b", "a"])) == [(10, "a"), (20, "b"), (30, "c")]
