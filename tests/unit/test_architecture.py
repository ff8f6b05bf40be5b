"""Rules of the code itself: catalog and code agree, the docs are generated, sizes are limited, citations exist."""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from exporter.core.catalog import EXPORTER_METRICS, METRICS_BY_NAME, WORKER_METRICS
from exporter.metrics.telemetry import OptionalGauge, Telemetry
from exporter.storage.privileges import IMPORT_PRIVILEGES, LEAST_PRIVILEGES, PURGE_PRIVILEGES, REPAIR_PRIVILEGES
from tests.tools import generate_docs

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "exporter").rglob("*.py"))


def test_every_exporter_metric_of_the_catalog_is_a_family_of_the_telemetry_and_the_other_way_round() -> None:
    telemetry = Telemetry(CollectorRegistry())
    kinds: dict[object, str] = {Gauge: "gauge", OptionalGauge: "gauge", Counter: "counter"}
    attributes = [*vars(telemetry).values(), *vars(telemetry.forward).values()]
    held = [attribute for attribute in attributes if type(attribute) in kinds]
    families = {}
    for attribute in held:
        (family,) = attribute.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        families[name] = (kinds[type(attribute)], family.documentation, tuple(getattr(attribute, "_labelnames", ())))
    assert families == {metric.name: (metric.kind, metric.help, metric.labels) for metric in EXPORTER_METRICS}
    assert len(held) == len(EXPORTER_METRICS)


def test_the_catalog_keeps_to_the_conventions_of_prometheus() -> None:
    assert len(METRICS_BY_NAME) == len(WORKER_METRICS) + len(EXPORTER_METRICS)
    for metric in METRICS_BY_NAME.values():
        assert re.fullmatch(r"cml_(worker|exporter)_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.removesuffix("_total").endswith(metric.unit)
        assert metric.help.endswith(".")
        assert metric.source
    assert all(metric.labels[:2] == ("worker_id", "region") for metric in WORKER_METRICS)


def test_metrics_are_named_in_the_catalog_and_nowhere_else_in_the_package() -> None:
    names = re.compile("|".join(METRICS_BY_NAME))
    offenders = []
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and names.fullmatch(node.value):
                offenders.append(f"{file.name}:{node.lineno} {node.value}")
    assert [offender for offender in offenders if not offender.startswith(("catalog.py", "telemetry.py"))] == []


@pytest.mark.parametrize("name", generate_docs.PAGES)
def test_the_docs_are_what_the_tables_in_code_say(name: str) -> None:
    assert (ROOT / name).read_text() == generate_docs.PAGES[name](), "run: make docs"


def _nightly(node: ast.AST) -> Iterator[str]:
    """Yield the sibling that each mark `nightly` below a node names."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.nightly":
            yield ast.literal_eval(call.args[0])


def test_every_nightly_test_names_a_shorter_one_that_is_not_nightly() -> None:
    """What `make test` leaves out is tested by something that it runs."""
    siblings: set[str] = set()
    kept: set[str] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        module = ast.parse(file.read_text())
        siblings.update(_nightly(module))
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                whole = any(ast.unparse(mark).startswith("pytest.mark.nightly(") for mark in node.decorator_list)
                kept |= set() if whole else {node.name}
    assert siblings
    assert siblings <= kept


def _locked(name: str) -> set[str]:
    """Return package==version of every line of a lock file."""
    return set(re.findall(r"^[a-z0-9-]+==[^ ]+", (ROOT / name).read_text(), re.MULTILINE))


def test_what_make_demo_installs_is_part_of_what_make_test_installs() -> None:
    """So that `make test` after `make demo` adds packages and replaces none."""
    demo = _locked("requirements-local-demo.txt")
    assert len(demo) > 50
    assert demo < _locked("requirements-dev.txt")


def test_every_direct_dependency_has_its_line() -> None:
    file = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, groups = file["project"], [*file["project"]["optional-dependencies"].values(), *file["dependency-groups"].values()]
    wanted = [*project["dependencies"], *(each for group in groups for each in group)]
    names = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower() for each in wanted} - {project["name"]}
    listed = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    assert sorted(name.lower() for name in listed) == sorted(names)


def test_the_page_of_the_manager_shows_the_least_role_that_the_code_needs() -> None:
    page = re.sub(r"\s+", " ", (ROOT / "docs/manager.md").read_text())
    for collection, actions in LEAST_PRIVILEGES.items():
        listed = ", ".join(f'"{action}"' for action in actions)
        assert f'collection: "{collection}"}}, actions: [{listed}]' in page


@pytest.mark.parametrize(
    "privileges", [PURGE_PRIVILEGES, REPAIR_PRIVILEGES, IMPORT_PRIVILEGES], ids=["purge", "repair", "import-events"]
)
def test_the_page_of_the_manager_shows_what_only_one_command_needs(privileges: Mapping[str, Sequence[str]]) -> None:
    page = re.sub(r"\s+", " ", (ROOT / "docs/manager.md").read_text())
    for collection, actions in privileges.items():
        listed = ", ".join(f'"{action}"' for action in actions)
        assert f'collection: "{collection}"}}, actions: [{listed}]' in page


MODULE_LINES, CLASS_LINES, FUNCTION_LINES = 400, 250, 60
"""Limits in exporter/, docstrings included; files that protoc writes are exempt."""
WRITTEN = [file for file in MODULES if not file.name.endswith("_pb2.py")]


def _length(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_no_module_is_longer_than_its_limit() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in WRITTEN}
    assert {name: length for name, length in lengths.items() if length > MODULE_LINES} == {}


@pytest.mark.parametrize(
    ("kinds", "limit"),
    [((ast.ClassDef,), CLASS_LINES), ((ast.FunctionDef, ast.AsyncFunctionDef), FUNCTION_LINES)],
    ids=["class", "function"],
)
def test_no_class_and_no_function_is_longer_than_its_limit(kinds: tuple[type[ast.stmt], ...], limit: int) -> None:
    offenders = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": _length(node)
        for file in WRITTEN
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and isinstance(node, kinds)
        and _length(node) > limit
    }
    assert offenders == {}


PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(path for name in ("README.md", "CONTRIBUTING.md", "prometheus/runbook.md") if (path := ROOT / name).exists()),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_says_first_whom_it_is_for(page: Path) -> None:
    if page.parts[-2:] in (("docs", "index.md"), (ROOT.name, "README.md")):
        return  # both say what the exporter is
    paragraphs = re.sub(r"<!--.*?-->\n*", "", page.read_text(), flags=re.DOTALL).split("\n\n")
    assert re.match(r"For [a-z]", paragraphs[1]), paragraphs[1]


FOLDERS = ("exporter", "tests", "docs", "prometheus", "grafana", "bench", "deploy", "tools", ".github")
CITED = re.compile(rf"(?<![\w/.\-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./\-]*\w)(?![\w/*{{<]|\.\w)")
LINKED = re.compile(r"\]\((?!\w+:)([^)#\s]+)(?:#[^)]*)?\)")
FOREIGN = (
    "prometheus/local/",
    "prometheus/common",
    "grafana/grafana",
)
"""Files of the user, and names of other projects that look like paths of this repository."""
SOURCES = sorted(
    file for folder in ("exporter", "grafana", "bench", "tests", "deploy") for file in (ROOT / folder).rglob("*.py")
)


def _citations() -> Iterator[tuple[str, str, list[Path]]]:
    """Yield (file and line, path as written, files it may mean) of every page and every docstring or comment."""
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            where = f"{page.relative_to(ROOT)}:{number}"
            yield from ((where, cited, [ROOT / cited]) for cited in CITED.findall(line))
            yield from ((where, linked, [page.parent / linked]) for linked in LINKED.findall(line))
    for file in SOURCES:
        source = file.read_text()
        if not CITED.search(source):
            continue
        for number, text in _prose(source):
            yield from ((f"{file.relative_to(ROOT)}:{number}", cited, [ROOT / cited]) for cited in CITED.findall(text))


def _prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring and comment of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_every_cited_file_exists() -> None:
    citations = list(_citations())
    assert len(citations) > 20, "the pages cite files"
    missing = {
        f"{where} {cited}"
        for where, cited, meant in citations
        if not cited.startswith(FOREIGN) and not any(path.exists() for path in meant)
    }
    assert sorted(missing) == []
