"""The fleet page and the page of the API over HTTP: entity tags, queries of the history, authentication, large fleets."""

import re
from html import unescape

import httpx
import pytest

from exporter.core.errors import StoreUnavailableError
from exporter.core.settings import WebSettings
from exporter.web import webconfig
from exporter.web.pages.fleet_table import PAGE_ROWS
from exporter.web.routes import ROUTES
from tests.helpers.fleets import Hours, fleet
from tests.integration.web.test_routes import (  # serve is a fixture
    NOW,
    Memory,
    Serve,
    gauges,
    hashed,
    problem,
    serve,  # noqa: F401
    snapshot,
)


def served(serve: Serve, size: int, **changes: object) -> tuple[Memory, Hours, httpx.Client]:  # noqa: F811
    hours = Hours()
    parts = Memory(snapshot=snapshot(*fleet(size, NOW)), sources={"mongodb": None}, hourly=hours, **changes)  # type: ignore[arg-type]
    return parts, hours, serve(parts)


def test_the_page_is_a_document_under_a_strict_policy_that_loads_nothing_from_elsewhere(serve: Serve) -> None:  # noqa: F811
    _, _, client = served(serve, 12)
    for path in ("/", "/api"):
        response = client.get(path)
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["cache-control"] == "private, no-cache"
        assert not re.search(r"<[^>]+ (style|on[a-z]+)=", response.text), "the policy would refuse it"
        assert not re.search(r"<script[^>]*>[^<]", response.text)
        addresses = re.findall(r'(?:src|href|action)="([^"]*)"', response.text)
        assert addresses
        assert all(re.match(r"\./|\?|#|data:,", address) for address in addresses)


def test_every_link_of_the_pages_works_below_a_prefix(serve: Serve) -> None:  # noqa: F811
    parts = Memory(snapshot=snapshot(gauges("w/1")), known=[], sources={"mongodb": None}, hourly=Hours())
    client = serve(parts, settings=WebSettings(route_prefix="/exporter"))
    for path in ("/exporter/", "/exporter/api"):
        links = re.findall(r'href="(\.[^"]*|\?[^"]*)"', client.get(path).text)
        assert [
            client.get(httpx.URL("http://x" + path).join(unescape(link)).raw_path.decode()).status_code for link in links
        ] == [200] * len(links)


def test_what_has_not_changed_is_not_sent_again(serve: Serve) -> None:  # noqa: F811
    parts, _, client = served(serve, 3)
    first = client.get("/")
    tag = first.headers["etag"]
    parts.time += 10
    for sent in (tag, tag.removeprefix("W/"), f'"other", {tag}'):
        again = client.get("/", headers={"If-None-Match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert "as of <time" in first.text
    parts.sources["mongodb"] = "down"
    changed = client.get("/", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag
    assert client.get("/?q=1").headers["etag"] != changed.headers["etag"]


def test_the_history_of_one_page_is_read_for_all_its_workers_together(serve: Serve) -> None:  # noqa: F811
    _, hours, client = served(serve, 120)
    text = client.get("/?page=3").text
    assert text.count('<svg class="spark"') == 2 * 20
    assert [len(each) for each in hours.queries] == [20, 20], "once for CPU, once for memory, of the same cached days"
    shown = {worker_id for worker_id in hours.queries[0] if worker_id in text}
    assert shown == hours.queries[0]


def test_without_a_readable_history_the_page_comes_at_once_and_says_why(serve: Serve) -> None:  # noqa: F811
    parts, hours, client = served(serve, 3)
    hours.failure = StoreUnavailableError("MongoDB does not answer", reason="unavailable")
    text = client.get("/").text
    assert "No sparklines: MongoDB does not answer. They come back by themselves" in text
    assert "cml-worker-00001" in text
    parts.sources["mongodb"] = "MongoDB is down."
    hours.queries.clear()
    assert "No sparklines: MongoDB cannot be read." in client.get("/").text
    assert hours.queries == [], "a MongoDB that is known to be down is not waited for"
    without = serve(Memory(snapshot=snapshot(gauges("w1"))))
    assert "mongodb.history is null" in without.get("/").text


def test_the_page_says_why_there_are_no_values(serve: Serve) -> None:  # noqa: F811
    parts = Memory(ready=False)
    client = serve(parts)
    assert "have not been read yet" in client.get("/").text
    parts.ready = True
    assert "have never been read" in client.get("/").text
    parts.snapshot = snapshot()
    assert "No workers: cml_cloud_manager.cml_workers has" in client.get("/").text
    parts.snapshot = snapshot(gauges("w1"))
    assert "45.2" in client.get("/").text
    parts.time = NOW + 61
    text = client.get("/").text
    assert "No recent values" in text
    assert "45.2" not in text
    assert "Degraded:</b> gauges" in text


def test_a_wrong_parameter_is_refused_with_the_allowed_values(serve: Serve) -> None:  # noqa: F811
    _, _, client = served(serve, 1)
    assert "name, region, status, cpu" in problem(client.get("/?sort=shoe"), 400)
    assert client.head("/?sort=name").status_code == 200


def test_both_pages_need_the_password_of_the_api(serve: Serve) -> None:  # noqa: F811
    client = serve(Memory(), web=webconfig.WebConfig(users={"alice": hashed("secret")}))
    for path in ("/", "/api"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("alice", "secret")).status_code == 200


def test_the_page_of_the_api_lists_every_route_with_its_parameters_and_responses(serve: Serve) -> None:  # noqa: F811
    client = serve(Memory())
    text = unescape(client.get("/api").text)
    document = client.get("/openapi.json").json()
    sections = dict(re.findall(r'<h2 id="([^"]+)">(.*?)</section>', text, re.S))
    assert len(sections) == len(document["paths"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            section = sections[operation["operationId"]]
            plain = re.sub("<[^>]*>", "", section)
            assert f"{method.upper()} {path}" in " ".join(plain.split())
            for words in [operation["summary"], *(each["name"] for each in operation["parameters"]), *operation["responses"]]:
                assert words.replace("`", "") in plain
    assert {endpoint.template for endpoint in ROUTES} <= document["paths"].keys()
    assert 'href="./openapi.json"' in text


@pytest.mark.parametrize("query", ["/", "/?q=00099&sort=name", "/?status=running&region=eu-west-1&sort=idle&page=9"])
def test_ten_thousand_workers_stay_usable(serve: Serve, query: str) -> None:  # noqa: F811
    _, _, client = served(serve, 10_000)
    response = client.get(query)
    assert response.status_code == 200
    assert response.text.count('<th scope="row">') <= PAGE_ROWS
    assert len(response.content) < 120_000
