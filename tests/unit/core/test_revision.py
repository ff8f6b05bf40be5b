"""The commit that /metrics and the image tell."""

from importlib import resources
from pathlib import Path

import pytest

from exporter.core.revision import revision


@pytest.mark.parametrize(
    ("variable", "file", "told"),
    [("", None, ""), ("", "f1le\n", "f1le"), ("given", "f1le\n", "given"), (None, "f1le\n", "f1le")],
)
def test_the_revision_is_that_of_the_environment_else_that_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, file: str | None, told: str
) -> None:
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    if file:
        (tmp_path / "revision.txt").write_text(file)
    if variable is None:
        monkeypatch.delenv("REVISION", raising=False)
    else:
        monkeypatch.setenv("REVISION", variable)
    assert revision() == told
