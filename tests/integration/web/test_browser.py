"""The pages in a real browser: filter, sort, live refresh, keyboard, accessibility, and that nothing leaves the origin."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from _pytest.mark import ParameterSet
from playwright.sync_api import Browser, expect

from exporter.core.model import InstanceInterval, WorkerGauges
from exporter.storage.rows import HistoryRow, SampleRow
from tests.helpers.browser import Visit, chromium, texts, visit
from tests.helpers.fleets import MARKUP, Hours, fleet
from tests.helpers.text_server import PAGE, serving_text
from tests.integration.web.test_routes import NOW, Memory, entry, serving, snapshot

REFRESH_MS = 15_000
WELL: dict[str, str | None] = {"mongodb": None, "cloudwatch eu-west-1": None, "outbox": None}
NAMES = "#workers tbody th a"


class WithSamples(Memory):
    """An exporter whose workers have a sample every five minutes."""

    async def read_samples(self, worker_id: str, start: int, end: int, *, limit: int) -> tuple[list[HistoryRow], int | None]:
        rows: list[HistoryRow] = [
            SampleRow(
                timestamp=datetime.fromtimestamp(at, UTC).replace(tzinfo=None),
                cpu_utilization=at // 300 % 100,
                memory_utilization=50.0,
                active_labs_count=at // 3600 % 3,
                status="running",
            )
            for at in range(start // 1000 // 300 * 300, end // 1000, 300)
        ]
        return rows[:limit], None


def exporter(*workers: WorkerGauges, sources: dict[str, str | None] = WELL) -> Memory:
    return WithSamples(snapshot=snapshot(*workers), sources=dict(sources), hourly=Hours())


def renamed(worker: WorkerGauges, **changes: Any) -> WorkerGauges:  # noqa: ANN401  # fields of the record
    return worker._replace(worker=replace(worker.worker, **changes))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@contextmanager
def opened(
    browser: Browser,
    parts: Memory,
    path: str = "/",
    *,
    width: int = 1400,
    scheme: Literal["light", "dark"] = "light",
    own_clock: bool = False,
) -> Iterator[Visit]:
    """Open a page of a served exporter; in the end nothing may have gone wrong in it.

    With `own_clock` its time passes only where the test says so; axe-core would wait for ever.
    """
    with serving(parts) as client, visit(browser, width=width, scheme=scheme) as shown:
        origin = str(client.base_url).rstrip("/")
        if own_clock:
            shown.page.clock.install()
        shown.page.goto(origin + path)
        yield shown
        assert shown.foreign(origin) == [], "a request left the origin"
        assert shown.complaints == [], "an error of a script, or a violation of the content security policy"


def wait_for_refresh(shown: Visit) -> None:
    """Move the clock to the next refresh, and wait for its response."""
    with shown.page.expect_response(lambda response: response.url == shown.page.url):
        shown.page.clock.run_for(REFRESH_MS)


# -- the fleet


def test_the_table_is_sorted_by_a_click_on_a_head(browser: Browser) -> None:
    with opened(browser, exporter(*fleet(20, NOW))) as shown:
        page = shown.page
        page.get_by_role("link", name="Worker", exact=True).click()
        assert texts(page, NAMES) == [f"cml-worker-{number:05}" for number in range(20)]
        expect(page.get_by_role("columnheader", name="Worker")).to_have_attribute("aria-sort", "ascending")
        page.get_by_role("link", name="Worker", exact=False).first.press("Enter")
        page.wait_for_url("**order=desc")
        assert texts(page, NAMES)[0] == "cml-worker-00019"


def test_the_table_is_filtered_by_its_form_and_shows_all_again(browser: Browser) -> None:
    with opened(browser, exporter(*fleet(60, NOW)), "/?sort=name") as shown:
        page = shown.page
        page.get_by_label("Search").fill("worker-0001")
        page.get_by_text("Status", exact=True).first.click()
        page.get_by_label("stopped").check()
        page.get_by_role("button", name="Filter").press("Enter")
        page.wait_for_url("**status=stopped**")
        assert texts(page, NAMES) == ["cml-worker-00011", "cml-worker-00019"], "sorted by name as before"
        assert "2 match the filter" in page.inner_text("#summary")
        page.get_by_role("link", name="Show all").click()
        assert len(texts(page, NAMES)) == 50
        page.get_by_role("link", name="Next").click()
        assert len(texts(page, NAMES)) == 10


def test_a_worker_and_the_api_are_one_click_away(browser: Browser) -> None:
    with opened(browser, exporter(*fleet(3, NOW))) as shown:
        page = shown.page
        page.get_by_role("link", name="cml-worker-00001").click()
        assert page.inner_text("h1") == "cml-worker-00001"
        page.get_by_role("link", name="API").click()
        assert page.inner_text("h1") == "API"
        page.get_by_role("link", name="Fleet").click()
        assert page.inner_text("h1") == "Fleet"


def test_the_page_stays_fresh_and_keeps_focus_filter_and_scroll_position(browser: Browser) -> None:
    parts = exporter(*fleet(60, NOW))
    with opened(browser, parts, "/?sort=name", own_clock=True) as shown:
        page = shown.page
        page.get_by_label("Search").fill("half typed")
        page.get_by_role("link", name="cml-worker-00030").focus()
        page.evaluate("scrollTo(0, 700)")
        top = page.evaluate("scrollY")
        assert top > 0
        parts.snapshot = snapshot(*(renamed(each, status="failed") for each in fleet(60, NOW)))
        wait_for_refresh(shown)
        expect(page.locator("#workers tbody .status.failed")).to_have_count(50)
        assert page.evaluate("document.activeElement.textContent") == "cml-worker-00030"
        assert page.input_value("[name=q]") == "half typed"
        assert page.evaluate("scrollY") == top
        assert "60 workers, 0 running." in page.inner_text("#summary")
        page.get_by_label("Search").focus()
        parts.sources["mongodb"] = "MongoDB does not answer"
        wait_for_refresh(shown)
        expect(page.locator("#summary")).to_contain_text("Degraded: mongodb.")
        assert page.evaluate("document.activeElement.name") == "q"


def test_what_has_not_changed_is_not_replaced_and_the_page_says_how_old_it_is(browser: Browser) -> None:
    with opened(browser, exporter(*fleet(3, NOW)), own_clock=True) as shown:
        page = shown.page
        page.evaluate("window.row = document.querySelector('#workers tr')")
        page.clock.run_for(12_000)
        assert page.inner_text("#age") == "as of 14:13:20 UTC, 12 s ago"
        with page.expect_response(lambda response: response.status == 304):
            page.clock.run_for(3000)
        expect(page.locator("#age")).to_contain_text(" 0 s ago")
        assert page.evaluate("window.row.isConnected")


def test_a_page_whose_exporter_is_gone_says_so(browser: Browser) -> None:
    with serving(exporter(*fleet(3, NOW))) as client, visit(browser) as shown:
        page = shown.page
        page.clock.install()
        page.goto(str(client.base_url))
        page.route("**/*", lambda route: route.abort())
        page.clock.run_for(REFRESH_MS + 1000)
        expect(page.locator("#age")).to_contain_text("the exporter cannot be reached")
        assert len(texts(page, NAMES)) == 3, "the last values stay"


def test_without_javascript_the_page_is_complete(browser: Browser) -> None:
    with serving(exporter(*fleet(60, NOW))) as client, visit(browser, java_script_enabled=False) as shown:
        page = shown.page
        page.goto(str(client.base_url) + "/?sort=name")
        assert page.inner_text("#age") == "as of 14:13:20 UTC"
        page.get_by_label("Search").fill("00059")
        with page.expect_navigation():
            page.get_by_role("button", name="Filter").click()
        assert texts(page, NAMES) == ["cml-worker-00059"]


def test_names_of_workers_are_only_text(browser: Browser) -> None:
    wild = [renamed(each, name=MARKUP, id=f"{MARKUP}{number}", region=MARKUP) for number, each in enumerate(fleet(3, NOW))]
    parts = exporter(*wild)
    with opened(browser, parts, own_clock=True) as shown:
        page = shown.page
        wait_for_refresh(shown)
        parts.snapshot = snapshot(*wild[:2])
        wait_for_refresh(shown)
        expect(page.locator(NAMES)).to_have_count(2)
        assert page.title() == "Fleet · CML worker metrics"
        assert page.locator("img").count() == 0
        assert page.locator(NAMES).first.inner_text().startswith("</a><script>")
        page.locator(NAMES).first.click()
        assert page.inner_text("h1") == MARKUP


# -- comparisons


def test_workers_are_chosen_in_the_fleet_also_while_it_renews_itself(browser: Browser) -> None:
    parts = exporter(*fleet(60, NOW))
    with opened(browser, parts, "/?sort=name", own_clock=True) as shown:
        page = shown.page
        page.get_by_label("Compare cml-worker-00002").check()
        page.get_by_label("Compare cml-worker-00000").press("Space")
        parts.snapshot = snapshot(*(renamed(each, status="failed") for each in fleet(60, NOW)))
        wait_for_refresh(shown)
        expect(page.locator("#workers tbody .status.failed")).to_have_count(50)
        assert page.get_by_label("Compare cml-worker-00002").is_checked()
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Compare cml-worker-00000"
        page.get_by_role("button", name="Compare the chosen workers").press("Enter")
        page.wait_for_url("**/compare**")
        assert texts(page, ".legend a:not(.remove)") == ["cml-worker-00000", "cml-worker-00002"]


def test_workers_are_added_and_removed_and_keep_the_range(browser: Browser) -> None:
    with opened(browser, exporter(*fleet(9, NOW)), COMPARE.partition("&")[0] + "&tz=Europe/Berlin&start=-24h") as shown:
        page = shown.page
        page.get_by_role("textbox", name="Add a worker").fill("cml-worker-00004")
        page.get_by_role("textbox", name="Add a worker").press("Enter")
        page.wait_for_url("**00004**")
        assert texts(page, ".legend a:not(.remove)") == ["cml-worker-00000", "cml-worker-00004"]
        page.get_by_role("link", name="remove cml-worker-00000").click()
        assert texts(page, ".legend a:not(.remove)") == ["cml-worker-00004"]
        assert "tz=Europe%2FBerlin" in page.url
        assert page.get_by_role("link", name="24 h").get_attribute("aria-current") == "page"
        page.get_by_role("link", name="cml-worker-00004", exact=True).click()
        page.get_by_role("link", name="Compare with other workers").click()
        assert texts(page, ".legend a:not(.remove)") == ["cml-worker-00004"]


def test_a_comparison_tells_the_numbers_of_all_workers_by_keyboard(browser: Browser) -> None:
    with opened(browser, exporter(*fleet(8, NOW)), "&".join(COMPARE.split("&")[:2])) as shown:
        plot = shown.page.locator(".plot:visible").first
        plot.press("End")
        first = shown.page.locator("figure output").first
        assert re.fullmatch(r"2026-09-21 14:10 1: [\d.]+ % 2: [\d.]+ %", first.inner_text()), first.inner_text()
        plot.press("ArrowLeft")
        assert first.inner_text().startswith("2026-09-21 14:05")
        shown.page.get_by_text("CPU as a table").press("Enter")
        assert shown.page.get_by_role("columnheader", name="2 cml-worker-00001").is_visible()


# -- all pages

STATES = {
    "full": exporter(*fleet(60, NOW)),
    "empty": exporter(),
    "mongodb down": exporter(*fleet(5, NOW), sources={"mongodb": "MongoDB does not answer: " + "x" * 300}),
    "starting": Memory(ready=False),
    "markup": exporter(*(renamed(each, name=MARKUP, region=MARKUP) for each in fleet(5, NOW))),
}
PATHS = [
    *((state, "/") for state in STATES),
    ("full", "/?q=nothing"),
    ("full", "/?status=running&region=eu-west-1"),
    ("full", "/api"),
    ("full", "/runbook"),
    *((state, "/trends") for state in STATES),
]
WORKER = f"/workers/{fleet(1, NOW)[0].worker.id}"
COMPARE = "/compare?" + "&".join(f"worker={each.worker.id}" for each in fleet(8, NOW))


COMPARISONS = [("full", COMPARE), ("markup", COMPARE.partition("&")[0]), ("full", "/compare")]


AT_NIGHT = pytest.mark.nightly("test_every_page_is_accessible_and_never_wider_than_the_window")
SOME_BY_DAY = ["/", COMPARE, *(pytest.param(path, marks=AT_NIGHT) for path in (WORKER, "/trends"))]
NARROW, WIDE = (400, "dark"), (1400, "light")
WITH_VALUES = {("full", path) for path in ("/", "/trends", WORKER, COMPARE)}
BY_DAY = WITH_VALUES | {("mongodb down", "/")}
"""Every page, and the fleet in the states that add to it: a search for faults takes seconds of a processor."""


def in_both_widths() -> Iterator[ParameterSet]:
    """Yield each state of each page in a narrow, dark window and in a wide, light one, most of the wide ones at night."""
    for each in [*PATHS, ("full", WORKER), ("full", f"{WORKER}?compare=1w"), *COMPARISONS]:
        yield pytest.param(*each, *NARROW, marks=() if each in BY_DAY else AT_NIGHT)
        yield pytest.param(*each, *WIDE, marks=() if each == ("full", "/") else AT_NIGHT)


@pytest.mark.parametrize(("state", "path", "width", "scheme"), [*in_both_widths()])
def test_every_page_is_accessible_and_never_wider_than_the_window(
    browser: Browser, state: str, path: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    with opened(browser, STATES[state], path, width=width, scheme=scheme) as shown:
        assert shown.violations() == []
        assert shown.overflow() <= 0


@pytest.mark.parametrize("width", [400, 1400])
def test_no_fact_of_a_worker_runs_over_the_next_one(browser: Browser, width: int) -> None:
    """The id of an instance and the name of a field of the document have no blank at which they could be broken."""
    (worker,) = fleet(1, NOW)
    seen = InstanceInterval(str(worker.worker.instance_id), worker.worker.region, NOW - 900, NOW)
    shown_fields = renamed(worker, extra=(("cml_worker_licensed_external_nodes_total", 7.5),))
    parts = exporter(shown_fields)
    parts.known = [entry(worker.worker.id, terminated_at=None, instances=(seen,))]
    with opened(browser, parts, WORKER, width=width) as shown:
        assert f"Instance {worker.worker.instance_id}" in shown.page.inner_text("dl.facts")
        wider = "Array.from(document.querySelectorAll('dt, dd')).filter((each) => each.scrollWidth > each.clientWidth)"
        assert shown.page.evaluate(f"{wider}.map((each) => each.innerText)") == []


def test_an_error_is_a_page_that_is_accessible(browser: Browser) -> None:
    with serving(exporter()) as client, visit(browser, width=400) as shown:
        shown.page.goto(str(client.base_url) + "/workers/shoe")
        assert shown.page.inner_text("h1") == "Not Found"
        assert "Unknown worker shoe" in shown.page.inner_text("main")
        assert shown.violations() == []
        assert shown.overflow() <= 0


@pytest.mark.parametrize("path", SOME_BY_DAY)
def test_on_the_widest_screens_no_line_of_text_is_stretched(browser: Browser, path: str) -> None:
    with opened(browser, STATES["full"], path, width=3840) as shown:
        assert shown.overflow() <= 0
        widest = shown.page.evaluate(
            "Math.max(...Array.from(document.querySelectorAll('p, .head'), (each) => each.clientWidth))"
        )
        assert widest <= 1720
        drawn = shown.page.evaluate(
            "Array.from(document.querySelectorAll('.plot svg'), (each) => each.getBoundingClientRect())"
            ".filter((box) => box.width > 0).map((box) => box.width / box.height)"
        )
        assert all(ratio < 8 for ratio in drawn), "a chart keeps its proportions"


_MOVING = (
    "Array.from(document.querySelectorAll('*'), (each) => getComputedStyle(each))"
    ".filter((style) => parseFloat(style.transitionDuration) > 0 || style.animationName !== 'none').length"
)


@pytest.mark.parametrize("path", SOME_BY_DAY)
def test_nothing_moves_for_readers_who_want_no_motion(browser: Browser, path: str) -> None:
    with opened(browser, STATES["full"], path) as shown:
        # No element moves today; one that is added must not for these readers.
        shown.page.evaluate("document.styleSheets[0].insertRule('a { transition: color 2s; animation: x 2s }', 0)")
        assert shown.page.evaluate(_MOVING) > 0
        shown.page.emulate_media(reduced_motion="reduce")
        assert shown.page.evaluate(_MOVING) == 0


@pytest.mark.parametrize("path", [*SOME_BY_DAY, *(pytest.param(path, marks=AT_NIGHT) for path in ("/api", "/runbook"))])
def test_every_page_is_used_by_keyboard(browser: Browser, path: str) -> None:
    """Each stop of the Tab key is visible, and the first one leads to the content."""
    with opened(browser, STATES["full"], path) as shown:
        page = shown.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        stops = []
        for _ in range(12):
            page.keyboard.press("Tab")
            stops.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
        assert set(stops) == {"solid"}


@pytest.mark.parametrize("path", SOME_BY_DAY)
def test_on_paper_there_are_no_controls(browser: Browser, path: str) -> None:
    with opened(browser, STATES["full"], path, scheme="dark") as shown:
        shown.page.emulate_media(media="print", reduced_motion="reduce")
        assert shown.page.locator("header.site").is_hidden()
        assert shown.page.locator("form").first.is_hidden()
        assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


# -- within pages of others


def test_a_wiki_embeds_a_chart_as_an_image_but_no_page_in_a_frame(browser: Browser) -> None:
    workers = fleet(1, NOW)
    with serving(exporter(*workers)) as client, visit(browser) as shown:
        origin, page = str(client.base_url).rstrip("/"), shown.page
        chart = f"{origin}/workers/{workers[0].worker.id}/chart.svg"
        wiki = f'<img src="{chart}"><iframe src="{origin}/"></iframe>'
        with serving_text(lambda: wiki, PAGE) as address:
            page.goto(f"http://{address}/", wait_until="load")
            assert page.evaluate("document.querySelector('img').naturalWidth") == 960
            (frame,) = page.frames[1:]
            assert frame.url.startswith("chrome-error:")
            assert [each for each in shown.complaints if "frame-ancestors 'none'" in each]
