"""The landing page names what fails, and the status says so too."""

from exporter.web import landing
from exporter.web.responses import readiness


def page(health: dict[str, str | None]) -> str:
    return landing.page((), fresh=True, ready=True, collection="db.workers", health=health, links=[])


def test_the_page_names_the_parts_that_fail_and_shows_their_errors() -> None:
    text = page({"mongodb": None, "outbox": "the disk is <full>", "history": "no lease"})
    assert "<b>Degraded:</b> history, outbox." in text
    assert "the disk is &lt;full&gt;" in text


def test_the_page_says_nothing_of_the_kind_while_all_is_well() -> None:
    assert "Degraded" not in page({"mongodb": None, "outbox": None})


def test_the_status_is_starting_degraded_or_ok() -> None:
    assert readiness(False, {"mongodb": "down"}).status == "starting"
    assert readiness(True, {"mongodb": "down", "outbox": None}).status == "degraded"
    assert readiness(True, {"mongodb": None, "outbox": None}).status == "ok"
