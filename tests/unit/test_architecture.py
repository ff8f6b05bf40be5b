"""Rules of the code itself: the catalog and the code agree, the docs are what the tables say."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from exporter.core.catalog import EXPORTER_METRICS, METRICS_BY_NAME, WORKER_METRICS
from exporter.metrics.telemetry import OptionalGauge, Telemetry
from exporter.storage.privileges import LEAST_PRIVILEGES, PURGE_PRIVILEGES
from tests.tools import generate_docs

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "exporter").rglob("*.py"))


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


def test_modules_classes_and_functions_stay_small_enough_to_read() -> None:
    """At most 400 lines a module, 250 a class, 60 a function; what protoc generates is not read."""
    limits = {ast.ClassDef: 250, ast.FunctionDef: 60, ast.AsyncFunctionDef: 60}
    too_long = []
    for file in MODULES:
        if file.stem.endswith("_pb2"):
            continue
        text = file.read_text()
        name = str(file.relative_to(ROOT))
        if (lines := len(text.splitlines())) > 400:
            too_long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > limits[type(node)]:
                    too_long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert too_long == []
