"""Writes what the Helm chart has from other files, and what Helm renders from it (`make chart`); tests compare both.

The chart cannot read files outside its folder, so the rules and dashboards are copied into it. The table of its README and the
schema of its values follow from `values.yaml` and from the table of settings. What Helm renders is compared without the
contents of rules and dashboards (`elided`): a change of those would otherwise change every golden file.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exporter.core.settings_loader import table
from exporter.core.shards import MAX_SHARDS

ROOT = Path(__file__).parents[2]
HELM_FOLDER = ROOT / "deploy" / "helm"
CHART = HELM_FOLDER / "cml-worker-exporter"
VALUE_SETS = HELM_FOLDER / "tests" / "values"
GOLDEN = HELM_FOLDER / "tests" / "golden"
MANIFEST = ROOT / "deploy" / "kubernetes" / "cml-worker-exporter.yaml"
TOOLS = HELM_FOLDER / "tools" / "bin"
COPIES = {ROOT / "prometheus" / "rules": "rules/*.yml", ROOT / "grafana" / "dashboards": "dashboards/*.json"}
"""Source folder → the copies, in the chart's folder `files`."""

KUBE_VERSION = "1.37.0"
"""The version to render for: a Helm that `go install` built assumes one that the chart does not support."""

_ROW = re.compile(r"^( *)([\w]+):(?: (.*))?$")
_NAME = {"pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$", "maxLength": 40}
_TEXTS = {"additionalProperties": {"type": "string"}}
_PERCENTAGE = {"type": ["string", "number"]}

REFINEMENTS: Mapping[str, Mapping[str, Any]] = {
    "shards": {"minimum": 1, "maximum": MAX_SHARDS},
    "replicas": {"minimum": 0},
    "image.repository": {"minLength": 1},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "nameOverride": _NAME,
    "fullnameOverride": _NAME,
    "commonLabels": _TEXTS,
    "serviceAccount.roleArn": {"pattern": "^(arn:aws[a-z-]*:iam::[0-9]{12}:role/.+)?$"},
    "serviceAccount.annotations": _TEXTS,
    "persistence.retentionPolicy": {
        "additionalProperties": False,
        "properties": {name: {"enum": ["Retain", "Delete"]} for name in ("whenDeleted", "whenScaled")},
    },
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"]},
    "podLabels": _TEXTS,
    "podAnnotations": _TEXTS,
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "service.port": {"minimum": 1, "maximum": 65535},
    "service.annotations": _TEXTS,
    "monitor.kind": {"enum": ["ServiceMonitor", "PodMonitor"]},
    "monitor.labels": _TEXTS,
    "prometheusRule.labels": _TEXTS,
    "prometheusRule.thresholds": {
        "additionalProperties": {"type": ["number", "object"], "additionalProperties": {"type": "number"}},
    },
    "dashboards.labels": _TEXTS,
    "dashboards.annotations": _TEXTS,
    "networkPolicy.mongodbPorts": {"items": {"type": "integer", "minimum": 1, "maximum": 65535}, "minItems": 1},
    "verify.sample": _PERCENTAGE,
    "verify.maxUsd": _PERCENTAGE,
    "export.format": {"enum": ["openmetrics", "csv"]},
}
"""What the schema says of a value beyond the type of its default."""

CLOSED = ("verify.persistence", "export.persistence")
"""Values whose default names all keys, unlike that of an object of Kubernetes's API."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the chart: dotted key, text of the default, the default, description."""

    key: str
    text: str
    default: Any
    description: str


def values() -> Iterator[Value]:
    """Yield the values of `values.yaml` in its order; a section, whose line ends with a colon, is none.

    Raises:
        ValueError: a value has no comment above it, from which its description follows.
    """
    file = (CHART / "values.yaml").read_text()
    tree = yaml.load(file, yaml.CSafeLoader)  # ten times faster than Python's own parser
    comment: list[str] = []
    path: list[str] = []
    inside: int | None = None  # indentation of a list in several lines
    for line in file.splitlines():
        if inside is not None and line.startswith(" " * (inside + 2)):
            continue
        inside = None
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip("# "))
            continue
        row = _ROW.match(line)
        if row:
            indentation, name, text = len(row[1]), row[2], row[3]
            path[indentation // 2 :] = [name]
            default = tree
            for part in path:
                default = default[part]
            if text is None and comment:
                inside = indentation
                text = json.dumps(default)
            if text is not None:
                if not comment:
                    raise ValueError(f"{'.'.join(path)} in {CHART / 'values.yaml'} needs a comment above it")
                yield Value(".".join(path), text, default, " ".join(comment))
        comment = []


def values_table() -> str:
    """Return the table of README.md: one row for each value."""
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for value in values():
        cells = (f"`{value.key}`", f"`{value.text}`", value.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON schema of the values: Helm refuses names that do not exist, and defaults of another type."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of cml-worker-exporter, written by `make chart`",
        **_closed({"global": {"description": "Helm's own, for charts that contain this one."}}),
    }
    for value in values():
        node = root
        *sections, name = value.key.split(".")
        for section in sections:
            node = node["properties"].setdefault(section, _closed({}))
        node["properties"][name] = {
            "description": value.description,
            **_type(value.default),
            **(_closed({key: _type(each) for key, each in value.default.items()}) if value.key in CLOSED else {}),
            **REFINEMENTS.get(value.key, {}),
        }
    root["properties"]["config"].update(settings_schema())
    return root


def settings_schema() -> dict[str, Any]:
    """Return the names of the exporter's settings as a schema; the exporter itself checks their values when it starts."""
    root = _closed({})
    for setting in table():
        node = root
        *sections, name = setting.key.split(".")
        for section in sections:
            node = node["properties"].setdefault(section, _closed({}))
        node["properties"][name] = {}
    return root


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _type(default: object) -> dict[str, Any]:
    types = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return {"type": types[type(default)]}


def files() -> dict[Path, str]:
    """Return the generated files of the chart: path → text."""
    readme = (CHART / "README.md").read_text()
    made = {
        CHART / "README.md": re.sub(
            r"(?s)(<!-- values -->\n).*(<!-- end of values -->)", lambda found: found[1] + values_table() + found[2], readme
        ),
        CHART / "values.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    }
    for source, pattern in COPIES.items():
        folder, name = pattern.split("/")
        made |= {CHART / "files" / folder / file.name: file.read_text() for file in sorted(source.glob(name))}
    return made


def stale_copies() -> set[Path]:
    """Return the copies whose source is gone."""
    return {file for pattern in COPIES.values() for file in (CHART / "files").glob(pattern)} - files().keys()


# -- what Helm renders -------------------------------------------------------------------------------------------------


def find(program: str) -> str | None:
    """Return the path of helm or kubeconform, of `make helm-tools` or of this machine."""
    return shutil.which(program, path=f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}")


def render(helm: str, *flags: str, chart: Path = CHART) -> str:
    """Return what `helm template` prints of the chart with the flags.

    Raises:
        subprocess.CalledProcessError: Helm refuses the chart or its values; `stderr` says why.
    """
    command = [
        helm,
        "template",
        "cml-worker-exporter",
        str(chart),
        "--namespace",
        "cml",
        "--kube-version",
        KUBE_VERSION,
        *flags,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rendered(helm: str) -> dict[Path, str]:
    """Return the golden files and the plain manifests as Helm renders them: path → text."""
    made = {
        GOLDEN / file.name: "".join(map(elided, documents(render(helm, "--values", str(file)))))
        for file in sorted(VALUE_SETS.glob("*.yaml"))
    }
    made[MANIFEST] = "".join(documents(render(helm, "--skip-tests")))
    return made


def documents(text: str) -> list[str]:
    """Return the YAML documents of a rendering, each with the line `---` that begins it; Helm 4 adds blank lines."""
    return [f"---\n{part.rstrip()}\n" for part in re.split(r"^---\n", text, flags=re.MULTILINE) if part.strip()]


def elided(document: str) -> str:
    """Return a rendered document without the contents of a rule file or a dashboard."""
    parsed = yaml.load(document, yaml.CSafeLoader)
    if parsed["kind"] == "PrometheusRule":
        return re.sub(r"(?s)^spec:\n.*", "spec: {groups: []} # tested by its own test\n", document, flags=re.MULTILINE)
    if parsed["kind"] == "ConfigMap" and any(name.endswith(".json") for name in parsed["data"]):
        (name,) = parsed["data"]
        return re.sub(r"(?s)^data:\n.*", f"data: {{{name}: ''}} # tested by its own test\n", document, flags=re.MULTILINE)
    return document


def main() -> None:
    """Write the generated files, and with Helm the manifests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--without-helm", action="store_true", help="leave the rendered manifests as they are")
    arguments = parser.parse_args()
    helm = None if arguments.without_helm else find("helm")
    if helm is None and not arguments.without_helm:
        parser.error("helm is missing: run `make helm-tools`, or leave the manifests as they are by --without-helm")
    made = files()
    for file in stale_copies():
        file.unlink()
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if helm:
        for path, text in rendered(helm).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
