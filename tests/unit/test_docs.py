"""The pages for people cite only files that the repository has."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("prometheus/*.md"), *ROOT.glob(".github/**/*.md"))
    if page.is_file()
)
FILES = {
    str(path.relative_to(ROOT))
    for folder in ("exporter", "grafana", "prometheus", "deploy", "tests", "bench", "docs", ".github")
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
} | {path.name for path in ROOT.iterdir() if path.is_file()}


def anchor(heading: str) -> str:
    """The fragment by which a heading of a Markdown page is linked."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]+`", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL), re.MULTILINE)
            assert fragment in set(map(anchor, headings)), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_module_or_page_that_is_named_is_in_the_repository(page: Path) -> None:
    """`file.py` may be short for any file of that name; generated and user-made files end otherwise."""
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        for word in re.findall(r"[\w./-]+\.(?:py|md|toml|js)\b", code):
            assert any(f"/{file}".endswith(f"/{word.removeprefix('./')}") for file in FILES), word


def test_every_module_run_by_a_command_of_the_docs_is_in_the_repository() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for module in sorted(set(re.findall(r"python -m ((?:tests|bench|grafana)[\w.]*)", text))):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_the_hooks_before_a_commit_are_the_tools_of_make_lint() -> None:
    recipe = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
    hooks = re.findall(r"entry: \.venv/bin/([\w-]+(?: (?:check|format))?)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == re.findall(r"\$\(BIN\)/([\w-]+(?: (?:check|format))?)", recipe)


def test_ci_runs_the_script_that_runs_anywhere() -> None:
    assert "run: .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for script in (each for each in (ROOT / ".ci").iterdir() if "bash" in each.read_text().partition("\n")[0]):
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0, script


def test_ci_runs_with_every_python_that_the_package_names() -> None:
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    matrix = json.loads(re.findall(r"python: (\[.*\])", ci)[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [each.rpartition(" ")[2] for each in project["classifiers"] if re.search(r"Python :: 3\.\d+$", each)]
    assert [re.findall(r'python-version: "(.*)"', ci)[0], *matrix] == named
    assert project["requires-python"] == f">={named[0]}"


def test_ci_runs_at_length_each_night_what_make_test_shortens() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test-all\n" in (ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    recipe = re.findall(r"^test-all:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
    lengths = {}
    for file in (ROOT / "tests" / "integration").rglob("test_*.py"):
        for name, default in re.findall(r'int\(os\.environ\.get\("([A-Z_]+)", "(\d+)"\)\)', file.read_text()):
            lengths[name] = int(default)
    assert len(lengths) >= 3
    for name, default in lengths.items():
        if name != "KILL_SEED":
            longer = re.search(rf"\b{name}=(\d+)", recipe)
            assert longer, f"make test-all sets {name}"
            assert int(longer[1]) != default
    assert " --nightly" in recipe
    assert "tests/" not in recipe, "everything is run"


def test_the_names_that_architecture_md_gives_for_a_file_stand_in_it() -> None:
    """A cell such as `storage/lease.py` (`LEASE_SECONDS`) must not survive a rename."""
    page = (ROOT / "docs/architecture.md").read_text()
    missing = []
    for path, names in re.findall(r"`([a-z_./]+\.py)` \(((?:[^()`]|`[^`]*`)*)\)", page):
        (file,) = [f for f in (ROOT / path, ROOT / "exporter" / path) if f.exists()] or [None]
        if file is None:  # a file named after its folder, which another test looks up
            continue
        text = file.read_text()
        for name in re.findall(r"`([A-Za-z_.]+)`", names):
            last = name.rpartition(".")[2]
            if not re.search(rf"\b{last}\b", text) and not (ROOT / "exporter" / name).exists():
                missing.append(f"{path}: {name}")
    assert missing == []
