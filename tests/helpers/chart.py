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
    return [document for document in yaml.safe_load_all(text) if document]


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


def kubernetes_schemas(version: str) -> Path:
    """Return the folder with the strict JSON schemas of a Kubernetes version, of the package kubernetes-validate."""
    (package,) = kubernetes_validate.__path__
    return Path(package) / "kubernetes-json-schema" / f"v{version}.0-local-strict"


def operator_schemas(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the schemas of Prometheus operator's kinds, as kubeconform reads them; return them by kind.

    They are those of its CustomResourceDefinitions. A key that such a schema does not have is dropped by Kubernetes in silence,
    so here it is refused.
    """
    made = {}
    for file in sorted((TOOLS / "crds").glob(f"{OPERATOR_GROUP}_*.yaml")):
        definition = yaml.safe_load(file.read_text())["spec"]
        for version in definition["versions"]:
            kind = definition["names"]["kind"]
            made[kind] = _strict(version["schema"]["openAPIV3Schema"])
            made[kind]["properties"]["metadata"] = {"type": "object"}
            (folder / f"{kind.lower()}-{version['name']}.json").write_text(json.dumps(made[kind]))
    assert made, f"{TOOLS / 'crds'} is empty; run make helm-tools"
    return made


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
