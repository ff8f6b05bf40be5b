"""Builders of Grafana JSON: panels, variables, annotations, and the grid, in the schema that Grafana 9.1 and 12 both read.

This module names no metric. Every panel answers a question and has a description, a unit, and a text for "no data".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 37
"""The schema of Grafana 9.1; later versions migrate it when they load it."""
TAG = "cml"
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
"""The width of Grafana's grid."""

Thresholds = Sequence[tuple[float, str]]
"""(from this value on, color); green below the first one."""


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL query of a panel.

    Attributes:
        legend: with labels as {{label}}.
        instant: query the newest value only, not the range.
        interval: the minimum step, such as "5m". Grafana takes it for the scrape interval, too, so a query with
            `$__rate_interval` must not have one: give it to the graph.
    """

    expr: str
    legend: str = ""
    instant: bool = False
    interval: str | None = None


def instant(expr: str, legend: str = "") -> Query:
    """Return a query for the newest value only."""
    return Query(expr, legend, instant=True)


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel, the question it answers (for docs/dashboards.md), and its size in the grid; `body` has no id and position."""

    question: str
    width: int
    height: int
    body: Json


@dataclass(frozen=True, slots=True)
class Row:
    """A heading; a collapsed row contains its panels."""

    title: str
    collapsed: Sequence[Panel] = ()


@dataclass(frozen=True, slots=True)
class Dashboard:
    """The input of `render`. With an empty `refresh` the dashboard does not refresh automatically."""

    uid: str
    title: str
    description: str
    items: Sequence[Panel | Row]
    variables: Sequence[Json]
    annotations: Sequence[Json]
    time_from: str = "now-6h"
    refresh: str = "1m"

    @property
    def panels(self) -> list[Panel]:
        """All panels, including those of collapsed rows."""
        return [
            panel for item in self.items for panel in ([item] if isinstance(item, Panel) else item.collapsed)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """How the values of a panel look, and the text for "no data".

    Attributes:
        unit: one of Grafana's, such as "percentunit".
        empty: text shown if there are no values.
        mappings: text and color for values, by value.
        links: links of each value, title → address.
        fixed: overrides of columns of a table or series of a graph: name → properties.
    """

    unit: str
    empty: str = "No data"
    decimals: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    thresholds: Thresholds = ()
    mappings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_ONE_VALUE = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_BELOW = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": ["lastNotNull"]}
_SIDE = {"showLegend": True, "displayMode": "table", "placement": "right", "calcs": ["lastNotNull"], "width": 160}
"""A legend of a line per series, each with one number, so that ten fit beside a graph."""
_TIP = {"mode": "multi", "sort": "desc"}


def stat(
    title: str, question: str, description: str, queries: Sequence[Query], style: Style, *, width: int, height: int = 4
) -> Panel:
    """Return a panel with the newest value of each query."""
    options = {
        "reduceOptions": _ONE_VALUE,
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        # By itself Grafana drops the name when one value is left, as if it were the first query's.
        "textMode": "value_and_name" if len(queries) > 1 else "auto",
    }
    return _panel("stat", title, question, description, queries, style, width, height, options=options)


def name_stat(
    title: str, question: str, description: str, queries: Sequence[Query], style: Style, *, width: int, height: int = 4
) -> Panel:
    """Return a panel with the name of each series; for series whose value is always 1."""
    panel = stat(title, question, description, queries, style, width=width, height=height)
    panel.body["options"]["textMode"] = "name"
    return panel


def bars(title: str, question: str, description: str, query: Query, style: Style, *, width: int, height: int = 8) -> Panel:
    """Return a panel with a bar for each series of one query."""
    options = {
        "reduceOptions": _ONE_VALUE,
        "displayMode": "gradient",
        "orientation": "horizontal",
        "showUnfilled": True,
        "minVizHeight": 10,
        "minVizWidth": 0,
    }
    return _panel("bargauge", title, question, description, [query], style, width, height, options=options)


def graph(
    title: str,
    question: str,
    description: str,
    queries: Sequence[Query],
    style: Style,
    *,
    width: int = 12,
    height: int = 8,
    columns: bool = False,
    stacked: bool = False,
    interval: str | None = None,
) -> Panel:
    """Return a graph over time: lines, or columns for counts per interval; `interval` is the minimum step of all queries."""
    several = any("{{" in query.legend for query in queries)
    custom = {
        "drawStyle": "bars" if columns else "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        # Filled lines of several series are mud.
        "fillOpacity": 60 if columns or stacked else 0 if several else 5,
        "barAlignment": -1,  # a column stands for the interval that ends at its time
        "axisSoftMax": _soft_maximum(style),
        "pointSize": 4,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "axisPlacement": "auto",
        "axisLabel": "",
        "scaleDistribution": {"type": "linear"},
        "thresholdsStyle": {"mode": "line" if style.thresholds else "off"},
    }
    options = {
        "legend": _SIDE if several and width >= 12 else _BELOW,
        "tooltip": _TIP,
    }
    panel = _panel("timeseries", title, question, description, queries, style, width, height, options=options, custom=custom)
    panel.body["fieldConfig"]["defaults"]["color"] = {"mode": "palette-classic"}
    if interval:
        panel.body["interval"] = interval
    return panel


def _soft_maximum(style: Style) -> float:
    """Return the least maximum of the axis, so that a line of zeros lies at the bottom and not in the middle of nothing."""
    if style.unit == "none":
        return 4 if style.decimals == 0 else 1
    return {"percentunit": 1, "dtdhms": 300, "currencyUSD": 0.01, "bytes": 1024, "Bps": 1024}.get(style.unit, 1)


def timeline(
    title: str, question: str, description: str, query: Query, style: Style, *, width: int = 24, height: int = 8
) -> Panel:
    """Return a state timeline: a strip per series, colored by its value."""
    options = {
        "mergeValues": True,
        "showValue": "never",
        "rowHeight": 0.85,
        "alignValue": "left",
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    custom = {"lineWidth": 0, "fillOpacity": 80}
    panel = _panel(
        "state-timeline", title, question, description, [query], style, width, height, options=options, custom=custom
    )
    # With colors by threshold Grafana would merge all values of one step and ignore the mappings.
    panel.body["fieldConfig"]["defaults"]["color"] = {"mode": "fixed", "fixedColor": "blue"}
    # The text for an empty panel would be a state of the legend wherever a strip has a gap.
    no_text = {"matcher": {"id": "byRegexp", "options": "/.*/"}, "properties": [{"id": "noValue", "value": ""}]}
    panel.body["fieldConfig"]["overrides"].append(no_text)
    return panel


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: Grafana's field name (a label, or the value of a query), heading, and cell properties."""

    name: str
    heading: str
    properties: Mapping[str, Any] = field(default_factory=dict)


def heading_width(heading: str) -> int:
    """Return the pixels of a heading with its funnel and arrow, by the usual width of a letter of Grafana's tables."""
    return max(60, 7 * len(heading) + 24)


def table(
    title: str,
    question: str,
    description: str,
    queries: Sequence[Query],
    columns: Sequence[Column],
    style: Style,
    *,
    sort: str,
    width: int = 24,
    height: int = 10,
) -> Panel:
    """Return a table of instant queries, joined by their common labels; only `columns` are shown, in that order.

    The field of query A is "Value #A", or "Value" when it is the only one.
    """
    shown = {column.name for column in columns}
    hidden = {name: True for name in ("Time", "__name__", *_values(queries)) if name not in shown}
    organize = {
        "excludeByName": hidden,
        "indexByName": {column.name: index for index, column in enumerate(columns)},
        "renameByName": {column.name: column.heading for column in columns},
    }
    merge = [{"id": "merge", "options": {}}] if len(queries) > 1 else []
    options = {"showHeader": True, "sortBy": [{"displayName": sort, "desc": True}]}
    # An empty cell shows a dash; otherwise it would show the text for an empty panel.
    fixed = {
        **{
            each.heading: {"noValue": "–", "custom.minWidth": heading_width(each.heading), **each.properties}
            for each in columns
        },
        **style.fixed,
    }
    # By itself a column is at least 150 pixels wide, so that half of a screen holds six.
    custom = {"align": "auto", "displayMode": "auto", "filterable": True, "minWidth": 60}
    body = _panel(
        "table", title, question, description, queries, style, width, height, options=options, custom=custom, fixed=fixed
    )
    body.body["transformations"] = [*merge, {"id": "organize", "options": organize}]
    for target in body.body["targets"]:
        target["format"] = "table"
    return body


def facts(
    title: str,
    question: str,
    description: str,
    query: Query,
    names: Mapping[str, str],
    style: Style,
    *,
    width: int,
    height: int,
) -> Panel:
    """Return a table of two columns, name and value: the labels of one series, in the order of `names` (label → shown name)."""
    named = {"mappings": [{"type": "value", "options": {label: {"text": text} for label, text in names.items()}}]}
    options = {"showHeader": False}
    fixed: dict[str, Json] = {"label": named, "value": {"noValue": "–"}}
    custom = {"align": "left", "displayMode": "auto", "filterable": False}
    panel = _panel(
        "table", title, question, description, [query], style, width, height, options=options, custom=custom, fixed=fixed
    )
    panel.body["transformations"] = [{"id": "labelsToFields", "options": {"mode": "rows", "keepLabels": list(names)}}]
    return panel


def _values(queries: Sequence[Query]) -> list[str]:
    return ["Value"] if len(queries) == 1 else [f"Value #{letter}" for letter, _ in _lettered(queries)]


def _lettered(queries: Sequence[Query]) -> Iterable[tuple[str, Query]]:
    return zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", queries, strict=False)


def _panel(
    kind: str,
    title: str,
    question: str,
    description: str,
    queries: Sequence[Query],
    style: Style,
    width: int,
    height: int,
    *,
    options: Json,
    custom: Json | None = None,
    fixed: Mapping[str, Mapping[str, Any]] | None = None,
) -> Panel:
    defaults: Json = {
        "unit": style.unit,
        "noValue": style.empty,
        "color": {"mode": "thresholds"},
        "thresholds": steps(style.thresholds),
        "mappings": mappings(style.mappings),
        "links": [link(name, url) for name, url in style.links.items()],
    }
    for key, value in (("decimals", style.decimals), ("min", style.minimum), ("max", style.maximum), ("custom", custom)):
        if value is not None:
            defaults[key] = value
    body: Json = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [_target(letter, query) for letter, query in _lettered(queries)],
        "fieldConfig": {"defaults": defaults, "overrides": _overrides(style.fixed if fixed is None else fixed)},
        "options": options,
        "transformations": [],
        "links": [],
        "transparent": False,
    }
    return Panel(question, width, height, body)


def _target(letter: str, query: Query) -> Json:
    target: Json = {
        "refId": letter,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "instant": query.instant,
        "range": not query.instant,
        "exemplar": False,
        "format": "time_series",
    }
    return target | ({"interval": query.interval} if query.interval else {})


def steps(thresholds: Thresholds) -> Json:
    """Return colors by value: green below the first threshold; blue without thresholds."""
    rest = [{"color": color, "value": value} for value, color in thresholds]
    return {"mode": "absolute", "steps": [{"color": "green" if rest else "blue", "value": None}, *rest]}


def mappings(texts: Mapping[str, tuple[str, str]]) -> list[Json]:
    """Return mappings from values to text and color."""
    options = {
        value: {"text": text, "color": color, "index": index} for index, (value, (text, color)) in enumerate(texts.items())
    }
    return [{"type": "value", "options": options}] if options else []


def link(title: str, url: str) -> Json:
    """Return a link of a value."""
    return {"title": title, "url": url, "targetBlank": False}


def _overrides(fixed: Mapping[str, Mapping[str, Any]]) -> list[Json]:
    return [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": key, "value": value} for key, value in properties.items()],
        }
        for name, properties in fixed.items()
    ]


# -- variables and annotations -----------------------------------------------------------------------------------------

DATASOURCE_VARIABLE: Json = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "description": "The Prometheus that scrapes the exporter.",
    "query": "prometheus",
    "regex": "",
    "refresh": 1,
    "hide": 0,
    "multi": False,
    "includeAll": False,
    "options": [],
    "current": {},
    "skipUrlSync": False,
}

ALL = "$__all"


def variable(
    name: str,
    label: str,
    description: str,
    query: str,
    *,
    regex: str = "",
    several: bool = True,
    everything: str | None = ".*",
) -> Json:
    """Return a variable filled by a query at each change of the time range; `several` allows several values and "all".

    `everything` is the value of "all"; None means the values that the query finds, of which there must be few.
    """
    made: Json = {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "definition": query,
        "regex": regex,
        "refresh": 2,
        "sort": 5,
        "multi": several,
        "includeAll": several,
        "hide": 0,
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": [ALL]} if several else {},
        "skipUrlSync": False,
    }
    return made | ({"allValue": everything} if several and everything else {})


def choice(name: str, label: str, description: str, values: Sequence[str], default: str) -> Json:
    """Return a variable with fixed values."""
    return {
        "type": "custom",
        "name": name,
        "label": label,
        "description": description,
        "query": ",".join(values),
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "options": [{"text": value, "value": value, "selected": value == default} for value in values],
        "current": {"selected": True, "text": default, "value": default},
        "skipUrlSync": False,
    }


def choices(name: str, label: str, description: str, values: Sequence[str]) -> Json:
    """Return a variable with fixed values of which several, or all, can be chosen."""
    made = choice(name, label, description, values, "")
    everything = {"selected": True, "text": ["All"], "value": [ALL]}
    return made | {"multi": True, "includeAll": True, "allValue": ".*", "current": everything}


def annotation(name: str, expr: str, title: str, text: str, color: str, *, at_value: bool = False) -> Json:
    """Return marks on all graphs where the query has a value; with `at_value` at the time (milliseconds) that is the value."""
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": expr,
        "step": "60s",
        "titleFormat": title,
        "textFormat": text,
        "tagKeys": "",
        "useValueForTime": at_value,
        "target": {"refId": name, "expr": expr, "interval": "60s", "legendFormat": title, "range": True, "instant": False},
    }


_BUILT_IN: Json = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}


# -- dashboard --------------------------------------------------------------------------------------------------------


def render(dashboard: Dashboard) -> Json:
    """Return the dashboard as Grafana's JSON model."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "liveNow": False,
        "timezone": "",
        "timepicker": {},
        "time": {"from": dashboard.time_from, "to": "now"},
        "refresh": dashboard.refresh,
        "links": [
            {
                "type": "dashboards",
                "title": "CML dashboards",
                "tooltip": "The other dashboards, for the same time range",
                "tags": [TAG],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "url": "",
            }
        ],
        "annotations": {"list": [_BUILT_IN, *dashboard.annotations]},
        "templating": {"list": [DATASOURCE_VARIABLE, *dashboard.variables]},
        "panels": _placed(dashboard.items),
    }


def _placed(items: Sequence[Panel | Row]) -> list[Json]:
    """Give every panel an id and a position: from left to right, in a new line when the width is used up."""
    grid = _Grid()
    placed: list[Json] = []
    for item in items:
        if isinstance(item, Panel):
            placed.append(grid.place(item.body, item.width, item.height))
            continue
        heading: Json = {"type": "row", "title": item.title, "collapsed": bool(item.collapsed), "panels": []}
        placed.append(grid.place(heading, COLUMNS, 1))
        heading = placed[-1]
        heading["panels"] = [grid.place(panel.body, panel.width, panel.height) for panel in item.collapsed]
    return placed


class _Grid:
    """The next free position and id."""

    def __init__(self) -> None:
        self._x = self._y = self._height = self._id = 0

    def place(self, body: Json, width: int, height: int) -> Json:
        if self._x + width > COLUMNS:
            self._x, self._y, self._height = 0, self._y + self._height, 0
        self._id += 1
        placed = {"id": self._id, "gridPos": {"x": self._x, "y": self._y, "w": width, "h": height}, **body}
        self._x, self._height = self._x + width, max(self._height, height)
        return placed
