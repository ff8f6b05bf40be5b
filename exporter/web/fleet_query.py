"""Query parameters of the fleet page: search, filter, order and page of its table. Pure functions."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, cast
from urllib.parse import urlencode

from exporter.core.errors import RequestError
from exporter.web.openapi import Parameter
from exporter.web.parameters import REGION, STATUS, selected
from exporter.web.query_values import choice, given_values, single, whole_number

Sort = Literal["name", "region", "status", "cpu", "memory", "labs", "idle"]
Order = Literal["asc", "desc"]
FIRST_ORDER: dict[Sort, Order] = {
    "name": "asc",
    "region": "asc",
    "status": "asc",
    "cpu": "desc",
    "memory": "desc",
    "labs": "desc",
    "idle": "desc",
}
"""Columns that the table can be sorted by, each with the order that is chosen first."""
DEFAULT_SORT: Sort = "cpu"
MAX_PAGE = 1_000_000

SEARCH = Parameter(
    "q",
    "Only workers that have this text in their name, id, instance id, instance type, region or status, in upper or lower case.",
    {"type": "string"},
)
SORT = Parameter(
    "sort",
    f"Column that the table is sorted by. Default: `{DEFAULT_SORT}`.",
    {"type": "string", "title": "FleetSort", "enum": list(FIRST_ORDER), "default": DEFAULT_SORT},
)
ORDER = Parameter(
    "order",
    "Default: `asc` for texts, `desc` for numbers. Workers without a value come last in both.",
    {"type": "string", "title": "SortOrder", "enum": ["asc", "desc"]},
)
PAGE = Parameter(
    "page",
    "Page of the table, 50 workers each; one after the last page is the last page. Default: 1.",
    {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 1},
)
FLEET = (SEARCH, REGION, *(replace(each, empty=True) for each in (STATUS, SORT, ORDER, PAGE)))


@dataclass(frozen=True, slots=True)
class FleetQuery:
    """The parameters of the fleet page."""

    search: str = ""
    """Empty: all workers, as in the next two."""
    statuses: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    sort: Sort = DEFAULT_SORT
    order: Order = FIRST_ORDER[DEFAULT_SORT]
    page: int = 1

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]]) -> "FleetQuery":
        """Parse the query's (name, value) pairs; raises RequestError. An empty field of the form is the same as none."""
        given = given_values(((name, value) for name, value in items if value), FLEET)
        statuses, regions = selected(given)
        sort = cast(Sort, choice(given, SORT))
        order = single(given, "order") or FIRST_ORDER[sort]
        if order not in ("asc", "desc"):
            raise RequestError("order must be one of asc, desc.")
        return cls(
            (single(given, "q") or "").strip(),
            statuses,
            regions,
            sort,
            cast(Order, order),
            whole_number(given, PAGE),
        )

    @property
    def filters(self) -> bool:
        """Whether some workers may be left out."""
        return bool(self.search or self.statuses or self.regions)

    def sorted_by(self, sort: Sort) -> "FleetQuery":
        """Return the query of a click on the head of a column: its first order, or the other one if that is shown."""
        shown = self.sort == sort and self.order == FIRST_ORDER[sort]
        other: Order = "asc" if FIRST_ORDER[sort] == "desc" else "desc"
        return replace(self, sort=sort, order=other if shown else FIRST_ORDER[sort], page=1)

    def address(self) -> str:
        """Return the query string, with its question mark."""
        pairs = [("q", self.search)] if self.search else []
        pairs += [("status", status) for status in sorted(self.statuses)]
        pairs += [("region", region) for region in sorted(self.regions)]
        if self.sort != DEFAULT_SORT or self.order != FIRST_ORDER[self.sort]:
            pairs += [("sort", self.sort), ("order", self.order)]
        if self.page > 1:
            pairs.append(("page", str(self.page)))
        return "?" + urlencode(pairs)
