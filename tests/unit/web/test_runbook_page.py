"""The runbook as a page: every alert's link leads to its section, and nothing on it leads nowhere."""

import re
from itertools import pairwise
from pathlib import Path

import yaml

from exporter.web.pages import runbook_page

RULES = Path(__file__).parents[3] / "prometheus" / "rules"
PAGE = runbook_page.render("./")


def test_every_alert_leads_to_a_heading() -> None:
    rules = [
        rule for file in RULES.glob("*.yml") for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
    ]
    fragments = {rule["annotations"]["runbook_url"].rpartition("#")[2] for rule in rules if "alert" in rule}
    assert len(fragments) > 20
    assert fragments <= set(re.findall(r'<h3 id="([^"]+)">', PAGE))


def test_links_lead_somewhere() -> None:
    article = PAGE.partition("<article")[2].partition("</article>")[0]
    ids = set(re.findall(r'id="([^"]+)"', article))
    for target in re.findall(r'href="([^"]+)"', article):
        assert target.startswith("http") or target.removeprefix("#") in ids, target
    assert "rules/settings.yml" in article, "the text of a link to a file stays"


def test_there_is_one_h1_and_no_level_is_skipped() -> None:
    levels = [int(level) for level in re.findall(r"<h(\d)[ >]", PAGE)]
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_the_list_names_every_alert() -> None:
    listed = PAGE.partition('<nav aria-label="Alerts">')[2].partition("</nav>")[0]
    assert re.findall(r'href="#([^"]+)"', listed) == re.findall(r'<h3 id="([^"]+)">', PAGE)


def test_html_in_the_text_is_text() -> None:
    page = runbook_page.parse("# T\n\n### A b\n\n<script>alert(1)</script> [a](javascript:x) [b](docs/b.md) [c](#t)")
    assert (page.title, page.alerts) == ("T", ("A b",))
    assert page.html.splitlines() == [
        '<h3 id="a-b">A b</h3>',
        '<p>&lt;script&gt;alert(1)&lt;/script&gt; [a](javascript:x) b <a href="#t">c</a></p>',
    ]
