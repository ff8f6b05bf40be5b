"""The house's own rules: imports go one way, the catalog and the code agree, the docs are what the tables say."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from exporter.catalog import EXPORTER_METRICS, METRICS_BY_NAME, WORKER_METRICS
from exporter.history import LEAST_PRIVILEGES, PURGE_PRIVILEGES
from exporter.telemetry import OptionalGauge, Telemetry
from tests import generate_docs

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "exporter").glob("*.py"))

ORDER = (
    "model",
    "errors",
    "periods",
    "cost",
    "catalog",  # before config, which checks the names of workers.extra against it
    "config",
    "lifecycle",
    "logs",
    "exposition",
    "telemetry",
    "workers",
    "cloudwatch",
    "outbox",
    "mongo",
    "inventory",
    "ranges",
    "rows",
    "rollup",
    "history",
    "hourly",
    "lease",
    "rounds",
    "collector",
    "mirror",
    "backfill",
    "backfill_journal",
    "backfill_job",
    "remote_read",
    "series",
    "discovery",
    "auth",
    "webconfig",
    "archive",
    "reader",
    "openapi",
    "parameters",
    "answers",
    "accept",
    "landing",
    "api",
    "app",
    "check",
    "retention",
    "columns",
    "openmetrics",
    "export",
    "purge",
    "backfill_run",
    "estimate",
    "embedded",
    "demo_fleet",
    "demo_past",
    "demo_aws",
    "demo_services",
    "demo_prometheus",
    "demo",
    "cli",
)
"""A module imports only from those above it; one that does not exist yet is simply not there."""


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """The modules of this package that a file imports anywhere in it, with the line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [f"exporter.{node.module or ''}"]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"exporter.{alias.name}" for alias in node.names if (ROOT / "exporter" / f"{alias.name}.py").exists()]
            names = inside if node.module == "exporter" else [node.module or ""]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("exporter."))


def test_every_module_has_its_place_in_the_order() -> None:
    assert {file.stem for file in MODULES} - {"__init__"} <= set(ORDER)
    assert not [path for path in (ROOT / "exporter").iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_a_module_imports_only_from_those_above_it(file: Path) -> None:
    above = set(ORDER[: ORDER.index(file.stem)]) if file.stem in ORDER else set()
    assert [f"{file.name}:{line} imports {name}" for line, name in imported(file) if name not in above] == []


def test_every_exporter_metric_of_the_catalog_is_a_family_of_the_telemetry_and_the_other_way_round() -> None:
    telemetry = Telemetry(CollectorRegistry())
    kinds: dict[object, str] = {Gauge: "gauge", OptionalGauge: "gauge", Counter: "counter"}
    held = [attribute for attribute in vars(telemetry).values() if type(attribute) in kinds]
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
        assert re.fullmatch(r"cml_(worker|exporter)_[a-z_]+", metric.name)
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
    assert (ROOT / "docs" / name).read_text() == generate_docs.PAGES[name](), "run: make docs"


def test_every_direct_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    names = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower() for each in wanted} - {project["name"]}
    listed = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    assert sorted(name.lower() for name in listed) == sorted(names)


def test_the_readme_shows_the_least_role_that_the_code_needs() -> None:
    readme = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    for collection, actions in LEAST_PRIVILEGES.items():
        listed = ", ".join(f'"{action}"' for action in actions)
        assert f'collection: "{collection}"}}, actions: [{listed}]' in readme


def test_the_readme_shows_what_only_purge_needs() -> None:
    readme = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    for collection, actions in PURGE_PRIVILEGES.items():
        listed = ", ".join(f'"{action}"' for action in actions)
        assert f'collection: "{collection}"}}, actions: [{listed}]' in readme
