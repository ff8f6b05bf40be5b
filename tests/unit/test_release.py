"""A release is made of a tag whose version and notes are in the repository, by targets that anyone can run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "release-notes", tmp_path / ".ci")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-11-29\n\n### Added\n\n- A\n\n## [1.2.2] - 2026-01-01\n\n- B\n"
    )
    return tmp_path


def notes(checkout: Path, tag: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, checkout / ".ci" / "release-notes", tag], capture_output=True, text=True, check=False
    )


def test_the_notes_are_the_section_of_the_tag(checkout: Path) -> None:
    assert notes(checkout, "v1.2.3").stdout == "### Added\n\n- A\n"


def test_a_tag_without_its_version_or_section_is_refused(checkout: Path) -> None:
    assert "pyproject.toml has version 1.2.3" in notes(checkout, "v1.2.2").stderr
    (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n- A\n")
    done = notes(checkout, "v1.2.3")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no section '## [1.2.3] - YYYY-MM-DD'" in done.stderr


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.stem)
def test_every_make_target_and_script_of_a_workflow_exists(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for command in commands:
        assert set(re.findall(r"^make ([a-z-]+)", command, re.MULTILINE)) <= targets
        for script in re.findall(r"^(\.ci/[\w-]+|deploy/[\w-]+)\b", command, re.MULTILINE):
            assert (ROOT / script).stat().st_mode & 0o100, script


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.stem)
def test_a_job_that_may_change_the_repository_runs_nothing_of_it(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text())
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        if job.get("permissions", {}).get("contents") == "write":
            used = [step.get("uses", "").partition("@")[0] for step in job["steps"]]
            assert "actions/checkout" not in used, name
            assert job["permissions"] == {"contents": "write"}


def test_dependabot_watches_folders_that_have_such_files() -> None:
    files = {"pip": "pyproject.toml", "docker": "Dockerfile", "docker-compose": "docker-compose.yml", "gomod": "go.mod"}
    for update in yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]:
        for folder in update.get("directories", [update.get("directory")]):
            name = files.get(update["package-ecosystem"], ".github/workflows/ci.yml")
            assert (ROOT / folder.strip("/") / name).is_file(), folder


def test_the_sbom_is_of_what_is_installed_from_the_lock_and_of_nothing_else() -> None:
    """A list of requirements tells neither licenses nor which package needs which."""
    command = ["make", "--dry-run", "package", "SHIPPED=shipped"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "venv --clear --without-pip shipped\n" in printed
    assert re.search(r"--python shipped/bin/python install .*--require-hashes --requirement requirements\.txt\n", printed)
    assert re.search(r"cyclonedx-py environment --pyproject pyproject\.toml .*shipped/bin/python\n", printed)


@pytest.mark.parametrize(
    ("finds", "status"), [("true", 0), ('case "$*" in *--strict*build*) echo unknown >&2; false;; esac', 2)]
)
def test_an_audit_that_could_not_look_a_dependency_up_is_a_failure(tmp_path: Path, finds: str, status: int) -> None:
    """Without --strict pip-audit ends with 0 when the index knows none of them, as a mirror without advisories does."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".installed").touch()
    program = tmp_path / "bin" / "pip-audit"
    program.write_text(f"#!/bin/sh\n{finds}\n")
    program.chmod(0o755)
    command = ["make", "--silent", "audit", f"RELEASE={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert ("requirements-build.txt is not clean" in done.stderr) == bool(status)
    assert ("requirements-demo.txt" in done.stdout) == (not status)
