"""The runbook of the alerts as a page, made of the package's `prometheus/runbook.md`.

Alerts link to its headings, so that whoever is woken reads the runbook of the version that runs.
"""

import re
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from exporter.core import assets
from exporter.web.pages import templates

_ELSEWHERE = re.compile(r"https?:|#")
"""Links that lead somewhere from this page; others lead to files of the repository."""


def render(root: str) -> str:
    """Return the page; `root` is the relative path to the root of the exporter."""
    return templates.render("runbook.html", root=root, text=_text())


@cache
def _text() -> Markup:
    return Markup(to_html(assets.files()["prometheus/runbook.md"].read_text()))  # HTML in it is escaped


def to_html(text: str) -> str:
    """Return Markdown as HTML: one h1, headings with their anchors, and only links that lead somewhere from here."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for position, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(tokens[position + 1].content))
        if token.type in ("heading_open", "heading_close") and position > 2:  # the first heading is the page's
            token.tag = f"h{int(token.tag[1]) + 1}"
        if token.children:
            token.children = _linked(token.children)
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    return html


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
