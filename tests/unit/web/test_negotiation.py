"""Which representation a client prefers, and what equal weights mean."""

import pytest

from exporter.web.negotiation import prefers_csv, prefers_gzip


@pytest.mark.parametrize(
    ("accept", "csv"),
    [
        ("text/csv", True),
        ("text/csv;header=present", True),
        ("TEXT/CSV; q=0.5", True),
        ("text/csv, */*", True),
        ("text/csv, application/json;q=0.9", True),
        ("text/csv, application/json", False),
        ("text/csv;q=0.1, */*", False),
        ("text/*", False),
        ("text/csv;q=0", False),
        ("text/csv;q=much", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_csv_is_sent_to_clients_that_name_it_and_weigh_it_above_json(accept: str, csv: bool) -> None:
    assert prefers_csv(accept) == csv


@pytest.mark.parametrize(
    ("accept", "csv"),
    [
        # JSON is the default, so it wins a tie against CSV if the client names both, in any order.
        ("text/csv;q=0.5, application/json;q=0.5", False),
        ("application/json;q=0.5, text/csv;q=0.5", False),
        ("text/csv, application/json", False),
        ("text/csv;q=0, application/json;q=0", False),
        ("text/csv;q=0.501, application/json;q=0.5", True),
        ("text/csv;q=0.5, application/json;q=0.501", False),
        # A name is more specific than a wildcard, so CSV wins a tie against a wildcard.
        ("text/csv;q=0.5, */*;q=0.5", True),
        ("text/csv;q=0.5, application/*;q=0.5", True),
        ("text/csv;q=0.5, */*;q=0.501", False),
        ("text/csv;q=0.5, application/*;q=0.501", False),
        ("text/csv;q=0, */*;q=0", False),
        # application/* is more specific than */*, and application/json than both.
        ("text/csv;q=0.5, application/*;q=0.4, */*;q=0.6", True),
        ("text/csv;q=0.5, application/*;q=0.6, */*;q=0.4", False),
        ("text/csv;q=0.5, application/json;q=0.5, */*;q=0.1", False),
        ("text/csv;q=0.5, application/json;q=0.4, */*;q=0.6", True),
        # A wildcard alone does not name CSV.
        ("*/*", False),
        ("application/*", False),
        ("*/*;q=0.5", False),
    ],
)
def test_equal_weights_in_accept_mean_json_unless_only_a_wildcard_equals_csv(accept: str, csv: bool) -> None:
    assert prefers_csv(accept) == csv


@pytest.mark.parametrize(
    ("accept_encoding", "gzip"),
    [
        ("deflate, gzip;q=0.5", True),
        ("gzip;q=0", False),
        # gzip wins a tie: it is smaller, and the client accepts it.
        ("gzip;q=0.5, identity;q=0.5", True),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("gzip, identity", True),
        ("gzip;q=0, identity;q=0", False),
        ("gzip;q=0.5, identity;q=0.501", False),
        ("gzip;q=0.501, identity;q=0.5", True),
        ("x-gzip;q=0.5, identity;q=0.5", True),
        ("*;q=0.5, identity;q=0.5", True),
        ("*;q=0.5, identity;q=0.501", False),
        # A name is more specific than a wildcard.
        ("gzip;q=0, *", False),
        ("gzip;q=0.3, *;q=0.1, identity;q=0.2", True),
        ("gzip;q=0.1, *;q=0.3, identity;q=0.2", False),
        ("gzip;q=0.1, x-gzip;q=0.9, identity;q=0.5", False),
        ("*", True),
        ("identity", False),
        ("", False),
    ],
)
def test_equal_weights_in_accept_encoding_mean_gzip(accept_encoding: str, gzip: bool) -> None:
    assert prefers_gzip(accept_encoding) == gzip


@pytest.mark.parametrize(
    ("weight", "accepted"),
    [("0.001", True), ("1.000", True), ("0.", True), ("", False), ("0.0001", False), ("x", False), ("2", False)],
)
def test_a_weight_that_is_malformed_is_a_refusal(weight: str, accepted: bool) -> None:
    assert prefers_gzip(f"gzip;q={weight}") == (accepted and float(weight) > 0)
    assert not prefers_csv("text/csv;q=x")


def test_parameters_besides_the_weight_are_ignored_and_spaces_do_not_matter() -> None:
    assert prefers_csv(" text/csv ; header=present ; q = 0.5 , application/json ; q=0.4 ")
    assert not prefers_csv("text/csv; q = 0.3, application/json; q=0.4")
    assert not prefers_csv("text/csv;header=present;q=0.3,application/json;charset=utf-8;q=0.3")
