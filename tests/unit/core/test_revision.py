"""The commit that /metrics, --version and the image tell."""

import subprocess
from importlib import resources
from pathlib import Path

import pytest

from exporter.core import revision as module
from exporter.core.revision import checked_out, revision


@pytest.mark.parametrize(
    ("variable", "file", "told"),
    [("", None, ""), ("", "f1le\n", "f1le"), ("given", "f1le\n", "given"), (None, "f1le\n", "f1le")],
)
def test_the_revision_is_that_of_the_environment_else_that_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, file: str | None, told: str
) -> None:
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path)
    if file:
        (tmp_path / "revision.txt").write_text(file)
    if variable is None:
        monkeypatch.delenv("REVISION", raising=False)
    else:
        monkeypatch.setenv("REVISION", variable)
    assert revision() == told


def test_the_revision_of_a_checkout_is_what_git_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "someone")
    folder = tmp_path / "checkout"

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()

    folder.mkdir()
    assert checked_out(folder) == ""
    git("init", "--quiet", "--initial-branch", "feature/a+b")
    assert checked_out(folder) == ""
    git("commit", "--quiet", "--allow-empty", "--message", "one")
    assert checked_out(folder) == git("rev-parse", "HEAD")
    git("pack-refs", "--all")
    assert checked_out(folder) == git("rev-parse", "HEAD")
    git("worktree", "add", "--quiet", "-b", "beside", "../beside")
    git("commit", "--quiet", "--allow-empty", "--message", "two")
    assert checked_out(tmp_path / "beside") == git("rev-parse", "beside") != git("rev-parse", "HEAD") == checked_out(folder)
    git("checkout", "--quiet", "--detach", "HEAD~1")
    assert checked_out(folder) == git("rev-parse", "HEAD")
