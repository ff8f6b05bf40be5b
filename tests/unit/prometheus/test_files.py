"""What ships in prometheus/ names only what exists, and says of every alert what to do."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from exporter.core.catalog import INFO, METRICS_BY_NAME, WORKER_METRICS
from exporter.core.history_metrics import HOURLY_METRICS, INFO_1H
from exporter.core.model import STATUSES
from exporter.sources.cloudwatch.errors import SENTENCE_BY_CODE, THROTTLED
from exporter.storage.mongo import STATE
from tests.tools.mutate_rules import PROMETHEUS, mutants, rules, text, variants

FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULES = [rule for file in FILES for rule in rules(file)]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
HOURLY = {rollup.name for rollup in HOURLY_METRICS}
"""Hourly aggregates of the exporter, with a label `store`; Prometheus records some of the same names."""
RECORDED = {rule["record"]: rule for rule in RULES if "record" in rule}
THRESHOLDS = {name for name in RECORDED if name.startswith("cml:threshold:")}
# By libyaml, because each process of a run reads them: ten times faster than Python's own parser.
TESTS = [
    test
    for file in (PROMETHEUS / "tests").glob("*_alerts.yml")
    for test in yaml.load(file.read_text(), yaml.CSafeLoader)["tests"]
]
RUNBOOK = (PROMETHEUS / "runbook.md").read_text()
TARGET = {"instance", "job"}
OF_JOBS = {
    "CMLExporterDown",
    "cml:job:info",
    "cml_exporter:job:known",
    "cml:alert_severity:firing",
    "cml:alert_active_timestamp_seconds:firing",
}
"""The only rules whose result has the label job."""
OF_EACH_EXPORTER = {"cml_exporter:counters:increase1m", "cml_exporter:counters:last"}
"""The only rules of single exporters: a counter counts since the start of one."""
FOREIGN = re.compile(r"up|ALERTS|node_\w+|process_\w+|prometheus_\w+|cml:own:\w+")
"""Series that are neither in the catalog nor recorded here: Prometheus' own, node_exporter's, the process', the user's."""

CONFIG = yaml.load((PROMETHEUS / "prometheus.yml").read_text(), yaml.CSafeLoader)
ALERTMANAGER = yaml.load((PROMETHEUS / "alertmanager.yml").read_text(), yaml.CSafeLoader)


def nodes(expression: str) -> list[Any]:
    """Every node of an expression."""
    found: list[Any] = []
    promql.walk(promql.parse(expression), found.append)
    return found


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The name and the matchers of every selector; those of ranges are selectors within."""
    for node in nodes(expression):
        vector = node.vector_selector if isinstance(node, promql.MatrixSelector) else node
        if isinstance(vector, promql.VectorSelector):
            yield name_of(vector), [(each.name, each.value) for each in vector.matchers.matchers if each.name != "__name__"]


def name_of(selector: Any) -> str:  # noqa: ANN401
    """The name of a selector, or the pattern of names that it selects."""
    return str(selector.name or next(each.value for each in selector.matchers.matchers if each.name == "__name__"))


def labels_of(name: str) -> set[str] | None:
    """The labels a series may have; None for an unknown series."""
    if name in METRICS_BY_NAME or "+" in name:
        return TARGET.union(*(metric.labels for each, metric in METRICS_BY_NAME.items() if re.fullmatch(name, each)))
    if name in HOURLY:
        own = {each.label[0] for each in HOURLY_METRICS if each.name == name and each.label}
        return {"worker_id", "region"} | own | (set(INFO.labels) if name == INFO_1H.name else set())
    if name in RECORDED:
        return result_labels(promql.parse(RECORDED[name]["expr"])) | set(RECORDED[name].get("labels", ()))
    if name in ("ALERTS", "ALERTS_FOR_STATE"):
        own = set().union(*(result_labels(promql.parse(each["expr"])) for each in ALERTS.values()))
        return own | {"alertname", "severity"} | ({"alertstate"} if name == "ALERTS" else set())
    if name == "up":
        return TARGET | {"worker_id", "region"}
    if name == "process_start_time_seconds":
        return TARGET
    if name.startswith("cml:own:"):  # recorded by the user, as prometheus/local/README.md says
        return {"runbook": {"url"}, "grafana": {"url"}, "job": {"job"}, "source_duration_seconds": {"source"}}.get(
            name[8:], set()
        )
    return None


def result_labels(node: Any) -> set[str]:  # noqa: ANN401
    """Return the labels of an expression's result; fail if it aggregates by a label that does not exist."""
    match node:
        case promql.VectorSelector():
            return labels_of(name_of(node)) or set()
        case promql.MatrixSelector():
            return result_labels(node.vector_selector)
        case promql.ParenExpr() | promql.SubqueryExpr():
            return result_labels(node.expr)
        case promql.AggregateExpr():
            kept = set(node.modifier.labels) if node.modifier else set()
            assert kept <= result_labels(node.expr), f"{text(node)} keeps a label that is not there"
            if str(node.op) == "topk":
                return result_labels(node.expr)
            return kept | ({node.param.val} if isinstance(node.param, promql.StringLiteral) else set())  # of count_values
        case promql.Call():
            if node.func.name.startswith("absent"):
                return {each.name for each in node.args[0].vector_selector.matchers.matchers}
            if node.func.name in ("label_replace", "label_join"):
                return result_labels(node.args[0]) | {node.args[1].val}
            return set().union(*map(result_labels, node.args)) if node.func.name not in ("scalar", "time") else set()
        case promql.BinaryExpr():
            left, right = result_labels(node.lhs), result_labels(node.rhs)
            if node.modifier and node.modifier.matching:
                assert set(node.modifier.matching.labels) <= left & right or not right, (
                    f"{text(node)} matches on labels it lacks"
                )
            taken = set(node.modifier.group_labels or ()) if node.modifier else set()
            assert taken <= right, f"{text(node)} takes a label that is not there"
            return left | right if str(node.op) == "or" or is_number(node.lhs) else left | taken
    return set()


def is_number(node: Any) -> bool:  # noqa: ANN401
    """Whether an operand is the same for all series."""
    return isinstance(node, promql.NumberLiteral) or (isinstance(node, promql.Call) and node.func.name in ("scalar", "time"))


def expressions_of_the_runbook() -> list[str]:
    blocks = re.findall(r"```promql\n(.*?)```", RUNBOOK, re.DOTALL)
    inline = [
        code for code in re.findall(r"`([^`\n]+)`", RUNBOOK) if re.match(r"(cml_\w+(:\w+)*|up)(\{|$)", code) and code != STATE
    ]
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()] + inline


# -- the rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_uses_only_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    for name, matchers in selectors(rule["expr"]):
        known = labels_of(name)
        assert known is not None, f"{name} is neither exposed nor recorded"
        assert {label for label, _ in matchers} <= known, f"{name} has no such label"
    result_labels(promql.parse(rule["expr"]))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_no_rule_depends_on_the_instance_of_the_exporter(rule: dict[str, Any]) -> None:
    name = rule.get("alert") or rule["record"]
    allowed = TARGET if name in OF_EACH_EXPORTER else {"job"} if name in OF_JOBS else set()
    assert result_labels(promql.parse(rule["expr"])) & TARGET <= allowed


def test_no_rule_waits_for_the_history() -> None:
    assert [name for rule in RULES for name, matchers in selectors(rule["expr"]) if ("store", "history") in matchers] == []
    assert "store" not in "".join(rule["expr"] for rule in RULES)


def test_queries_of_the_runbook_read_the_history_by_ranges_only() -> None:
    for expression in expressions_of_the_runbook():
        for node in nodes(expression):
            if isinstance(node, promql.VectorSelector) and 'store="history"' in text(node):
                assert re.search(rf"_over_time\({re.escape(node.name or '')}{{[^}}]*}}\[", expression), expression


def test_recorded_names_say_level_metric_and_operations() -> None:
    assert (
        [name for name in RECORDED if not re.fullmatch(r"cml(_worker|_region|_fleet|_exporter)?:\w+:\w+", name)]
        == [
            # no others
        ]
    )
    for name, rule in RECORDED.items():
        level = {"cml_worker": {"worker_id", "region"}, "cml_region": {"region"}}.get(name.partition(":")[0], set())
        found = result_labels(promql.parse(rule["expr"]))
        further = {"job", "url"} if name in {*OF_JOBS, "cml:runbook:info", "cml:grafana:info"} else set()
        facts = {"worker", "instance_id", "instance_type", "cml_version"} if name.startswith("cml_worker") else set()
        if name.startswith("cml_exporter:"):
            further |= of_the_metric(name)
        if name.startswith("cml:alert_"):
            further = {"alertname", "severity", "worker", "worker_id", "region", "alertstate", "detail", "job"}
            further |= {"metric", "reason", "target", "means", "step", "anchor", "url"}
        assert level <= found <= level | facts | {"status", "check", "source", "what", "change"} | further, name


def of_the_metric(recorded: str) -> set[str]:
    """The labels of the metric of an exporter that a recorded series is made of; of all counters if it is made of all."""
    name = f"cml_exporter_{recorded.split(':')[1]}"
    metric = METRICS_BY_NAME.get(name) or METRICS_BY_NAME.get(f"{name}_total")
    if metric is not None:
        return set(metric.labels)
    return {"counter"} | (labels_of("cml_exporter_.+_total") or set() if recorded in OF_EACH_EXPORTER else set())


def test_recorded_series_never_fall_out_of_the_lookback() -> None:
    for file in FILES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            assert group["interval"] in ("15s", "1m", "2m"), group["name"]
    counted = {name for rule in ALERTS.values() for name in re.findall(r"count_over_time\(([\w:]+)", rule["expr"])}
    minutely = {
        rule["record"]
        for file in FILES
        for group in yaml.safe_load(file.read_text())["groups"]
        if group["interval"] == "1m"
        for rule in group["rules"]
        if "record" in rule
    }
    assert counted <= minutely, "an alert counts minutes of a series that is not recorded every minute"


def test_every_threshold_is_used_and_stands_in_one_place() -> None:
    used = set(re.findall(r"cml:threshold:\w+", " ".join(rule["expr"] for rule in RULES)))
    assert used == THRESHOLDS
    assert {rule["record"] for rule in rules(PROMETHEUS / "rules" / "settings.yml")} >= THRESHOLDS


def test_every_status_has_a_number_of_its_own() -> None:
    codes = {rule["labels"]["status"]: rule["expr"] for rule in RULES if rule.get("record") == "cml:status:code"}
    assert codes.keys() == set(STATUSES)
    assert len(set(codes.values())) == len(STATUSES)


def test_the_alert_matches_every_error_code_that_means_throttling() -> None:
    (pattern,) = re.findall(r'code=~"([^"]+)"', ALERTS["CMLExporterCloudWatchThrottled"]["expr"])
    for code, sentence in SENTENCE_BY_CODE.items():
        assert bool(re.fullmatch(pattern, code)) == (sentence == THROTTLED), code


# -- what an alert says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_severity_a_static_summary_a_templated_description_and_a_runbook(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
    summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
    assert "{{" not in summary
    assert summary.endswith(".")
    assert "{{" in description
    named = set(re.findall(r"\$labels\.(\w+)", description))
    assert named <= result_labels(promql.parse(rule["expr"])) | {"job"}
    base = '{{ range query "cml:runbook:info" }}{{ .Labels.url }}{{ end }}'
    assert rule["annotations"]["runbook_url"] == f"{base}#{alert.lower()}"
    # Grafana takes the labels as values of the dashboard's variables; an alert without a label shows all of them.
    labels = "{{ with $labels.region }}&var-region={{ urlquery . }}{{ end }}"
    labels += "{{ with $labels.worker_id }}&var-workers={{ urlquery . }}{{ end }}"
    dashboard = '{{ range query "cml:grafana:info" }}{{ .Labels.url }}{{ end }}/d/cml-on-call'
    assert rule["annotations"]["dashboard_url"] == f"{dashboard}?var-alertname={alert}{labels}"
    for query in re.findall(r'query "([^"]+)"', description):
        assert {name for name, _ in selectors(query)} <= {*METRICS_BY_NAME, *RECORDED}


def test_every_alert_of_one_worker_gives_its_name_in_the_same_way() -> None:
    ways = {
        " ".join(re.findall(r"\{\{- range query.*?end \}\}", rule["annotations"]["description"]))
        for rule in ALERTS.values()
        if "$labels.worker_id" in rule["annotations"]["description"]
    }
    (way,) = ways
    assert "topk(1, cml_worker_info{" in way


def test_the_runbook_has_a_section_for_every_alert_and_for_nothing_else() -> None:
    sections = re.split(r"^### ", RUNBOOK, flags=re.MULTILINE)[1:]
    assert sorted(section.split("\n", 1)[0] for section in sections) == sorted(ALERTS)
    for section in sections:
        assert all(f"**{part}.**" in section for part in ("Meaning", "Check", "Remedy")), section.split("\n", 1)[0]
    assert set(re.findall(r"cml:threshold:\w+", RUNBOOK)) <= THRESHOLDS
    assert set(re.findall(r"\bCML[A-Z]\w+", RUNBOOK)) <= set(ALERTS)


@pytest.mark.parametrize("expression", expressions_of_the_runbook())
def test_a_query_of_the_runbook_is_promql_over_what_exists(expression: str) -> None:
    for name, matchers in selectors(expression):
        known = labels_of(name)
        assert known is not None or FOREIGN.fullmatch(name), name
        assert known is None or {label for label, _ in matchers} <= known | {"store"}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_in_one_promtool_test_and_stays_silent_in_others(alert: str) -> None:
    fires, silent = 0, 0
    for test in TESTS:
        said = [case for case in test.get("alert_rule_test", ()) if case["alertname"] == alert]
        fires += sum(bool(case.get("exp_alerts")) for case in said)
        # These list everything that fires.
        listed = [str(case["exp_samples"]) for case in test.get("promql_expr_test", ()) if "ALERTS" in case["expr"]]
        about = said or f'"{alert}"' in "".join(listed)
        silent += sum(f'"{alert}"' not in samples for samples in listed) if about else 0
    assert fires
    assert silent


# -- the configurations ------------------------------------------------------------------------------------------------


def test_prometheus_reads_the_history_as_the_design_says() -> None:
    (read,) = CONFIG["remote_read"]
    assert read["url"].endswith("/api/v1/read")
    assert read["read_recent"] is True
    assert read["required_matchers"] == {"store": "history"}
    assert read["filter_external_labels"] is False
    assert read["remote_timeout"] == "1m"  # no longer than Grafana's data source waits: tests/unit/deploy/test_stack.py
    assert CONFIG["global"]["evaluation_interval"] in ("30s", "1m")
    assert "external_labels" not in CONFIG["global"]


def test_no_alert_depends_on_the_name_of_the_scrape_job() -> None:
    jobs = {job["job_name"] for job in CONFIG["scrape_configs"]}
    assert jobs == {"cml-worker-exporter", "node", "local"}
    assert not [rule for rule in RULES for _, matchers in selectors(rule["expr"]) if "job" in dict(matchers)]
    assert '"job", "cml-worker-exporter"' in RECORDED["cml:job:info"]["expr"]


def test_a_machines_metrics_keep_the_labels_of_its_worker() -> None:
    (node,) = [job for job in CONFIG["scrape_configs"] if job["job_name"] == "node"]
    assert node["http_sd_configs"][0]["url"] == "http://exporter:9877/sd/workers"
    assert "honor_labels" not in node
    assert not {"worker_id", "region"} & {step.get("target_label") for step in node["relabel_configs"]}


def test_alertmanager_routes_every_severity_and_mutes_only_alerts_that_exist() -> None:
    receivers = {receiver["name"] for receiver in ALERTMANAGER["receivers"]}
    assert {ALERTMANAGER["route"]["receiver"]} == receivers
    named = set()
    for rule in ALERTMANAGER["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            label, value = re.fullmatch(r'(\w+)=~?"([^"]+)"', matcher).groups()  # type: ignore[union-attr]
            if label == "alertname":
                named |= set(value.split("|"))
    assert named <= set(ALERTS)


@pytest.mark.parametrize("name", ["prometheus.yml", "alertmanager.yml"])
def test_nothing_secret_is_shipped(name: str) -> None:
    lines = [
        line for line in Path(PROMETHEUS / name).read_text().splitlines() if re.search("password|token|secret|api_url", line)
    ]
    assert [line for line in lines if not re.search(r"_file|TLS or basic|Keep secrets", line)] == []


# -- the mutation check ------------------------------------------------------------------------------------------------


def test_an_expression_loses_each_of_its_clauses_once() -> None:
    expression = 'max by (a) (min_over_time(x{m="1",n=~"p|q"}[5m] offset 1h)) > 2 unless on (a) y'
    assert [what for what, _ in variants(promql.parse(expression))] == [
        "unless y",
        '(max by (a)(min_over_time(x{m="1",n=~"p|q"}[5m] offset 1h)) > 2.0) unless',
        "on (a) of unless",
        "> 2.0",
        "max by (a)(…)",
        "by a",
        'min_over_time(x{m="1",n=~"p|q"}[5m] offset 1h) over its range',
        "m=1",
        "n=~p|q",
        "n: |p",
        "n: |q",
        "offset of x",
    ]


def test_every_rule_has_clauses_and_every_mutant_differs_from_its_rule() -> None:
    originals = {rule.get("alert") or rule["record"]: text(promql.parse(rule["expr"])) for rule in RULES}
    found = mutants()
    assert {mutant.rule for mutant in found} >= set(ALERTS)
    assert [mutant for mutant in found if mutant.change.get("expr") == originals[mutant.rule]] == []


def test_all_worker_gauges_are_used() -> None:
    used = {name for rule in RULES for name, _ in selectors(rule["expr"])}
    assert {metric.name for metric in WORKER_METRICS} - used == {
        "cml_worker_created_timestamp_seconds",
        "cml_worker_uptime_seconds",
        "cml_worker_disk_used_bytes",
        "cml_worker_disk_total_bytes",
        "cml_worker_memory_total_bytes",
        "cml_worker_service_status",
        "cml_worker_detailed_monitoring",
        "cml_worker_auto_pauses",
        "cml_worker_idle_pause_timestamp_seconds",
    }
