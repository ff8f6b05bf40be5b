"""Hooks of mkdocs: pages of docs/ link to files of the repository, which are not all part of the site.

The runbook and the changelog become pages. A link to another file leads to the repository where PROJECT_URL gives its
address, as in the release workflow; else only its text stays.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
FURTHER = {"prometheus/runbook.md": "runbook.md", "CHANGELOG.md": "changelog.md"}
"""Files beside docs/ that are pages of the site: path in the repository → page."""
_CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the further pages."""
    for source, page in FURTHER.items():
        files.append(File.generated(config, page, content=linked((ROOT / source).read_text(), source)))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Return a page of docs/ with links that work on the site; further pages have them already."""
    file = page.file  # type: ignore[attr-defined]  # mkdocs.structure.pages.Page
    return markdown if file.generated_by else linked(markdown, f"docs/{file.src_uri}")


def linked(text: str, source: str) -> str:
    """Return Markdown of a file in the repository with links to pages of the site, to the repository, or without them."""
    parts = _CODE.split(text)
    return "".join(
        part if number % 2 else _LINK.sub(lambda found: _target(found, source), part) for number, part in enumerate(parts)
    )


def _target(found: re.Match[str], source: str) -> str:
    text, target, fragment = found[1], found[2], found[3] or ""
    path = os.path.normpath(PurePosixPath(source).parent / target)
    if path in FURTHER:
        return f"[{text}]({FURTHER[path]}{fragment})"
    if path.startswith("docs/"):
        return f"[{text}]({path.removeprefix('docs/')}{fragment})"
    address = os.environ.get("PROJECT_URL", "").rstrip("/")
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"[{text}]({address}/{kind}/main/{path}{fragment})" if address else text
