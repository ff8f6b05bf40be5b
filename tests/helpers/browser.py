"""Pages in Debian's chromium: what they load, what the content security policy refuses, what axe-core finds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import program

AXE_OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    # A selector for each element that is right would take most of the time.
    "resultTypes": ["violations"],
}


@dataclass
class Visit:
    """A page that is open in a browser.

    Attributes:
        page: of playwright.
        requests: (method, address) of every request.
        complaints: errors of scripts, and of the console, as about a violation of the content security policy.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def foreign(self, origin: str) -> list[str]:
        """Return the requests that left the origin, such as http://127.0.0.1:9877."""
        return [each for each in self.requests if urlsplit(each).scheme not in ("data", "blob") and not each.startswith(origin)]

    def violations(self) -> list[str]:
        """Return what axe-core finds wrong, one sentence each: rule, help, and the elements."""
        found = Axe().run(self.page, options=AXE_OPTIONS).response["violations"]
        return [f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes']][:3]}" for each in found]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's chromium without a window."""
    with sync_playwright() as playwright:
        # Without its sandbox, because tests may run as root; it opens no page but the exporter's.
        browser = playwright.chromium.launch(
            executable_path=program("chromium", "apt-get install chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(
    browser: Browser,
    *,
    width: int = 1400,
    scheme: Literal["light", "dark"] = "light",
    **options: Any,  # noqa: ANN401  # of a context of playwright
) -> Iterator[Visit]:
    """Open an empty page in a profile of its own."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    shown = Visit(context.new_page())
    shown.page.on("request", lambda request: shown.requests.append(request.url))
    shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
    shown.page.on(
        "console",
        lambda message: shown.complaints.append(message.text) if message.type in ("error", "warning") else None,
    )
    try:
        yield shown
    finally:
        context.close()


def texts(page: Page, selector: str) -> list[str]:
    """Return the visible texts of all elements of a selector, with single spaces."""
    return [re.sub(r"\s+", " ", text).strip() for text in page.locator(selector).all_inner_texts()]
