"""CSV (RFC 4180), with texts that a spreadsheet would run as a formula made harmless. Pure."""

import csv
import io
from collections.abc import Iterable, Sequence

import orjson

CSV = "text/csv; charset=utf-8; header=present"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table(names: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """Return a table with a header line: empty fields for None, JSON for booleans, lists and objects.

    A text that begins with = + - @, a tab or a carriage return gets an apostrophe before it: a spreadsheet would take it for a
    formula, and a worker's name is what its owner wrote. Numbers stay as they are.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(names)
    writer.writerows(map(_cell, row) for row in rows)
    return out.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, bool | dict | list):
        return orjson.dumps(value).decode()
    return value
