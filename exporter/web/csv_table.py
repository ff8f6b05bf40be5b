"""CSV (RFC 4180), with texts that a spreadsheet would run as a formula made harmless. Pure."""

import csv
import io
from collections.abc import Iterable, Sequence

import orjson

CSV = "text/csv; charset=utf-8; header=present"
_PLAIN = {int, float, type(None)}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table(names: Sequence[str], columns: Iterable[Sequence[object]]) -> bytes:
    """Return a table with a header line: empty fields for None, JSON for booleans, lists and objects.

    A text that begins with = + - @, a tab or a carriage return gets an apostrophe before it: a spreadsheet would take it for a
    formula, and a worker's name is what its owner wrote. Numbers stay as they are.

    Args:
        names: of the columns.
        columns: the values of each, from the first row on.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(names)
    writer.writerows(zip(*map(_cells, columns), strict=True))
    return out.getvalue().encode()


def _cells(column: Sequence[object]) -> Sequence[object]:
    # Most columns are numbers; to look at each of ten thousand would take longer than to write them.
    return column if set(map(type, column)) <= _PLAIN else list(map(_cell, column))


def _cell(value: object) -> object:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, bool | dict | list):
        return orjson.dumps(value).decode()
    return value
