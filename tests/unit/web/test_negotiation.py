"""What a client likes best."""

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
def test_csv_is_for_who_names_it_and_does_not_like_json_as_much(accept: str, csv: bool) -> None:
    assert prefers_csv(accept) == csv


def test_gzip_is_for_who_takes_it() -> None:
    assert prefers_gzip("deflate, gzip;q=0.5")
    assert not prefers_gzip("gzip;q=0")
