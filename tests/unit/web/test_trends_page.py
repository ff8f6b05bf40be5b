"""The page of the fleet's trends: days, weeks, ranks, cost, and sentences."""

import re
from zoneinfo import ZoneInfo

from exporter.core.periods import DAY, HOUR
from exporter.history.trends import Span, Totals, Trends
from exporter.web.pages import trends_page
from exporter.web.pages.trends_page import TrendsView, TrendWorker

MONDAY = 1_789_948_800
END = MONDAY + 2 * DAY


def totals(running: float, idle: float, cpu: float, price: float | None = None) -> Totals:
    priced = idle if price is not None else 0
    return Totals(running, idle, running, cpu * running, running, 50 * running, running, running, priced * (price or 0), priced)


def view(trends: Trends | None, workers: dict[str, TrendWorker], notice: str | None = None, days: int = 7) -> TrendsView:
    return TrendsView(trends, workers, days, 7, END, END - 12 * HOUR, notice)


def rows(text: str, heading: str) -> list[list[str]]:
    section = text[text.index(f'id="{heading}"') :].partition("</section>")[0]
    found = re.findall(r"<tr><th scope=\"row\".*?</tr>", section, re.S)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.S)] for row in found]


WORKERS = {
    "a": TrendWorker("alpha", "eu-west-1", "m5zn.metal", 3.96),
    "b": TrendWorker("<b>beta", "eu-west-1", "c5.large", None),
    "c": TrendWorker("gamma", "", None, None),
}
TRENDS = Trends(
    {
        MONDAY - DAY: Span(totals(24, 6, 10, 3.96), {MONDAY - DAY + at * HOUR for at in range(24)}),
        MONDAY + DAY: Span(totals(12, 3, 40), {MONDAY + DAY + at * HOUR for at in range(6)}),
    },
    {"a": totals(24, 6, 10, 3.96), "b": totals(12, 3, 40), "c": totals(0.5, 0, 99)},
)


def test_days_and_weeks_have_the_figures_of_their_hours() -> None:
    text = trends_page.render(view(TRENDS, WORKERS), "./")
    assert rows(text, "days") == [
        ["Tue 2026-09-22", "2", "40 %", "50 %", "2", "12 h", "3.0 h", "–", "50 %"],
        ["Sun 2026-09-20", "1", "10 %", "50 %", "1", "24 h", "6.0 h", "$23.76", "100 %"],
    ]
    weeks = rows(text, "weeks")
    assert [row[0] for row in weeks] == ["from Mon 2026-09-21", "from Mon 2026-09-14"]
    assert [row[5] for row in weeks] == ["12 h", "24 h"]
    tiles = dict(re.findall(r"<div><dt>([^<]*)</dt><dd>([^<]*)</dd></div>", text))
    assert tiles["hours running"] == "36 h"
    assert tiles["running at a time"] == "1.2"
    assert tiles["mean CPU while running"] == "20 %"
    assert tiles["what these cost"] == "$23.76"


def test_days_and_weeks_are_those_of_the_zone() -> None:
    zone = ZoneInfo("America/New_York")
    midnight = MONDAY + 4 * HOUR  # in New York
    observed = {midnight + at * HOUR for at in range(24)}
    trends = Trends({midnight: Span(totals(24, 6, 10), observed)}, {"a": totals(24, 6, 10)})
    shown = TrendsView(trends, WORKERS, 2, 2, midnight + 2 * DAY, midnight + 30 * HOUR, None, zone)
    text = trends_page.render(shown, "./")
    assert [(row[0], row[-1]) for row in rows(text, "days")] == [("Mon 2026-09-21", "100 %")]
    assert [(row[0], row[-1]) for row in rows(text, "weeks")] == [("from Mon 2026-09-21", "80 %")]
    assert "2026-09-21 to 2026-09-22, days in America/New_York" in text
    assert 'href="?days=14&amp;tz=America%2FNew_York"' in text
    assert "Midnight is within an hour" not in text
    india = TrendsView(trends, WORKERS, 1, 1, MONDAY + DAY - 11 * HOUR // 2, MONDAY, None, ZoneInfo("Asia/Kolkata"))
    assert "Midnight is within an hour" in trends_page.render(india, "./")


def test_workers_are_ranked_by_idle_hours_and_by_cpu() -> None:
    text = trends_page.render(view(TRENDS, WORKERS), "./")
    idlest = rows(text, "idlest")
    assert [row[0] for row in idlest] == ["alpha", "&lt;b&gt;beta"]
    assert idlest[0][5:] == ["24 h", "6.0 h", "25 %", "$23.76"]
    assert idlest[1][8] == "–"
    assert [row[0] for row in rows(text, "busiest")] == ["&lt;b&gt;beta", "alpha"], "half an hour is too short for a rank"
    assert 'href="./workers/a?start=-7d"' in text


def test_the_page_says_for_how_many_workers_the_cost_is_known() -> None:
    text = trends_page.render(view(TRENDS, WORKERS), "./")
    assert "A price is known for 1 of 2 workers that ran without a lab (67 % of these hours)." in text
    assert "Add to workers.hourly_price: c5.large." in text
    assert "The number of labs" not in text
    blind = Totals(running=10, counted=5)
    text = trends_page.render(view(Trends({MONDAY: Span(blind, {MONDAY})}, {"a": blind}), WORKERS), "./")
    assert "No worker ran without a lab." in text
    assert "The number of labs is known for 50 % of the running hours" in text


def test_without_figures_there_is_a_sentence_and_no_empty_table() -> None:
    text = trends_page.render(view(None, {}, "No figures: <MongoDB>."), "./")
    assert "No figures: &lt;MongoDB&gt;." in text
    assert "<table" not in text
    assert "3 workers: 2 of 7 days are shown." in trends_page.render(view(TRENDS, WORKERS, days=2), "./")
