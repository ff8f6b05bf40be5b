"""Takes the pictures of README and docs from a running exporter, such as the demo (`make demo`).

    python -m tests.tools.screenshots --url http://127.0.0.1:9877 --output docs/images [--format webp]

Needs playwright (requirements-dev.txt) and chromium. Which workers are shown: the busiest ones that have memory and run for two
weeks, so that no graph is empty.
"""

import argparse
import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.request import urlopen

from playwright.sync_api import Browser

from tests.helpers.browser import chromium, visit

MAX_BYTES = 150_000
"""Of one picture: they are in the repository."""
_QUALITY = (80, 60, 40, 25)
"""Tried one after the other until a picture is small enough."""


class Shot(NamedTuple):
    """A picture: its name, the page, and how it is looked at."""

    name: str
    path: str
    scheme: Literal["light", "dark"]
    height: int
    """Pixels of the window; what is below is cut."""
    width: int = 1280


def shots(workers: Sequence[str]) -> Sequence[Shot]:
    """Return the pictures; `workers` are the ids of some workers."""
    return (
        Shot("fleet-light", "", "light", 900),
        Shot("fleet-dark", "", "dark", 900),
        Shot("worker", f"workers/{workers[0]}?start=-7d&compare=1w", "light", 1150),
        Shot("compare", "compare?start=-24h&" + "&".join(f"worker={each}" for each in workers[:4]), "light", 1150),
        Shot("trends", "trends?days=14", "light", 1250),
    )


def workers_of(url: str) -> Sequence[str]:
    """Return the ids of running workers that fill every graph: with memory, and two weeks old; the busiest ones first."""
    with urlopen(f"{url}api/workers?status=running&limit=500", timeout=30) as answer:
        found = json.load(answer)["data"]
    oldest = (datetime.now(UTC) - timedelta(days=14)).isoformat()
    full = [each for each in found if each["memory_utilization"] is not None and (each["created_at"] or "9") < oldest]
    return [each["worker_id"] for each in sorted(full, key=lambda each: -(each["cpu_utilization"] or 0))]


def take(browser: Browser, url: str, shot: Shot, kind: Literal["webp", "png"]) -> bytes:
    """Return the picture of a page, as small as it must be."""
    with visit(browser, width=shot.width, scheme=shot.scheme) as shown:
        shown.page.set_viewport_size({"width": shot.width, "height": shot.height})
        response = shown.page.goto(url + shot.path)
        if response is None or not response.ok:
            raise SystemExit(f"{url + shot.path} answered {response and response.status}; open it in a browser to see why.")
        session = shown.page.context.new_cdp_session(shown.page)
        for quality in _QUALITY:
            asked: Mapping[str, object] = {"format": kind} | ({"quality": quality} if kind == "webp" else {})
            picture = base64.b64decode(session.send("Page.captureScreenshot", dict(asked))["data"])
            if len(picture) <= MAX_BYTES:
                break
        return picture


def main(argv: Sequence[str] | None = None) -> None:
    """Take all pictures, and print their sizes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.screenshots",
        description="Take the pictures of README and docs from a running exporter, such as the demo (make demo).",
    )
    parser.add_argument("--url", default="http://127.0.0.1:9877", help="of the exporter (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder (default: %(default)s)")
    parser.add_argument("--format", choices=("webp", "png"), default="webp", help="of the pictures (default: %(default)s)")
    arguments = parser.parse_args(argv)
    url = arguments.url.rstrip("/") + "/"
    arguments.output.mkdir(parents=True, exist_ok=True)
    workers = workers_of(url)
    if not workers:
        parser.error(f"{url} has no worker that runs for two weeks and has memory; wait until the exporter has read CloudWatch")
    with chromium() as browser:
        for shot in shots(workers):
            picture = take(browser, url, shot, arguments.format)
            file = arguments.output / f"{shot.name}.{arguments.format}"
            file.write_bytes(picture)
            print(f"{file}: {len(picture):,} bytes")


if __name__ == "__main__":
    main()
