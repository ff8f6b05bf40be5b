"""The runbook of the alerts as a page, made of the package's `prometheus/runbook.md`.

Alerts link to its headings, so that whoever is woken reads the runbook of the version that runs.
"""

import re
from functools import cache
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from exporter.core import assets
from exporter.web.pages import templates

_ELSEWHERE = re.compile(r"https?:|#")
"""Links that lead somewhere from this page; others lead to files of the repository."""


class Runbook(NamedTuple):
    """A runbook as HTML."""

    title: str
    alerts: tuple[str, ...]
    """The headings of the third level."""
    html: Markup


def render(root: str) -> str:
    """Return the page; `root` is the relative path to the root of the exporter."""
    return templates.render("runbook.html", root=root, page=_runbook(), anchor=anchor)


@cache
def _runbook() -> Runbook:
    return parse(assets.files()["prometheus/runbook.md"].read_text())


def parse(text: str) -> Runbook:
    """Return Markdown whose first heading is its title: headings with anchors; HTML in it is escaped."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    title, *tokens = markdown.parse(text)[1:]
    alerts = []
    for position, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[position + 1].content
            token.attrSet("id", anchor(heading))
            if token.tag == "h3":
                alerts.append(heading)
        if token.children:
            token.children = _linked(token.children)
    html = markdown.renderer.render(tokens[1:], markdown.options, {})  # the first one closes the title
    return Runbook(title.content, tuple(alerts), Markup(html))


def anchor(heading: str) -> str:
    """Return the fragment by which a heading is linked, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _linked(tokens: list[Token]) -> list[Token]:
    """Return the tokens of a paragraph without links to files of the repository; their text stays."""
    kept, dropping = [], False
    for token in tokens:
        if token.type == "link_open":
            dropping = not _ELSEWHERE.match(str(token.attrGet("href")))
        if not (dropping and token.type in ("link_open", "link_close")):
            kept.append(token)
    return kept
