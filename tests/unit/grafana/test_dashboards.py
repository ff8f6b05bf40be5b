"""The dashboards that ship load in Grafana 9.1 and 12, name only what exists, and explain themselves."""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest

from exporter.core.catalog import METRICS_BY_NAME, WORKER_METRICS
from exporter.core.history_metrics import STORE
from exporter.core.model import STATUSES
from grafana import build, conventions, health, public
from grafana.panels import DATASOURCE, Panel, Row, render
from grafana.promql import CODES, threshold
from tests.helpers.cases import for_all
from tests.helpers.grafana_variables import Json, View, panels, queries, seconds
from tests.unit.prometheus.test_files import (
    ALERTS,
    CONFIG,
    HOURLY,
    RECORDED,
    RUNBOOK,
    THRESHOLDS,
    labels_of,
    nodes,
    result_labels,
)

FOLDER = build.ROOT / "grafana" / "dashboards"
DASHBOARDS: dict[str, Json] = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
UIDS = ["cml-exporter", "cml-fleet", "cml-on-call", "cml-trends", "cml-worker"]
QUERIES = [
    pytest.param(dashboard, panel, target, id=name)
    for dashboard in DASHBOARDS.values()
    for name, panel, target in queries(dashboard)
]
PANELS = [
    pytest.param(panel, id=f"{uid} / {panel['title']} [{panel['type']}]")
    for uid, dashboard in DASHBOARDS.items()
    for panel in panels(dashboard)
]

TABLES = [each for each in PANELS if " [table]" in str(each.id) and "Facts" not in str(each.id)]

KNOWN_TYPES = {
    "timeseries",
    "stat",
    "bargauge",
    "gauge",
    "table",
    "state-timeline",
    "status-history",
    "barchart",
    "text",
    "row",
}
KNOWN_TRANSFORMATIONS = {"merge", "organize", "groupBy", "sortBy", "reduce", "labelsToFields", "calculateField", "limit"}
"""What is the same in Grafana 9.1 and 12."""
UNITS = {"none", "percentunit", "s", "dtdhms", "suffix: h", "bytes", "Bps", "currencyUSD", "dateTimeAsIso", "dateTimeFromNow"}
TARGET = {"job", "instance"}
NODE = {*TARGET, "worker_id", "region", "device", "mountpoint", "fstype"}
FOREIGN = {
    "up": TARGET,
    "scrape_samples_scraped": TARGET,
    "scrape_duration_seconds": TARGET,
    "process_start_time_seconds": TARGET,
    "process_resident_memory_bytes": TARGET,
    "process_cpu_seconds_total": TARGET,
}
"""Prometheus' own series and prometheus_client's, with their labels."""


def variables(dashboard: Json) -> dict[str, str | list[str] | None]:
    """Any value for each variable."""
    return {
        each["name"]: ["a", "b"] if each["multi"] else "7"
        for each in dashboard["templating"]["list"]
        if each["name"] != "datasource"
    }


def expanded(dashboard: Json, target: Json, panel: Json | None = None) -> str:
    view = View(seconds(dashboard["time"]["from"]), 30, variables(dashboard))
    return view.expand(target["expr"], panel, target)


def expressions(dashboard: Json) -> Iterator[tuple[str, str]]:
    """Every query as Prometheus gets it, those of variables and annotations too."""
    for name, panel, target in queries(dashboard):
        yield name, expanded(dashboard, target, panel)
    for each in dashboard["templating"]["list"]:
        inner = (
            re.fullmatch(r"(?:query_result|label_values)\((.+?)(?:, \w+)?\)", each["query"]["query"])
            if each["type"] == "query"
            else None
        )
        if inner:
            yield f"variable {each['name']}", expanded(dashboard, {"expr": inner[1]})
    for each in dashboard["annotations"]["list"]:
        if "expr" in each:
            yield f"annotation {each['name']}", expanded(dashboard, {"expr": each["expr"]})


def known_labels(name: str) -> set[str]:
    if name.startswith("node_"):
        return NODE
    labels = FOREIGN.get(name) or labels_of(name)
    assert labels is not None, f"{name} is neither exposed nor recorded"
    return labels | ({"store"} if name in METRICS_BY_NAME or name in HOURLY else set())


def test_macros_are_computed_as_grafana_does() -> None:
    """As in calculateRateInterval and calculatePrometheusInterval of Grafana's Prometheus data source."""
    view = View(6 * 3600, 30, {})
    said = "$__interval $__interval_ms $__rate_interval"
    assert view.expand(said) == "30s 30000 120s"
    assert view.expand(said, {"interval": "5m"}) == "300s 300000 330s"
    assert view.expand(said, {}, {"interval": "5m"}) == "300s 300000 1200s"
    assert View(30 * 86400, 30, {}).expand(said, {"interval": "5m"}) == "3600s 3600000 3630s"


# -- the files ---------------------------------------------------------------------------------------------------------


def test_there_are_five_dashboards_by_fixed_uids() -> None:
    assert sorted(DASHBOARDS) == UIDS
    assert [dashboard["uid"] for dashboard in DASHBOARDS.values()] == UIDS
    assert len({dashboard["title"] for dashboard in DASHBOARDS.values()}) == 5


@pytest.mark.parametrize("path", build.files(), ids=lambda path: path.name)
def test_regenerating_changes_nothing(path: Path) -> None:
    assert path.read_text() == build.files()[path], "run: make dashboards"


def test_the_docs_list_every_panel_with_the_question_it_answers() -> None:
    text = (build.ROOT / "docs" / "dashboards.md").read_text()
    for dashboard in build.DASHBOARDS:
        for panel in dashboard.panels:
            assert panel.question.endswith("?")
            assert f"| {panel.question} | {panel.body['title']} | `" in text


# -- what Grafana 10.4 takes -------------------------------------------------------------------------------------------

TAKEN = {
    "dashboard": """annotations description editable fiscalYearStartMonth graphTooltip links liveNow panels refresh
        schemaVersion tags templating time timepicker timezone title uid version weekStart""",
    "panel": """datasource description fieldConfig gridPos id interval links options targets title transformations transparent
        type""",
    "row": "collapsed gridPos id panels title type",
    "field": "color custom decimals displayName links mappings max min noValue thresholds unit",
    "target": "datasource editorMode exemplar expr format instant interval legendFormat range refId",
    "variable": """allValue current datasource definition description hide includeAll label multi name options query refresh
        regex skipUrlSync sort type""",
    "timeseries": "legend tooltip",
    "stat": "colorMode graphMode justifyMode orientation reduceOptions textMode",
    "bargauge": "displayMode minVizHeight minVizWidth orientation reduceOptions showUnfilled",
    "state-timeline": "alignValue legend mergeValues rowHeight showValue tooltip",
    "table": "showHeader sortBy",
    "timeseries custom": """axisLabel axisPlacement axisSoftMax barAlignment drawStyle fillOpacity lineInterpolation
        lineStyle lineWidth pointSize scaleDistribution showPoints spanNulls stacking thresholdsStyle""",
    "state-timeline custom": "fillOpacity lineWidth",
    "table custom": "align cellOptions displayMode filterable hidden inspect minWidth width",
    "stat custom": "lineStyle fillOpacity",
    "bargauge custom": "",
}
"""Keys, a subset of those of the published schema of Grafana 10.4 (the models of grafana-foundation-sdk for 10.4.0).

The schema lacks `definition` of a variable, which Grafana's editor shows, and what annotations of Prometheus have. A stat has
no `custom`; it ignores that of comparisons, which it shares with graphs.
"""


def taken(kind: str, part: Json) -> None:
    assert set(part) <= set(TAKEN[kind].split()), kind


@pytest.mark.parametrize("uid", UIDS)
def test_grafana_10_4_knows_every_key(uid: str) -> None:
    dashboard = DASHBOARDS[uid]
    taken("dashboard", dashboard)
    for variable in dashboard["templating"]["list"]:
        taken("variable", variable)
    for item in dashboard["panels"]:
        if item["type"] == "row":
            taken("row", item)
    for panel in panels(dashboard):
        taken("panel", panel)
        taken(panel["type"], panel["options"])
        defaults = panel["fieldConfig"]["defaults"]
        taken("field", defaults)
        custom = dict.fromkeys(defaults.get("custom", ()))
        for override in panel["fieldConfig"]["overrides"]:
            assert override["matcher"]["id"] in ("byName", "byRegexp")
            for each in override["properties"]:
                kind, _, key = each["id"].rpartition(".")
                assert kind in ("", "custom")
                if kind:
                    custom[key] = None
                else:
                    taken("field", {key: each["value"]})
        taken(f"{panel['type']} custom", custom)
        for target in panel["targets"]:
            taken("target", target)


def test_public_copies_have_no_variable_and_the_queries_of_all_workers() -> None:
    assert {each.uid for each in public.dashboards()} == set(UIDS) - {"cml-worker"}
    for each in public.dashboards():
        copy = public.public(each, "prom")
        assert copy["uid"] == f"{each.uid}-public"
        assert copy["templating"]["list"] == copy["annotations"]["list"] == []
        assert "/d/" not in json.dumps(copy)
        left = set(re.findall(r"\$\{?(\w+)", json.dumps(copy)))
        assert left <= {"1", "__interval", "__interval_ms", "__range", "__rate_interval"}
        original = list(queries(DASHBOARDS[each.uid]))
        copied = list(queries(copy))
        assert len(copied) == len(original) > 0
        for (name, panel, target), (_, _, before) in zip(copied, original, strict=True):
            assert panel["datasource"] == target["datasource"] == {"type": "prometheus", "uid": "prom"}
            assert len(promql.parse(View(3600, 30, {}).expand(target["expr"], panel, target)).prettify()) > 0, name
            if "$region" in before["expr"]:
                assert 'region=~".*' in target["expr"]
            if "$job" in before["expr"]:
                assert f'job="{conventions.JOB}"' in target["expr"]


@pytest.mark.parametrize("uid", UIDS)
def test_a_kiosk_needs_no_choice(uid: str) -> None:
    """Without Grafana's bars, a variable has its default: all, a fixed value, or the first that its query finds."""
    for each in DASHBOARDS[uid]["templating"]["list"][1:]:
        if each["multi"]:
            assert each["current"]["value"] == ["$__all"]
        elif each["type"] == "custom":
            assert each["current"]["value"]
        else:
            assert (each["type"], each["name"]) in (("query", "worker_id"), ("query", "job"))


# -- what every dashboard has ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", UIDS)
def test_a_dashboard_has_a_tag_links_that_keep_time_and_variables_and_one_data_source_variable(uid: str) -> None:
    dashboard = DASHBOARDS[uid]
    assert dashboard["schemaVersion"] == 37
    assert dashboard["tags"] == ["cml"]
    assert dashboard["title"].startswith("CML / ")
    assert dashboard["description"]
    assert "id" not in dashboard
    (link,) = dashboard["links"]
    assert (link["type"], link["tags"], link["keepTime"], link["includeVars"]) == ("dashboards", ["cml"], True, True)
    first, *rest = dashboard["templating"]["list"]
    assert (first["type"], first["name"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert "datasource" not in [each["type"] for each in rest]
    for each in rest:
        assert each["label"]
        assert each["description"]
        if each["type"] == "query":
            assert each["datasource"] == DATASOURCE
            assert each["query"]["query"] == each["definition"]
            assert each["query"]["refId"]
            assert each["refresh"] == 2
            assert each["includeAll"] == each["multi"]
            # Few are named one by one, so that "all" means those of the chosen job.
            assert each.get("allValue") == (".*" if each["includeAll"] and each["name"] != "instance" else None)


@pytest.mark.parametrize("uid", UIDS)
def test_alerts_and_restarts_are_marked(uid: str) -> None:
    marks = [each for each in DASHBOARDS[uid]["annotations"]["list"] if "builtIn" not in each]
    assert {"Alerts", "Exporter restarts"} <= {each["name"] for each in marks}
    for each in marks:
        assert each["datasource"] == DATASOURCE
        assert each["enable"] is True
        assert each["expr"] == each["target"]["expr"]
        assert each["step"]
        assert each["titleFormat"]
    restarts = next(each for each in marks if each["name"] == "Exporter restarts")
    assert conventions.OF_EXPORTERS in restarts["expr"]
    assert CONFIG["scrape_configs"][0]["job_name"] == conventions.JOB
    assert all(re.match("CML.+", alert) for alert in ALERTS)


@pytest.mark.parametrize("uid", UIDS)
def test_ids_are_unique_and_panels_neither_overlap_nor_leave_the_grid(uid: str) -> None:
    dashboard = DASHBOARDS[uid]
    items = [*dashboard["panels"], *(panel for row in dashboard["panels"] for panel in row.get("panels", ()))]
    assert len({item["id"] for item in items}) == len(items)
    taken: dict[tuple[int, int], str] = {}
    for item in items:
        place = item["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{item['title']} lies over {taken[x, y]}"
                taken[x, y] = item["title"]
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("uid", UIDS)
def test_every_line_of_the_grid_is_filled(uid: str) -> None:
    lines: dict[int, int] = {}
    for item in [*DASHBOARDS[uid]["panels"], *(panel for row in DASHBOARDS[uid]["panels"] for panel in row.get("panels", ()))]:
        lines[item["gridPos"]["y"]] = lines.get(item["gridPos"]["y"], 0) + item["gridPos"]["w"]
    assert set(lines.values()) == {24}


# -- what every panel has ----------------------------------------------------------------------------------------------


@for_all(PANELS)
def test_a_panel_says_what_it_shows_in_what_unit_and_what_it_means_when_it_is_empty(panel: Json) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["type"] in KNOWN_TYPES
    assert panel["title"]
    assert re.fullmatch(r"[A-Z0-9].*\.", panel["description"], re.DOTALL) or panel["description"].startswith("ok: ")
    assert len(panel["description"]) > 30
    assert defaults["unit"] in UNITS
    assert defaults["noValue"]
    assert panel["datasource"] == DATASOURCE
    assert panel["targets"]
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGHIJ")[: len(panel["targets"])]
    assert all(target["datasource"] == DATASOURCE for target in panel["targets"])
    assert {each["id"] for each in panel["transformations"]} <= KNOWN_TRANSFORMATIONS
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"] is True
    for override in panel["fieldConfig"]["overrides"]:
        for each in override["properties"]:
            assert each["id"] != "unit" or each["value"] in UNITS
    if defaults["unit"] == "percentunit" and "noValue" in defaults and "min" in defaults:
        assert (defaults["min"], defaults["max"]) == (0, 1)


@for_all(PANELS)
def test_thresholds_rise_from_green(panel: Json) -> None:
    first, *rest = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert first == {"color": "green" if rest else "blue", "value": None}
    assert [each["value"] for each in rest] == sorted(each["value"] for each in rest)


def test_the_red_lines_stand_where_the_alerts_do() -> None:
    (cpu,) = [panel for panel in panels(DASHBOARDS["cml-fleet"]) if panel["title"] == "CPU by worker"]
    assert cpu["fieldConfig"]["defaults"]["thresholds"]["steps"][-1] == {"color": "red", "value": threshold("cpu_ratio")}
    assert RECORDED["cml:threshold:cpu_ratio"]["expr"].endswith(f" or on () vector({threshold('cpu_ratio')})")
    with pytest.raises(KeyError, match=r"no_such_number.*settings\.yml"):
        threshold("no_such_number")
    assert "cml:threshold:idle_cpu_ratio" in THRESHOLDS


def test_every_status_has_a_color_and_a_number_of_its_own() -> None:
    assert set(conventions.COLORS) == set(STATUSES) == set(CODES)
    assert len(set(CODES.values())) == len(set(conventions.COLORS.values())) == len(STATUSES)


def test_no_query_computes_a_name_or_the_number_of_a_status() -> None:
    """The label `worker` comes from the exporter, the numbers from cml:status:code."""
    for dashboard in DASHBOARDS.values():
        for name, panel, target in queries(dashboard):
            query = target["expr"]
            assert '"worker", "$1"' not in query, name
            assert len(re.findall(r'cml_worker_status{[^}]*status="', query)) <= 1, name
            assert len(query) < 1600, f"{name} of {panel['title']} has {len(query)} characters"


@for_all(PANELS)
def test_a_timeline_is_colored_by_its_mappings(panel: Json) -> None:
    """By thresholds, Grafana would merge all values of one step into one state (mergeThresholdValues)."""
    if panel["type"] == "state-timeline":
        assert panel["fieldConfig"]["defaults"]["color"]["mode"] == "fixed"
        assert panel["fieldConfig"]["defaults"]["mappings"]


@for_all(PANELS)
def test_a_tile_of_several_values_names_each(panel: Json) -> None:
    """With one value left, Grafana would drop its name: a terminated worker would have last week's status."""
    if panel["type"] == "stat" and len(panel["targets"]) > 1:
        assert panel["options"]["textMode"] == "value_and_name"


@for_all(PANELS)
def test_hours_are_hours_ratios_have_no_decimals_and_durations_on_axes_are_clocks(panel: Json) -> None:
    """Grafana's unit h turns 240 hours into 1.43 weeks, and s an axis into 2.78 hours; 100.0 % is wider than a tile."""
    said = [panel["fieldConfig"]["defaults"]] + [
        {one["id"]: one["value"] for one in each["properties"]} for each in panel["fieldConfig"]["overrides"]
    ]
    assert "h" not in [each.get("unit") for each in said]
    for each in said:
        if each.get("unit") == "percentunit":
            assert each.get("decimals") in (0, None)
        if each.get("unit") == "percentunit" and panel["type"] in ("stat", "bargauge", "table"):
            assert each["decimals"] == 0
    if panel["type"] == "timeseries" and "Duration" not in panel["title"] and "duration" not in panel["title"]:
        assert panel["fieldConfig"]["defaults"]["unit"] != "s"


@for_all(PANELS)
def test_a_comparison_is_grey_and_dashed(panel: Json) -> None:
    fixed = {
        each["matcher"]["options"]: {one["id"]: one["value"] for one in each["properties"]}
        for each in panel["fieldConfig"]["overrides"]
    }
    for target in panel["targets"]:
        if re.search(r"week|24 h average", target["legendFormat"]):
            assert fixed[target["legendFormat"]]["color"] == {"mode": "fixed", "fixedColor": conventions.GREY}
            assert fixed[target["legendFormat"]]["custom.lineStyle"]["fill"] == "dash"


@for_all([pytest.param(*panel.values, screen, id=f"{panel.id}, {screen}") for panel in PANELS for screen in (1000, 1920)])
def test_titles_columns_and_texts_of_tiles_fit_a_screen(panel: Json, screen: int) -> None:
    """By the usual width of a letter, 7 pixels at the 14 pixels of Grafana's titles; a real Grafana would show it."""
    width = panel["gridPos"]["w"] * screen / 24 - 8
    assert 7 * len(panel["title"]) + 16 <= width
    if panel["type"] == "stat":
        texts = [panel["fieldConfig"]["defaults"]["noValue"], *(each["legendFormat"] for each in panel["targets"])]
        assert max(7 * len(each) for each in texts if "{{" not in each) <= width
    if panel["type"] == "table" and panel["transformations"][-1]["id"] == "organize":
        widths = {
            each["matcher"]["options"]: {one["id"]: one["value"] for one in each["properties"]}
            for each in panel["fieldConfig"]["overrides"]
        }
        shown = [each.get("custom.width", each["custom.minWidth"]) for each in widths.values() if not each.get("custom.hidden")]
        assert sum(shown) <= width
        for heading, each in widths.items():
            assert each.get("custom.width", each["custom.minWidth"]) >= 7 * len(heading) + 16


LIGHT, DARK = "#ffffff", "#181b1f"
"""Grafana's backgrounds of a panel."""
NAMED = {
    "red": ("#e02f44", "#f2495c"),
    "dark-orange": ("#e55400", "#fa6400"),
    "green": ("#56a64b", "#73bf69"),
    "blue": ("#3274d9", "#5794f2"),
    "light-blue": ("#5794f2", "#8ab8ff"),
    "light-purple": ("#b877d9", "#ca95e5"),
}
"""Grafana's named colors in light and in dark mode (createVisualizationColors.ts)."""


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def colors(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        for key, each in part.items():
            if key in ("color", "fixedColor", "iconColor") and isinstance(each, str):
                yield each
            else:
                yield from colors(each)
    elif isinstance(part, list):
        for each in part:
            yield from colors(each)


@pytest.mark.parametrize("uid", UIDS)
def test_every_color_can_be_read_in_light_and_in_dark_mode(uid: str) -> None:
    """3:1 is what large text and lines need. Cells of tables have small text: there the color is the background."""
    dashboard = DASHBOARDS[uid]
    assert "style" not in dashboard, "the viewer's theme"
    marks = [each for each in dashboard["annotations"]["list"] if "builtIn" not in each]
    for color in {*colors(dashboard["panels"]), *colors(marks)}:
        light, dark = NAMED.get(color, (color, color))
        assert min(contrast(light, LIGHT), contrast(dark, DARK)) >= 3, color
    assert "color-text" not in json.dumps(dashboard)


@for_all(PANELS)
def test_a_graph_has_room_and_an_axis_of_zeros_starts_at_zero(panel: Json) -> None:
    if panel["type"] != "timeseries":
        return
    legend, width = panel["options"]["legend"], panel["gridPos"]["w"] * 1000 / 24
    assert legend["calcs"] == ["lastNotNull"]
    assert legend["placement"] == "bottom" or legend["width"] < width / 2
    assert panel["fieldConfig"]["defaults"]["custom"]["axisSoftMax"] > 0
    assert panel["fieldConfig"]["defaults"]["min"] == 0


@for_all(PANELS)
def test_a_gap_of_a_timeline_is_no_state(panel: Json) -> None:
    if panel["type"] == "state-timeline":
        last = panel["fieldConfig"]["overrides"][-1]
        assert last == {"matcher": {"id": "byRegexp", "options": "/.*/"}, "properties": [{"id": "noValue", "value": ""}]}


def test_the_exporters_health_is_one_screen_with_all_errors_in_one_panel() -> None:
    """A screen of 1,080 lines holds 24 units of the grid below Grafana's own bars."""
    open_ = [each for each in DASHBOARDS["cml-exporter"]["panels"] if each["type"] != "row"]
    assert max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in open_) <= 24
    rows = [each for each in DASHBOARDS["cml-exporter"]["panels"] if each["type"] == "row"]
    assert [each["collapsed"] for each in rows] == [False, True, True, True, True]
    (errors,) = [each for each in open_ if each["title"] == "Errors"]
    assert [each["expr"] for each in errors["targets"]] == ["sum_over_time(cml_exporter:errors:increase1m[$__interval])"]
    (pattern,) = re.findall(r'counter=~"(.+)"', RECORDED["cml_exporter:errors:increase1m"]["expr"])
    counted = {name for name in METRICS_BY_NAME if re.fullmatch(f"cml_exporter_(?:{pattern})_total", name)}
    named = {each["matcher"]["options"] for each in errors["fieldConfig"]["overrides"]}
    assert {f"cml_exporter_{each}_total" for each in named} == counted
    failures = {
        name
        for name in METRICS_BY_NAME
        if re.search(r"exporter_.*(failure|malformed|unavailable|lost|history_replaced)\w*$", name)
    }
    assert counted == failures


def test_days_are_columns_and_a_huge_value_hides_no_other() -> None:
    days = [
        each for each in panels(DASHBOARDS["cml-trends"]) if re.match("(CPU|Memory|Active labs|Workers) by day", each["title"])
    ]
    assert len(days) == 4
    for each in days:
        custom = each["fieldConfig"]["defaults"]["custom"]
        assert (custom["drawStyle"], custom["barAlignment"]) == ("bars", -1)
    (longest,) = [each for each in panels(DASHBOARDS["cml-fleet"]) if each["title"] == "Longest idle"]
    assert longest["fieldConfig"]["defaults"]["max"] == 86400


def test_several_lines_are_not_filled() -> None:
    for dashboard in DASHBOARDS.values():
        for panel in panels(dashboard):
            if panel["type"] == "timeseries" and any("{{" in each["legendFormat"] for each in panel["targets"]):
                custom = panel["fieldConfig"]["defaults"]["custom"]
                assert custom["fillOpacity"] == 0 or custom["drawStyle"] == "bars" or custom["stacking"]["mode"] == "normal"


def of_worker(title: str) -> Json:
    (panel,) = [each for each in panels(DASHBOARDS["cml-worker"]) if each["title"] == title]
    return panel


@pytest.mark.parametrize("title", ["Status", "CPU", "Memory", "Active labs"])
def test_now_always_exists_and_comparisons_are_grey(title: str) -> None:
    panel = of_worker(title)
    assert panel["targets"][0]["legendFormat"] == "now"
    assert panel["targets"][0]["expr"].endswith(" or vector(-1)")
    text = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]["-1"]["text"]
    assert text == ("not listed" if title == "Status" else "–")
    colors = {
        each["matcher"]["options"]: {one["id"]: one["value"] for one in each["properties"]}.get("color")
        for each in panel["fieldConfig"]["overrides"]
    }
    for target in panel["targets"][1:]:
        assert colors[target["legendFormat"]] == {"mode": "fixed", "fixedColor": conventions.GREY}


def test_facts_are_two_columns_and_the_machine_has_links() -> None:
    facts = of_worker("Facts")
    (step,) = facts["transformations"]
    assert step["id"] == "labelsToFields"
    assert step["options"]["mode"] == "rows"
    by = re.search(r"max by \(([^)]*)\)", facts["targets"][0]["expr"])
    assert by
    assert step["options"]["keepLabels"] == by[1].split(", ")
    (named, empty) = facts["fieldConfig"]["overrides"]
    assert set(named["properties"][0]["value"][0]["options"]) == set(step["options"]["keepLabels"])
    assert empty["properties"] == [{"id": "noValue", "value": "–"}]
    machine = of_worker("Machine")
    kept = set(re.findall(r"\w+", re.search(r"max by \(([^)]*)\)", machine["targets"][0]["expr"])[1]))  # type: ignore[index]
    links = machine["fieldConfig"]["defaults"]["links"]
    assert [each["title"] for each in links] == ["Open the EC2 console", "Open the CML UI"]
    for each in links:
        assert each["url"].startswith("https://")
        assert set(re.findall(r"labels\.(\w+)", each["url"])) <= kept


@pytest.mark.parametrize("panel", TABLES)
def test_an_empty_cell_is_a_dash(panel: Json) -> None:
    """Grafana puts the panel's sentence for no data into every cell that has no text of its own."""
    texts = {
        override["matcher"]["options"]: [each["value"] for each in override["properties"] if each["id"] == "noValue"]
        for override in panel["fieldConfig"]["overrides"]
    }
    headings = panel["transformations"][-1]["options"]["renameByName"].values()
    assert {heading: texts.get(heading) for heading in headings} == {heading: ["–"] for heading in headings}


def test_a_link_between_dashboards_never_hands_many_workers_to_one_that_shows_one() -> None:
    names = {(each["name"], each["multi"]) for dashboard in DASHBOARDS.values() for each in dashboard["templating"]["list"][1:]}
    assert len({name for name, _ in names}) == len(names)


@for_all(PANELS)
def test_rows_of_a_table_are_merged_whatever_the_names_of_its_series_are(panel: Json) -> None:
    """The name is a column in Grafana: two queries that keep theirs would have no row in common."""
    if panel["type"] == "table" and len(panel["targets"]) > 1:
        (dashboard,) = [each for each in DASHBOARDS.values() if panel in panels(each)]
        named = [each["refId"] for each in panel["targets"] if keeps_name(promql.parse(expanded(dashboard, each, panel)))]
        assert len(named) <= 1


def keeps_name(node: Any) -> bool:  # noqa: ANN401  # the parser's nodes have no useful common type
    """Whether the result of an expression has the names of its series."""
    match node:
        case promql.VectorSelector():
            return True
        case promql.ParenExpr():
            return keeps_name(node.expr)
        case promql.AggregateExpr():
            return str(node.op) in ("topk", "bottomk") and keeps_name(node.expr)
        case promql.Call():
            return node.func.name in ("sort", "sort_desc") and keeps_name(node.args[0])
        case promql.BinaryExpr():
            bool_ = node.modifier and node.modifier.return_bool
            return (
                str(node.op) in ("and", "or", "unless", "==", "!=", "<", "<=", ">", ">=") and not bool_ and keeps_name(node.lhs)
            )
    return False


@pytest.mark.parametrize("panel", TABLES)
def test_a_table_shows_every_query_and_links_by_a_column_it_has(panel: Json) -> None:
    organize = panel["transformations"][-1]["options"]
    hidden, headings = organize["excludeByName"], organize["renameByName"]
    several = len(panel["targets"]) > 1
    values = {f"Value #{target['refId']}" for target in panel["targets"]} if several else {"Value"}
    constant = {f"Value #{each['refId']}" for each in panel["targets"] if re.search(r"info|status:current", str(each["expr"]))}
    assert values - set(headings) <= constant
    assert not set(hidden) & set(headings)
    assert len(set(headings.values())) == len(headings)
    assert panel["options"]["sortBy"][0]["displayName"] in headings.values()
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["options"] in headings.values()
    assert set(re.findall(r'__data\.fields\["([^"]+)"\]', json.dumps(panel).replace('\\"', '"'))) <= set(headings.values())
    assert all(target["format"] == "table" and target["instant"] for target in panel["targets"])


def test_drill_downs_lead_to_dashboards_that_exist_and_keep_data_source_and_time() -> None:
    links = set(
        re.findall(r'"url": "(/d/[^"]+)', "".join(json.dumps(each).replace('\\"', "'") for each in DASHBOARDS.values()))
    )
    assert links
    for url in links:
        uid = re.match(r"/d/([\w-]+)\?", url)[1]  # type: ignore[index]
        assert "${datasource:queryparam}" in url
        assert "${__url_time_range}" in url
        wanted = {each["name"] for each in DASHBOARDS[uid]["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", url)) <= wanted


# -- what every query is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", UIDS)
def test_every_query_is_promql_over_series_and_labels_that_exist(uid: str) -> None:
    for name, expression in expressions(DASHBOARDS[uid]):
        for node in nodes(expression):
            if isinstance(node, promql.VectorSelector):
                labels = {each.name for each in node.matchers.matchers}
                assert labels <= known_labels(node.name or ""), f"{name}: {node.prettify()}"


@pytest.mark.parametrize("uid", UIDS)
def test_the_history_is_read_through_ranges_only(uid: str) -> None:
    for name, expression in expressions(DASHBOARDS[uid]):
        assert not re.search(rf'store="{STORE}"[^}}]*}}(?!\[)', expression), f"{name}: {expression}"


@pytest.mark.parametrize("uid", UIDS)
def test_hours_are_read_a_second_late_so_that_no_day_has_25(uid: str) -> None:
    hours = rf'(?:{"|".join(HOURLY)}){{[^}}]*store="{STORE}"[^}}]*}}'
    late = rf"{hours}\[\w+\](?: @ end\(\))? offset (?:-1s|6d23h59m59s)\b"
    for name, expression in expressions(DASHBOARDS[uid]):
        assert len(re.findall(late, expression)) == len(re.findall(hours, expression)), f"{name}: {expression}"


def test_what_is_read_of_a_large_fleet_is_read_by_the_hour() -> None:
    """Of the history itself a week of a thousand workers is two million samples."""
    for uid in ("cml-fleet", "cml-trends"):
        for name, expression in expressions(DASHBOARDS[uid]):
            for node in nodes(expression):
                if isinstance(node, promql.VectorSelector) and STORE in [each.value for each in node.matchers.matchers]:
                    assert node.name in HOURLY, name


@for_all(QUERIES)
def test_a_query_uses_variables_that_exist_and_the_steps_of_its_graph(dashboard: Json, panel: Json, target: Json) -> None:
    expanded(dashboard, target, panel)
    within = re.findall(r"(\w+)\([^()]*?\[([^\]]+)\]", target["expr"])
    for function, window in within:
        if function in ("rate", "irate", "increase") and not target["instant"]:
            assert window == "$__rate_interval"
    if re.search(rf'store="{STORE}"[^}}]*}}\[\$__interval]', target["expr"]):
        by_hour = any(name in target["expr"] for name in HOURLY)
        assert seconds(target["interval"]) >= (3600 if by_hour else 300), "as often as there is a value"
    assert target["instant"] == (panel["type"] in ("stat", "bargauge", "table"))
    assert "vector(0)" not in target["expr"], "a name that is misspelt would look like nothing going on"


@for_all(QUERIES)
def test_the_window_of_a_rate_is_one_step_and_one_scrape(dashboard: Json, panel: Json, target: Json) -> None:
    """A min step of the query would count as the scrape interval, so that the window were four times as long."""
    if "$__rate_interval" not in target["expr"]:
        return
    view = View(seconds(dashboard["time"]["from"]), 30, {})
    assert "interval" not in target
    assert int(view.expand("$__rate_interval", panel, target)[:-1]) == max(view.step(panel, target) + 30, 120)


@for_all(QUERIES)
def test_counts_by_the_minute_are_summed_over_a_minute_at_least(dashboard: Json, panel: Json, target: Json) -> None:
    if ":increase1m" in target["expr"] and not target["instant"]:
        assert re.search(r":increase1m({[^}]*})?\[\$__interval]", target["expr"])
        assert View(300, 1, {}).step(panel, target) >= 60


@for_all(QUERIES)
def test_a_count_has_no_decimals(dashboard: Json, panel: Json, target: Json) -> None:
    counts = (
        re.search(r"_total\b|:increase1m\b", target["expr"])
        and "rate(process_cpu" not in target["expr"]
        and "http_conn" not in target["expr"]
    )
    if panel["fieldConfig"]["defaults"]["unit"] == "none" and counts:
        assert panel["fieldConfig"]["defaults"]["decimals"] == 0


@for_all(QUERIES)
def test_a_legend_names_labels_of_the_result(dashboard: Json, panel: Json, target: Json) -> None:
    named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    if panel["type"] != "table":
        assert target["legendFormat"] != "__auto" or len(panel["targets"]) == 1
    kept = [set(re.split(r",\s*", by)) for by in re.findall(r"(?:by|group_left) \(([^)]*)\)", target["expr"])]
    kept.append(set(re.findall(r'"([a-z_]+)", "[^"]*", "\w+", "[^"]*"\)', target["expr"])))  # made by label_replace
    kept.append(set().union(*(labels_of(name) or set() for name in of_recorded(target["expr"]))))
    assert named <= set().union(*kept) | ({"instance"} if " by (" not in target["expr"] else set())


def of_recorded(expression: str) -> list[str]:
    """The recorded series that an expression shows as they are."""
    shown = r"(?:topk\(\$?\w+, |^(?:time\(\) - )?(?:sum_over_time\()?)([\w:]+)"
    return [name for name in re.findall(shown, expression) if name in RECORDED]


# -- on call -----------------------------------------------------------------------------------------------------------


def on_call(title: str) -> Json:
    (panel,) = [each for each in panels(DASHBOARDS["cml-on-call"]) if each["title"] == title]
    return panel


def overrides(panel: Json) -> dict[str, Json]:
    return {
        each["matcher"]["options"]: {one["id"]: one["value"] for one in each["properties"]}
        for each in panel["fieldConfig"]["overrides"]
    }


def test_on_call_has_at_most_12_panels_and_the_first_screen_says_all() -> None:
    """A unit of the grid is 38 pixels. A phone in the hand shows 18 below Grafana's bar, where panels are below each other."""
    placed = DASHBOARDS["cml-on-call"]["panels"]
    assert len(placed) <= 12
    assert [each["title"] for each in placed[:2]] == ["Firing now", "What is wrong"]
    assert [each["gridPos"]["w"] for each in placed[:2]] == [24, 24]
    assert sum(each["gridPos"]["h"] for each in placed[:2]) <= 16
    first_screen = [each["title"] for each in placed if each["gridPos"]["y"] + each["gridPos"]["h"] <= 24]
    assert len(first_screen) >= 7
    for each in placed[:6]:
        assert not re.search(r"\$(?!1\b)", json.dumps([one["expr"] for one in each["targets"]])), (
            "nothing is to be chosen first"
        )


def test_on_call_says_of_every_alert_what_it_means_and_what_to_do() -> None:
    columns = overrides(on_call("What is wrong"))

    def texts(heading: str) -> dict[str, str]:
        return {alert: text["text"] for alert, text in columns[heading]["mappings"][0]["options"].items()}

    assert texts("What it means") == {alert: rule["annotations"]["summary"] for alert, rule in ALERTS.items()}
    steps = texts("What to do")
    assert set(steps) == set(ALERTS)
    for alert, step in steps.items():
        assert re.fullmatch(r"[A-Z].{10,58}[.]", step), alert
        anchor = texts("Anchor")[alert]
        assert f"\n### {alert}\n" in RUNBOOK
        assert anchor == alert.lower()
    (link,) = columns["What to do"]["links"]
    assert link["url"] == '${__data.fields["Runbook"]}#${__data.fields["Anchor"]}'
    assert columns["Runbook"]["custom.hidden"] is columns["Anchor"]["custom.hidden"] is True
    names = texts("Alert")
    assert set(names) == set(ALERTS)
    assert len(set(names.values())) == len(ALERTS)
    assert names["CMLWorkerEC2CheckImpaired"] == "Worker EC2 check impaired"
    assert names["CMLExporterCloudWatchThrottled"] == "Exporter CloudWatch throttled"


def test_an_alerts_link_opens_on_call_with_its_labels() -> None:
    for rule in ALERTS.values():
        address = rule["annotations"]["dashboard_url"]
        assert "/d/cml-on-call?" in address
        variables_ = {each["name"]: each for each in DASHBOARDS["cml-on-call"]["templating"]["list"]}
        for name in re.findall(r"var-(\w+)=", address):
            assert variables_[name]["multi"]
    query = on_call("Whom it concerns")["targets"][0]["expr"]
    rule = RECORDED["cml:alert_active_timestamp_seconds:named"]["expr"]
    details = set(re.findall(r'"(\w+)"', re.search(r'"detail", "", ([^)]*)\)', rule)[1]))  # type: ignore[index]
    (matched,) = re.findall(r"on \(([^)]*)\)", RECORDED["cml:alert_active_timestamp_seconds:firing"]["expr"])
    for alert, rule in ALERTS.items():
        labels = result_labels(promql.parse(rule["expr"])) - {"worker_id", "region", "job"}
        assert len(labels) <= 1, alert
        assert labels <= details <= set(matched.split(", ")), alert
    for name in ("alertname", "region", "workers"):
        assert f'=~"${name}' in query


def test_queries_do_not_grow() -> None:
    """Lists of workers, counts by region, and what several panels share are recorded by prometheus/rules."""
    lower, median, upper = statistics.quantiles(build.lengths())
    assert (lower <= 60, median <= 79, upper <= 141) == (True, True, True), (lower, median, upper)
    assert max(build.lengths()) <= 922
    assert len(build.lengths()) == len(QUERIES)


# -- all dashboards again ----------------------------------------------------------------------------------------------


def test_a_large_fleet_stays_readable() -> None:
    """No graph, ranking or strip has a series for each worker, unless it is one of the first few."""
    for uid in ("cml-fleet", "cml-trends"):
        for name, panel, target in queries(DASHBOARDS[uid]):
            if "{{worker}}" in target["legendFormat"]:
                assert re.search(r"topk\((\$top|3), ", target["expr"]), name
                if panel["type"] == "timeseries":
                    assert "topk(3, " in target["expr"], name
                    assert [each["legendFormat"] for each in panel["targets"]] == ["{{worker}}", "mean of all"]
            elif panel["type"] != "table":
                aggregated = r"(count|sum|avg|min|max|avg_over_time|count_values)( by \((region|status)\))? ?\("
                assert re.match(rf"(?:label_replace\()*(?:24 \* |time\(\) - )?{aggregated}", target["expr"]), name
                assert "avg_over_time(max by" not in target["expr"].removeprefix("avg_over_time(sum("), name


def test_the_worker_gauges_are_all_shown() -> None:
    shown = "".join(json.dumps(dashboard) for dashboard in DASHBOARDS.values())
    shown += "".join(rule["expr"] for name, rule in RECORDED.items() if name in shown)
    shown += " ".join(f"cml_exporter_{counter}_total" for counter in [*re.findall(r'counter=\\?"(\w+)', shown), *health.ERRORS])
    own = {name for name in METRICS_BY_NAME if name.startswith("cml_exporter_")}
    assert {metric.name for metric in WORKER_METRICS} | own <= set(re.findall(r"cml_(?:worker|exporter)_\w+", shown))


# -- the builder -------------------------------------------------------------------------------------------------------


def test_panels_are_placed_from_left_to_right_and_collapsed_ones_in_their_row() -> None:
    wide = Panel("?", 12, 8, {"title": "a"})
    dashboard = build.DASHBOARDS[0]
    made = render(type(dashboard)("u", "t", "d", [wide, wide, wide, Row("r", [wide]), Row("s")], variables=(), annotations=()))
    places = [tuple(item["gridPos"].values()) for item in made["panels"]]
    assert places == [(0, 0, 12, 8), (12, 0, 12, 8), (0, 8, 12, 8), (0, 16, 24, 1), (0, 25, 24, 1)]
    assert tuple(made["panels"][3]["panels"][0]["gridPos"].values()) == (0, 17, 12, 8)
    assert made["panels"][3]["collapsed"] is True
