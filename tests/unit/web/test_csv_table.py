"""CSV that a spreadsheet opens without running anything."""

import csv
import io

import pytest

from exporter.web.csv_table import table


def read(body: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(body.decode(), newline="")))


@pytest.mark.parametrize("text", ['=HYPERLINK("http://e.example")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_would_be_a_formula_gets_an_apostrophe(text: str) -> None:
    assert read(table(["name"], [[text]])) == [["name"], [f"'{text}"]]


def test_numbers_and_other_texts_stay_as_they_are() -> None:
    row = [-1.5, "a=b", "2026-01-31T12:00:00Z", "i-1", None, True, ["=x"], {"a": -1}, 'a "b", c']
    assert read(table(list("abcdefghi"), [[value] for value in row]))[1] == [
        "-1.5", "a=b", "2026-01-31T12:00:00Z", "i-1", "", "true", '["=x"]', '{"a":-1}', 'a "b", c'
    ]  # fmt: skip
    assert table(["a", "b"], [[1], [None]]) == b"a,b\r\n1,\r\n"
