"""The Helm chart: its generated files are current, and the manifests that Helm rendered fit Kubernetes and the exporter."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import exporter
from exporter.core.settings import Settings
from exporter.core.settings_loader import load
from exporter.web.routes import ROUTES
from tests.helpers.chart import KUBERNETES, OPERATOR_GROUP, objects, of_kind, pods
from tests.tools.generate_chart import (
    CHART,
    GOLDEN,
    MANIFEST,
    ROOT,
    VALUE_SETS,
    documents,
    files,
    schema,
    stale_copies,
    values,
)

NAMES = sorted(file.stem for file in VALUE_SETS.glob("*.yaml"))
RENDERED = {name: objects((GOLDEN / f"{name}.yaml").read_text()) for name in NAMES}
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
JOB = "cml-worker-exporter"

each_set = pytest.mark.parametrize("name", NAMES)


def exporter_settings(rendered: list[dict[str, Any]], folder: Path) -> tuple[Settings, dict[str, Any]]:
    """Load the rendered settings as the pod does, with a connection string in place of the Secret."""
    (text,) = [each["data"]["exporter.yml"] for each in of_kind(rendered, "ConfigMap") if "exporter.yml" in each["data"]]
    tree = yaml.safe_load(text)
    given = yaml.safe_load(text)
    (folder / "uri").write_text("mongodb://db.example.org/cml_cloud_manager\n")
    tree["mongodb"]["uri_file"] = str(folder / "uri")
    (folder / "exporter.yml").write_text(yaml.safe_dump(tree))
    return load(folder / "exporter.yml", environment={}), given


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


# -- generated files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_the_generated_files_of_the_chart_are_current(path: Path) -> None:
    assert path.read_text() == files()[path], f"{path.name}: run `make chart`"


def test_the_chart_has_no_copy_of_a_file_that_is_gone() -> None:
    assert stale_copies() == set(), "run `make chart`"


def test_the_chart_has_every_rule_and_dashboard() -> None:
    made = {path.name for path in files()}
    assert {file.name for folder in ("prometheus/rules", "grafana/dashboards") for file in (ROOT / folder).iterdir()} <= made


def test_the_table_has_every_value_and_each_of_its_descriptions_is_a_sentence() -> None:
    tree = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = {value.key: value for value in values()}
    for value in rows.values():
        assert value.description.endswith("."), value.key
    for key, default in tree.items():
        assert key in rows or {f"{key}.{name}" for name in default} <= rows.keys(), key


def test_the_schema_refuses_what_the_table_of_settings_does_not_have() -> None:
    config = schema()["properties"]["config"]
    assert config["additionalProperties"] is False
    assert "max_usd_per_day" in config["properties"]["cloudwatch"]["properties"]
    assert config["properties"]["cloudwatch"]["properties"]["memory"]["additionalProperties"] is False


def test_the_plain_manifests_are_those_of_the_defaults_without_the_test() -> None:
    whole = documents((GOLDEN / "defaults.yaml").read_text())
    plain = documents(MANIFEST.read_text())
    assert [each for each in whole if "helm.sh/hook: test" not in each] == plain
    assert len(plain) == len(whole) - 1


def test_the_version_is_that_of_the_exporter() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == exporter.__version__
    assert chart["kubeVersion"] == f">={KUBERNETES[0]}.0-0"


def test_there_are_six_sets_of_values_and_a_rendering_of_each() -> None:
    assert len(NAMES) >= 6
    assert [file.stem for file in sorted(GOLDEN.glob("*.yaml"))] == NAMES
    kinds = Counter(each["kind"] for rendered in RENDERED.values() for each in rendered)
    assert kinds.keys() >= {
        *("ConfigMap", "CronJob", "NetworkPolicy", "PersistentVolumeClaim", "Pod", "PodDisruptionBudget", "PodMonitor"),
        *("PrometheusRule", "Secret", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet"),
    }


# -- Kubernetes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES)
@each_set
def test_the_rendered_objects_fit_kubernetes(name: str, version: str) -> None:
    for each in RENDERED[name]:
        if not each["apiVersion"].startswith(OPERATOR_GROUP):
            kubernetes_validate.validate(each, version, strict=True)


def test_a_misspelled_field_does_not_fit_kubernetes() -> None:
    (wrong,) = of_kind(RENDERED["defaults"], "StatefulSet")
    wrong = {**wrong, "spec": {**wrong["spec"], "replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, KUBERNETES[1], strict=True)


@each_set
def test_no_name_occurs_twice_and_none_is_too_long(name: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in RENDERED[name]]
    assert len(set(names)) == len(names)
    for kind, own in names:
        assert len(own) <= (52 if kind in ("CronJob", "StatefulSet") else 63), own


@each_set
def test_every_pod_has_no_privilege_and_a_read_only_file_system(name: str) -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    for _, spec in pods(RENDERED[name]):
        pod = spec["securityContext"]
        assert (pod["runAsNonRoot"], pod["runAsUser"], pod["fsGroup"]) == (True, int(user), int(user))
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@each_set
def test_every_mount_has_a_volume_and_every_volume_an_object(name: str) -> None:
    rendered = RENDERED[name]
    made = {(each["kind"], each["metadata"]["name"]) for each in rendered}
    for _, spec in pods(rendered):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounted = [mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]]
        claims = {"data"} - volumes.keys()  # of the StatefulSet's volumeClaimTemplates
        assert set(mounted) == volumes.keys() | claims
        assert len(set(mounted)) == len(mounted)
        config = volumes["config"]["configMap"]["name"]
        assert ("ConfigMap", config) in made
        claim = volumes.get("data", {}).get("persistentVolumeClaim", {}).get("claimName")
        assert claim in (None, "archive") or ("PersistentVolumeClaim", claim) in made
    for stateful in of_kind(rendered, "StatefulSet"):
        assert ("Service", stateful["spec"]["serviceName"]) in made
        for claim in stateful["spec"].get("volumeClaimTemplates", ()):
            assert claim["metadata"]["name"] == "data"


@each_set
def test_selectors_find_the_exporters_and_nothing_else(name: str) -> None:
    """A Service that also selected a CronJob's pod would send scrapes to it."""
    rendered = RENDERED[name]
    labels = [metadata["labels"] for metadata, _ in pods(rendered)]
    shards = of_kind(rendered, "StatefulSet")
    exporters = [shard["spec"]["template"]["metadata"]["labels"] for shard in shards]
    for shard, own in zip(shards, exporters, strict=True):
        spread = shard["spec"]["template"]["spec"]["topologySpreadConstraints"]
        of_shard = [shard["spec"]["selector"], *(each["labelSelector"] for each in spread)]
        for selector in of_shard:
            assert [each for each in labels if matches(selector["matchLabels"], each)] == [own], selector
    selectors = [each["spec"]["selector"] for each in of_kind(rendered, "Service")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind(rendered, "PodMonitor")]
    for selector in selectors:
        assert [each for each in labels if matches(selector, each)] == exporters, selector
    budgets = [each["spec"]["selector"]["matchLabels"] for each in of_kind(rendered, "PodDisruptionBudget")]
    for selector, own in zip(budgets, exporters, strict=bool(budgets)):
        assert [each for each in labels if matches(selector, each)] == [own], selector
    services = of_kind(rendered, "Service")
    for monitor in of_kind(rendered, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        assert len([each for each in services if matches(selector, each["metadata"]["labels"])]) == 1
    for policy in of_kind(rendered, "NetworkPolicy"):
        assert all(matches(policy["spec"]["podSelector"]["matchLabels"], each) for each in labels)


# -- the exporter ------------------------------------------------------------------------------------------------------


@each_set
def test_the_settings_are_accepted_and_name_what_is_mounted(name: str, tmp_path: Path) -> None:
    settings, given = exporter_settings(RENDERED[name], tmp_path)
    stateful, *_ = of_kind(RENDERED[name], "StatefulSet")
    spec = stateful["spec"]["template"]["spec"]
    mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    files_read = {given["mongodb"]["uri_file"], given.get("web", {}).get("config_file"), f"{settings.data_dir}/x"} - {None}
    assert {str(Path(file).parent) for file in files_read} <= mounts
    (declared,) = re.findall(r"CML_EXPORTER_DATA_DIR=(\S+)", DOCKERFILE)
    assert str(settings.data_dir) == declared
    assert spec["containers"][0]["args"][:2] == ["serve", "--config.file=/etc/cml-worker-exporter/config/exporter.yml"]
    assert "/etc/cml-worker-exporter/config" in mounts


def test_the_settings_of_the_values_reach_the_exporter(tmp_path: Path) -> None:
    settings, _ = exporter_settings(RENDERED["eks-irsa"], tmp_path)
    assert (settings.mongodb.history, settings.cloudwatch.max_usd_per_day) == ("fleet_history", 5)
    assert settings.workers.hourly_price == {"m5zn.metal": 3.96}


@each_set
def test_probes_and_scrapes_go_to_routes_that_the_exporter_has(name: str, tmp_path: Path) -> None:
    settings, _ = exporter_settings(RENDERED[name], tmp_path)
    prefix = settings.web.prefix
    paths = {route.path for route in ROUTES}
    stateful, *_ = of_kind(RENDERED[name], "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    probes = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert [probe["path"].removeprefix(prefix) for probe in probes.values()] == ["/-/healthy", "/-/healthy", "/-/ready"]
    monitors = of_kind(RENDERED[name], "ServiceMonitor", "PodMonitor")
    endpoints = [
        each for monitor in monitors for key in ("endpoints", "podMetricsEndpoints") for each in monitor["spec"].get(key, ())
    ]
    tls = name == "tls-and-passwords"
    for target in (*probes.values(), *endpoints):
        assert target["path"].startswith(prefix)
        assert target["path"].removeprefix(prefix) in paths
        assert target["port"] == port["name"]
        assert target.get("scheme", "HTTP").lower() == ("https" if tls else "http")
    assert all(
        target["port"] == 9877 or target["targetPort"] == "metrics"
        for service in of_kind(RENDERED[name], "Service")
        for target in service["spec"]["ports"]
    )


def test_some_set_has_a_path_before_all_routes(tmp_path: Path) -> None:
    settings, _ = exporter_settings(RENDERED["behind-a-proxy"], tmp_path)
    assert settings.web.prefix == "/worker-metrics"


@each_set
def test_monitors_keep_the_exporters_labels_and_set_the_job_that_the_rules_use(name: str) -> None:
    rules = "".join(file.read_text() for file in (ROOT / "prometheus" / "rules").glob("*.yml"))
    assert set(re.findall(r'"job", "([^"]+)"', rules)) == {JOB}
    for monitor in of_kind(RENDERED[name], "ServiceMonitor", "PodMonitor"):
        (endpoint,) = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["honorLabels"] is True
        assert {"action": "replace", "targetLabel": "job", "replacement": JOB} in endpoint["relabelings"]
