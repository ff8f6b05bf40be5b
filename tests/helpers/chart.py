"""The Helm chart in tests: what was rendered, and the schemas that it must satisfy."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.conftest import missing
from tests.tools.generate_chart import TOOLS, find

KUBERNETES = ("1.27", "1.37")
"""The oldest version that the chart supports, and the newest whose schema the tests have."""

OPERATOR_GROUP = "monitoring.coreos.com"


def tool(name: str) -> str:
    """Return the path of helm or kubeconform; skip the test without Go, which builds them."""
    path = find(name)
    if path is None and shutil.which("go") is None:
        pytest.skip(f"{name} is not on this machine, nor Go, by which `make helm-tools` builds it")
    return path or missing(name, "make helm-tools")


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of a rendering."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def of_kind(rendered: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    """Return the objects of the kinds."""
    return [each for each in rendered if each["kind"] in kinds]


def pods(rendered: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the metadata and the spec of each pod that the objects create."""
    for each in rendered:
        template = {
            "Pod": lambda one: one,
            "StatefulSet": lambda one: one["spec"]["template"],
            "CronJob": lambda one: one["spec"]["jobTemplate"]["spec"]["template"],
        }.get(each["kind"])
        if template:
            yield template(each)["metadata"], template(each)["spec"]


def kubernetes_schemas(folder: Path, version: str, kinds: set[str]) -> None:
    """Write the strict schemas of some kinds of a Kubernetes version as kubeconform reads them: without addresses.

    They are those of the package kubernetes-validate.
    """
    (package,) = kubernetes_validate.__path__
    source = Path(package) / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    for pattern in ("_definitions.json", *(f"{kind.lower()}-*.json" for kind in kinds)):
        for file in source.glob(pattern):
            schema = json.loads(file.read_text().replace('"$ref": "/api/', '"$ref": "'))
            del schema["$id"]
            (folder / file.name).write_text(json.dumps(schema))


def operator_schemas(folder: Path, *resources: str) -> None:
    """Write the schemas of some of Prometheus operator's resources as kubeconform reads them.

    They are those of its CustomResourceDefinitions. A key that such a schema does not have is dropped by Kubernetes in silence,
    so here it is refused.
    """
    for resource in resources:
        file = TOOLS / "crds" / f"{OPERATOR_GROUP}_{resource}.yaml"
        assert file.exists(), f"{file} is missing; run make helm-tools"
        definition = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            (folder / f"{definition['names']['kind'].lower()}-{version['name']}.json").write_text(json.dumps(schema))


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: _strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            strict[name] = _strict(schema[name])
    return strict
