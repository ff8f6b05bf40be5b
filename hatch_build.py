"""What hatchling adds to the package: the commit, the repository's addresses, and a README that reads well on a package index.

An index shows README.md without the repository, so relative links and pictures would lead nowhere. The release workflow gives
the repository's address in PROJECT_URL; a build without it leaves out the pictures, and of the links it leaves the text.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"<picture>.*?</picture>\n*", re.DOTALL)
_SOURCE = re.compile(r'(src|srcset)="(?![a-z]+:)([^"]+)"')
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s]+)\)")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # of any builder
    """Adds exporter/revision.txt, the commit of the checkout: to the sdist, and to the wheel unless it is built from that."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add it to `build_data`; an editable package has none, because its commit changes."""
        script = Path(self.root, "deploy", "revision")
        if version == "editable" or Path(self.root, "exporter", "revision.txt").exists() or not script.exists():
            return
        found = subprocess.run(["sh", script, Path(self.root, ".git")], capture_output=True, text=True, check=True).stdout
        self._folder = tempfile.TemporaryDirectory()  # until this hook is forgotten
        file = Path(self._folder.name, "revision.txt")
        file.write_text(os.environ.get("REVISION", "") or found)
        build_data["force_include"][str(file)] = "exporter/revision.txt"


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
