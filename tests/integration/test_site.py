"""The documentation as a site: every page, link and anchor works, and a reader's browser loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from docs_site import FURTHER, linked
from tests.helpers.browser import chromium, visit
from tests.helpers.deadlines import scaled

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key != "PROJECT_URL"} | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=scaled(120), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_docs_and_the_runbook_is_built_and_in_the_navigation(site: Path) -> None:
    names = {page.stem for page in (ROOT / "docs").glob("*.md")} | {Path(page).stem for page in FURTHER.values()}
    assert {page.stem for page in site.glob("*.html")} == names | {"404"}
    navigation = re.findall(r": ([\w-]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == sorted(names)


def test_a_page_has_one_title_and_its_table_of_contents_names_every_section(site: Path) -> None:
    """With a second heading of the first level the theme leaves the table of contents out."""
    for page in site.glob("*.html"):
        before, _, article = page.read_text().partition("<article")
        assert len(re.findall(r"<h1[ >]", article)) == 1 or page.name == "404.html", page.name
        listed = set(re.findall(r'href="?#([^"\s>]+)', before))
        assert set(re.findall(r'<h2 id="?([^"\s>]+)', article)) <= listed, page.name


def test_every_address_of_a_page_is_there(site: Path) -> None:
    ids = {page.name: set(re.findall(r'\bid="?([^"\s>]+)', page.read_text())) for page in site.glob("*.html")}
    for page in site.glob("*.html"):
        for target in re.findall(r'(?:href|src|srcset)="?([^"\s>]+)', page.read_text()):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or target.startswith("/") or page.name == "404.html":
                continue
            file = parts.path.removeprefix("./") or page.name
            assert (site / file).exists(), f"{page.name}: {target}"
            if parts.fragment and parts.fragment != "__skip":
                assert parts.fragment in ids[file], f"{page.name}: {target}"


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img|source|iframe)[^>]*\bsrc(?:set)?="?(https?:[^"\s>]+)', page.read_text())
        loaded += re.findall(r'<link[^>]*rel="?(?:stylesheet|preconnect)"?[^>]*href="?(https?:[^"\s>]+)', page.read_text())
        assert loaded == [], page.name


def test_no_list_is_shown_as_part_of_a_paragraph(site: Path) -> None:
    """The site wants four blanks before a paragraph of a list item, GitHub two: else the rest of the list is text."""
    for page in site.glob("*.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", re.sub(r"<code>.*?</code>", "", page.read_text()), re.DOTALL):
            assert not re.search(r"^(?:[-*]|\d+\.) |```", paragraph, re.MULTILINE), f"{page.name}: {paragraph[:200]}"


@pytest.mark.nightly("test_every_address_of_a_page_is_there")
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_of_a_page_is_wider_than_the_window_or_fails_to_load(site: Path, width: int) -> None:
    """A table or code that is too wide scrolls by itself."""
    outside = """() => [...document.querySelectorAll("article *")].filter(element => {
        if (element.getBoundingClientRect().right <= innerWidth + 1) return false;
        for (let around = element; around.tagName != "ARTICLE"; around = around.parentElement)
            if (getComputedStyle(around).overflowX == "auto") return false;
        return true;
    }).map(element => element.outerHTML.slice(0, 200))"""
    unloaded = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
    with chromium() as browser, visit(browser, width=width) as shown:
        for page in sorted(site.glob("*.html")):
            if page.name != "404.html":  # its addresses begin with /
                shown.page.goto(page.as_uri())
                assert (shown.page.evaluate(outside), shown.overflow(), shown.page.evaluate(unloaded)) == ([], 0, []), page.name


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", "[a](b.md#c) [r](runbook.md#x) rules"),
        ("https://e.org/o/r", "[a](b.md#c) [r](runbook.md#x) [rules](https://e.org/o/r/tree/main/prometheus/rules)"),
    ],
)
def test_links_to_files_beside_docs_lead_to_the_repository(
    monkeypatch: pytest.MonkeyPatch, address: str, expected: str
) -> None:
    monkeypatch.setenv("PROJECT_URL", address)
    text = "[a](b.md#c) [r](../prometheus/runbook.md#x) [rules](../prometheus/rules)"
    assert linked(text, "docs/page.md") == expected
