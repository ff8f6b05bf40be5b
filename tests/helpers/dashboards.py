"""Runs the dashboards' queries on a real Prometheus as Grafana does, and finds results that are wrong for any data."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from exporter.core.periods import HOUR, align
from exporter.demo.prometheus import SOURCE, configuration
from grafana import build
from grafana.panels import render
from tests.helpers.grafana_variables import Json, View, panels, seconds
from tests.helpers.prometheus import Labels, Prometheus

DASHBOARDS = {each.uid: render(each) for each in build.DASHBOARDS}
OPTIONAL = {"region", "revision"}
"""Labels that are absent where there is nothing to say: MongoDB has no region, a checkout no revision."""

Variables = dict[str, str | list[str] | None]

ALL: Variables = {
    "region": None,
    "workers": None,
    "alertname": None,
    "job": "cml-worker-exporter",
    "instance": None,
    "top": "5",
}


def faster(folder: Path, exporter: str, *further: Json) -> Json:
    """The repository's own configuration in seconds instead of minutes, and two alerts that fire, one of each worker."""
    folder.mkdir()
    for file in (SOURCE / "rules").glob("*.yml"):
        text = re.sub(r"interval: \d+[ms]\b", "interval: 1s", file.read_text())
        # The steps of a subquery are whole multiples of them: a day by hours has none before the next full hour.
        (folder / file.name).write_text(re.sub(r"\[1d:\d+[mh]\]", "[10s:1s]", text))
    alert = {"alert": "CMLTestFires", "expr": "vector(1)", "labels": {"severity": "info"}}
    of_each = {
        "alert": "CMLTestFiresOfEach",
        "expr": r'count by (worker_id, region) (cml_worker_info{worker_id!~"w-\\d+"})',  # not of a thousand
        "labels": {"severity": "warning"},
    }
    rules = [alert, of_each]
    (folder / "test.yml").write_text(yaml.safe_dump({"groups": [{"name": "test", "interval": "1s", "rules": rules}]}))
    made = configuration(SOURCE, exporter)
    made["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    made["rule_files"] = [str(folder / "*.yml")]
    made["scrape_configs"] = [*made["scrape_configs"], *further]
    return made


def everything(prometheus: Prometheus, dashboard: Json, chosen: Variables) -> Variables:
    """The values of "all" of variables without a value of their own for it: those that they offer."""
    found: Variables = {}
    for each in dashboard["templating"]["list"][1:]:
        if each["includeAll"] and "allValue" not in each and chosen[each["name"]] is None:
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", each["query"]["query"]).groups()  # type: ignore[union-attr]
            parameters = {"match[]": View(HOUR, 1, chosen).expand(metric)}
            found[each["name"]] = prometheus.http.get(f"/api/v1/label/{label}/values", params=parameters).json()["data"]
    return found


def run_query(
    prometheus: Prometheus, dashboard: Json, panel: Json, target: Json, chosen: Variables, now: float
) -> dict[Labels, list[float]]:
    """The values of each series, as Grafana would get them."""
    view = View(seconds(dashboard["time"]["from"]), 1, chosen | everything(prometheus, dashboard, chosen))
    query = view.expand(target["expr"], panel, target)
    if target["instant"]:
        return {labels: [value] for labels, value in prometheus.values(query, now).items()}
    step = view.step(panel, target)
    # Grafana's graphs end at a multiple of the step; of a short one that would be before this Prometheus was started.
    end = align(int(now), step) if step >= HOUR else now
    parameters = {"query": query, "start": end - view.range // step * step, "end": end, "step": float(step)}
    answer = prometheus.http.get("/api/v1/query_range", params=parameters).json()
    assert answer["status"] == "success", f"{query}: {answer}"
    assert not answer.get("warnings"), f"{query}: {answer['warnings']}"
    return {
        tuple(sorted(each["metric"].items())): [float(value) for _, value in each["values"]]
        for each in answer["data"]["result"]
    }


def newest(
    prometheus: Prometheus, uid: str, title: str, ref: str, now: float, **chosen: str | list[str]
) -> dict[Labels, float]:
    """The newest value of each series of a query of a panel."""
    return {labels: values[-1] for labels, values in drawn(prometheus, uid, title, ref, now, **chosen).items()}


def drawn(
    prometheus: Prometheus, uid: str, title: str, ref: str, now: float, **chosen: str | list[str]
) -> dict[Labels, list[float]]:
    """All values of each series of a query of a panel."""
    ((panel, target),) = [
        (panel, target)
        for panel in panels(DASHBOARDS[uid])
        if panel["title"] == title
        for target in panel["targets"]
        if target["refId"] == ref
    ]
    return run_query(prometheus, DASHBOARDS[uid], panel, target, {**ALL, **chosen}, now)


def by(label: str, found: Mapping[Labels, float]) -> dict[str, float]:
    return {dict(labels)[label]: each for labels, each in found.items()}


def problems(panel: Json, target: Json, found: Mapping[Labels, Sequence[float]], *, foreign: bool) -> Iterator[str]:
    """Yield what is wrong with a result for any data."""
    defaults = panel["fieldConfig"]["defaults"]
    mapped = {text for mapping in defaults["mappings"] for text in mapping["options"]}
    values = [each for series in found.values() for each in series if f"{each:g}" not in mapped]
    if not all(map(math.isfinite, values)):
        yield "not a number"
    if defaults["unit"] == "percentunit" and defaults.get("max") == 1 and not all(0 <= each <= 1 for each in values):
        yield f"{min(values)} to {max(values)} is no ratio"
    legend = re.findall(r"{{(\w+)}}", target["legendFormat"])
    for labels in map(dict, found):
        missing_labels = [name for name in legend if name not in {*labels, *OPTIONAL}]
        if missing_labels:
            yield f"the legend's {missing_labels} are not among {labels}"
        recorded = ":" in labels.get("__name__", ":")
        if foreign and ({"instance", "job", "store"} & set(labels) or not recorded):
            yield f"{labels} depend on the scraped instance"
    if "{{worker}}" in target["legendFormat"] and len(found) > 5:
        yield f"{len(found)} series"
