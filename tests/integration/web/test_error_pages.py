"""Errors in a browser are pages with a sentence, below a prefix too; programs get a problem."""

import re

import httpx
import pytest

from exporter.core.errors import StoreUnavailableError
from exporter.core.settings import WebSettings
from tests.helpers.fleets import fleet
from tests.integration.web.test_routes import NOW, Memory, Serve, problem, serve, snapshot  # noqa: F401  # a fixture

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/workers/a%2Fb", 404, "Unknown worker a/b; /api/workers lists all workers, present and past."),
        ("/workers/<b>", 404, "Unknown worker &lt;b&gt;; "),
        ("/no/such/page", 404, "There is nothing at /exporter/no/such/page; the page at /api lists the routes."),
        ("/?sort=shoe", 400, "sort must be one of name, region"),
        ("/compare?worker=shoe", 404, "Unknown worker shoe"),
        ("/trends?days=0", 400, "days must be a whole number from 1 to 40."),
    ],
)
def test_a_browser_gets_a_page_and_a_program_a_problem(serve: Serve, path: str, status: int, sentence: str) -> None:  # noqa: F811
    client = serve(Memory(snapshot=snapshot(*fleet(2, NOW))), settings=WebSettings(route_prefix="/exporter"))
    shown = client.get("/exporter" + path, headers=BROWSER)
    assert (shown.status_code, shown.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert sentence in shown.text
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    assert shown.headers["vary"] == "Accept, Accept-Encoding"
    for link in re.findall(r'href="(\.[^"]*)"', shown.text):
        address = shown.url.join(link)
        assert client.get(address).status_code == 200, link
    problem(client.get("/exporter" + path), status)
    problem(client.get("/exporter" + path, headers={"Accept": "application/json, text/html;q=0.5"}), status)


def test_a_mongodb_that_is_down_is_a_page_that_can_be_tried_again(serve: Serve) -> None:  # noqa: F811
    parts = Memory(snapshot=snapshot(*fleet(2, NOW)))
    parts.failure = StoreUnavailableError("MongoDB does not answer; check that it runs.", reason="unavailable")
    client: httpx.Client = serve(parts)
    shown = client.get(f"/workers/{fleet(1, NOW)[0].worker.id}", headers=BROWSER)
    assert (shown.status_code, shown.headers["retry-after"]) == (503, "10")
    assert "MongoDB does not answer; check that it runs." in shown.text
    assert ">Try again</a>" in shown.text
