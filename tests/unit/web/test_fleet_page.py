"""What the fleet page shows, in which order, and what it says where something is missing."""

import re
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from typing import Any
from urllib.parse import parse_qsl

import pytest

from exporter.core.condition import Condition
from exporter.core.errors import RequestError
from exporter.core.model import Worker, WorkerGauges
from exporter.web.fleet_query import FIRST_ORDER, FleetQuery
from exporter.web.pages.fleet_page import FleetView, content, render
from exporter.web.pages.fleet_table import PAGE_ROWS, Totals, select
from exporter.web.sparklines import Sparklines, draw
from tests.helpers.fleets import MARKUP

NOW = 1_790_000_000
RUNS = Condition(None, NOW - 3 * 3600)


def gauge(id_: str, status: str = "running", **values: Any) -> WorkerGauges:  # noqa: ANN401  # fields of both records
    own = {name: values.pop(name) for name in ("cpu", "memory", "show_state") if name in values}
    made = WorkerGauges(Worker(id_, "eu-west-1", f"i-{id_}", status, **values), NOW - 30, True)
    return made._replace(show_load=status not in ("stopped", "terminated"), **own)


def ids(workers: list[WorkerGauges], query: str) -> list[str]:
    parsed = FleetQuery.parse(pair.split("=", 1) for pair in query.split("&") if pair)  # type: ignore[misc]
    return [row.worker.id for row in select(workers, parsed, True).rows]


def view(*workers: WorkerGauges, query: FleetQuery | None = None, fresh: bool = True, **changes: Any) -> FleetView:  # noqa: ANN401
    query = query or FleetQuery()
    shown = FleetView(
        selection=select(workers, query, fresh),
        query=query,
        lines={},
        lines_problem=None,
        conditions={"mongodb": RUNS},
        collection="db.workers",
        ready=True,
        known=True,
        fresh=fresh,
        observed_at=NOW - 30,
        now=NOW,
    )
    return replace(shown, **changes)


def page(shown: FleetView) -> str:
    return render(content(shown), "./", shown.now)


def tiles(shown: FleetView) -> Mapping[str, str]:
    return dict(content(shown).page["tiles"])


# -- the table


FLEET = [
    gauge("a", name="Zeta", cpu=10.0, memory=5.0, active_labs=2, last_activity_at=NOW - 100),
    gauge("b", name="alpha", cpu=30.0, memory=None, active_labs=0, last_activity_at=NOW - 300),
    gauge("c", "stopped", name="beta", last_activity_at=NOW - 900),
    gauge("d", "failed", cpu=None, active_labs=7),
]


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("name", ["b", "c", "d", "a"]),
        ("region", ["a", "b", "c", "d"]),
        ("status", ["a", "b", "c", "d"]),
        ("cpu", ["b", "a", "c", "d"]),
        ("memory", ["a", "b", "c", "d"]),
        ("labs", ["d", "a", "b", "c"]),
        ("idle", ["b", "a", "c", "d"]),
    ],
)
def test_the_table_is_sorted_by_every_column(sort: str, first: list[str]) -> None:
    assert ids(FLEET, f"sort={sort}") == first
    assert FIRST_ORDER.keys() == {"name", "region", "status", "cpu", "memory", "labs", "idle"}


@pytest.mark.parametrize(
    ("sort", "reversed_"), [("cpu", ["a", "b", "c", "d"]), ("idle", ["a", "b", "c", "d"]), ("name", ["a", "d", "c", "b"])]
)
def test_workers_without_a_value_come_last_in_both_orders(sort: str, reversed_: list[str]) -> None:
    other = "asc" if sort != "name" else "desc"
    assert ids(FLEET, f"sort={sort}&order={other}") == reversed_


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=ALPHA", ["b"]),
        ("q=i-c", ["c"]),
        ("q=fail", ["d"]),
        ("q=west-1", ["b", "a", "c", "d"]),
        ("q=nothing", []),
        ("status=stopped&status=failed", ["c", "d"]),
        ("region=us-east-1", []),
        ("q=&status=", ["b", "a", "c", "d"]),
        ("status=running&q=zeta", ["a"]),
    ],
)
def test_the_table_is_filtered(query: str, expected: list[str]) -> None:
    assert ids(FLEET, query) == expected


@pytest.mark.parametrize("query", ["sort=shoe", "order=up", "status=asleep", "page=0", "page=x", "shoe=1", "q=a&q=b"])
def test_an_invalid_parameter_is_refused(query: str) -> None:
    with pytest.raises(RequestError):
        ids(FLEET, query)


def test_every_worker_is_on_one_page_and_a_page_too_far_is_the_last() -> None:
    workers = [gauge(f"w{number:03}", cpu=number / 10) for number in range(2 * PAGE_ROWS + 1)]
    pages = [ids(workers, f"page={number}") for number in (1, 2, 3)]
    assert [len(each) for each in pages] == [PAGE_ROWS, PAGE_ROWS, 1]
    assert sorted(each for page in pages for each in page) == [each.worker.id for each in workers]
    assert ids(workers, "page=999") == pages[2]


def test_links_keep_the_other_parameters() -> None:
    workers = [gauge(f"w{number:03}") for number in range(3 * PAGE_ROWS)]
    query = FleetQuery.parse([("q", "w"), ("status", "running"), ("region", "eu-west-1"), ("sort", "name"), ("page", "2")])
    text = unescape(page(view(*workers, query=query)))
    kept = "?q=w&status=running&region=eu-west-1"
    assert f'href="{kept}&sort=name&order=desc"' in text, "the head of the sorted column turns its order"
    assert f'href="{kept}&sort=memory&order=desc"' in text
    assert f'href="{kept}"' in text, "the default column needs no parameter"
    assert f'href="{kept}&sort=name&order=asc" rel="prev"' in text
    assert f'href="{kept}&sort=name&order=asc&page=3" rel="next"' in text
    assert text.count("aria-sort=") == 1
    assert 'aria-sort="ascending"' in text
    for name, value in (("sort", "name"), ("order", "asc")):
        assert f'<input type="hidden" name="{name}" value="{value}">' in text, "the form keeps them, too"
    assert FleetQuery.parse(parse_qsl(query.address()[1:])) == query


# -- figures


def test_the_tiles_count_only_running_workers_in_cpu_and_memory() -> None:
    busy = gauge("s", "stopping", cpu=90.0, memory=90.0, active_labs=1)
    totals = select([*FLEET, busy], FleetQuery(), True).totals
    assert totals == Totals(workers=5, running=2, idle=1, labs=10, cpu=20.0, memory=5.0)
    rows = {row.worker.id: row for row in select([*FLEET, busy], FleetQuery(), True).rows}
    assert (rows["s"].cpu, rows["s"].memory, rows["c"].active_at) == (None, None, None)
    shown = tiles(view(*FLEET, busy, conditions={"mongodb": RUNS, "outbox": Condition("full", NOW)}))
    assert shown == {
        "workers": "5",
        "running": "2",
        "idle: running without a lab": "1",
        "labs": "10",
        "mean CPU of running workers": "20 %",
        "mean memory of running workers": "5 %",
        "failing now": "1",
    }


def test_what_is_not_known_is_no_zero() -> None:
    assert set(tiles(view(known=False)).values()) == {"–", "0"}, "only the number of failures is known"
    unknown = view(gauge("a", show_state=False, cpu=12.0))
    assert tiles(unknown)["running"] == "–"
    assert tiles(unknown)["mean CPU of running workers"] == "12 %", "CloudWatch goes on while MongoDB is away"


def test_idle_is_a_short_duration_with_the_exact_time_on_hover() -> None:
    text = page(view(gauge("a", last_activity_at=NOW - 3 * 3600 - 50)))
    assert '<time datetime="2026-09-21T11:12:30Z" title="2026-09-21T11:12:30Z">3 h</time>' in text


# -- words


NOTICES = {
    "not read yet": (view(ready=False, known=False), "run cml-worker-exporter check"),
    "never read": (view(known=False), "Mend what is listed under Health"),
    "empty": (view(), "No workers: db.workers has no worker documents.*Check that mongodb.uri"),
    "not fresh": (view(gauge("a"), fresh=False), "No recent values.*restart the exporter"),
    "mongodb": (
        view(gauge("a"), conditions={"mongodb": Condition("down", NOW)}),
        "MongoDB cannot be read.*Check that MongoDB runs",
    ),
    "no match": (view(gauge("a"), query=FleetQuery(search="x")), "No worker matches the filter. Change it, or"),
    "no history": (view(gauge("a"), lines_problem="No sparklines: x."), "No sparklines: x."),
}


@pytest.mark.parametrize("state", NOTICES)
def test_each_state_has_a_sentence_that_says_what_to_do(state: str) -> None:
    shown, sentence = NOTICES[state]
    assert re.search(sentence, page(shown), re.S)
    assert not re.search(sentence, page(view(gauge("a"))), re.S)


def test_the_page_names_the_parts_that_fail_with_their_errors_and_since_when() -> None:
    conditions = {
        "mongodb": RUNS,
        "outbox": Condition("the disk is <full>", NOW - 7 * 60),
        "history": Condition("no lease", NOW - 3 * 86400),
        "cloudwatch eu-west-1": Condition(),
        "cloudwatch": Condition(None, NOW - 12, "stands by"),
    }
    text = page(view(gauge("a"), conditions=conditions))
    assert "<b>Degraded:</b> history, outbox." in text
    assert "the disk is &lt;full&gt;" in text
    words = [
        " ".join(re.sub("<[^>]*>", " ", part).split()).replace("( ", "(").replace(" )", ")")
        for part in re.findall("<li>(.*?)</li>", text, re.S)
    ]
    assert words == [
        "fails Writing the history to MongoDB since 2026-09-18 14:13 UTC (3 d) no lease",
        "fails Outbox on the disk since 2026-09-21 14:06 UTC (7 min) the disk is &lt;full&gt;",
        "works CloudWatch since 2026-09-21 14:13 UTC (&lt; 1 min) stands by",
        "waits CloudWatch in eu-west-1",
        "works Worker documents in MongoDB since 2026-09-21 11:13 UTC (3 h)",
    ]
    assert "Degraded" not in page(view(gauge("a")))


def test_texts_of_worker_documents_are_only_texts() -> None:
    wild = gauge(MARKUP, name=MARKUP, instance_type=MARKUP, cpu=1.0)
    wild = wild._replace(worker=replace(wild.worker, region=MARKUP))
    text = page(view(wild, query=FleetQuery(search="<"), collection=MARKUP))
    plain = page(view(gauge("a", cpu=1.0), query=FleetQuery(search="a")))
    assert re.findall("<[a-z]+", text.replace("<small", "")) == re.findall("<[a-z]+", plain.replace("<small", ""))
    assert "&lt;/a&gt;&lt;script&gt;" in text


def test_a_long_name_is_cut() -> None:
    text = page(view(*(gauge(f"w{number}", name="n" * 10_000) for number in range(PAGE_ROWS))))
    assert len(text) < 60_000


def test_the_entity_tag_changes_with_what_is_shown_and_not_with_time() -> None:
    shown = view(gauge("a", cpu=1.0, last_activity_at=NOW - 3 * 3600))
    tag = content(shown).etag
    assert content(replace(shown, now=NOW + 15)).etag == tag
    changed = (
        view(gauge("a", cpu=1.1, last_activity_at=NOW - 3 * 3600)),
        replace(shown, conditions={"mongodb": Condition("down", NOW - 3 * 3600)}),
        replace(shown, lines={"a": Sparklines({1: 2.0}, {})}),
        replace(shown, now=NOW + 3600),
    )
    assert len({tag, *(content(each).etag for each in changed)}) == 5


# -- sparklines


def test_a_sparkline_has_gaps_and_a_description_and_no_style_of_its_own() -> None:
    svg = draw("CPU", {0: 0.0, 1: 50.0, 2: 100.0, 10: 20.0, 22: 130.0, 23: -5.0})
    (path,) = re.findall(' d="([^"]*)"', svg)
    assert path == "M2.0 20.0L6.0 11.0L10.0 2.0M42.0 16.4h.1M90.0 2.0L94.0 20.0"
    assert 'aria-label="CPU in the last 24 h: -5 to 130 %"' in svg
    assert "style" not in svg
    assert draw("CPU", {}) == ""
