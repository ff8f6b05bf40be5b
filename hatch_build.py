"""Metadata that hatchling adds to the package: the repository's addresses, and a README that reads well on a package index.

An index shows README.md without the repository, so relative links and pictures would lead nowhere. The release workflow gives
the repository's address in PROJECT_URL; a build without it leaves out the pictures, and of the links it leaves the text.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"<picture>.*?</picture>\n*", re.DOTALL)
_SOURCE = re.compile(r'(src|srcset)="(?![a-z]+:)([^"]+)"')
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """Sets `readme` and `urls`, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both to `metadata`."""
        address = os.environ.get("PROJECT_URL", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text()
        metadata["readme"] = {"content-type": "text/markdown", "text": readable(text, address, f"v{metadata['version']}")}
        metadata["urls"] = urls(address)


def urls(address: str) -> dict[str, str]:
    """Return the project's addresses by their names; none without the repository's."""
    if not address:
        return {}
    return {
        "Source": address,
        "Documentation": f"{address}/tree/main/docs",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }


def readable(text: str, address: str, tag: str) -> str:
    """Return the README with absolute addresses of the files at a tag, or without pictures and links."""
    if not address:
        return _LINK.sub(r"\1", _PICTURE.sub("", text))
    text = _SOURCE.sub(rf'\1="{address}/raw/{tag}/\2"', text)
    return _LINK.sub(rf"[\1]({address}/blob/{tag}/\2)", text)
