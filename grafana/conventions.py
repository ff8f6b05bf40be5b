"""Units, colors, thresholds, variables, annotations, and links that the dashboards share."""

from collections.abc import Mapping
from dataclasses import replace

from exporter.core.catalog import INFO
from grafana.panels import Json, Panel, Style, annotation, choice, instant, mappings, stat, steps, variable
from grafana.promql import CODES, IN_REGION, SEVERITY_CODES, history_info, threshold

FLEET, WORKER, TRENDS, EXPORTER, ON_CALL = "cml-fleet", "cml-worker", "cml-trends", "cml-exporter", "cml-on-call"
"""The dashboards' uids: their address is /d/<uid>."""

TO_WORKER = f"/d/{WORKER}?${{datasource:queryparam}}&${{__url_time_range}}&var-region=$__all&var-worker_id="
"""The worker's id follows. With all regions, because the worker's region may not be selected on the linking dashboard."""
SERIES_LINK: Mapping[str, str] = {"Open this worker": TO_WORKER + "${__field.labels.worker_id:percentencode}"}

EC2_CONSOLE = (
    "https://${__field.labels.region}.console.aws.amazon.com/ec2/home?region=${__field.labels.region}"
    "#InstanceDetails:instanceId=${__field.labels.instance_id}"
)
"""Address of an instance; in China amazonaws.cn."""
CML_UI = "https://${__field.labels.worker:percentencode}"
"""Address of a worker's CML UI. The manager does not write it; this one holds where a worker's name is its host name."""
INSTANCE_LINKS: Mapping[str, str] = {"Open the EC2 console": EC2_CONSOLE, "Open the CML UI": CML_UI}

AMBER = "#b8860b"
"""Instead of yellow, which has too little contrast on white. Every color has a contrast of 3:1
to the light and to the dark background."""
COLORS: Mapping[str, str] = {
    "running": "green",
    "pending": "light-blue",
    "starting": "blue",
    "stopping": AMBER,
    "stopped": "dark-orange",
    "shutting-down": "light-purple",
    "terminated": "#8e8e8e",
    "failed": "red",
    "unknown": "#a0785a",
}
STATUS_TEXTS = {status: (status, color) for status, color in COLORS.items()}
GREY = "#8e8e8e"
UP_DOWN = {"1": ("up", "green"), "0": ("down", "red")}
NONE = -1
"""Value of what has none now, so that its tile stays: no gauge is below 0."""
NO_VALUE: Mapping[str, tuple[str, str]] = {str(NONE): ("–", GREY)}
COMPARED: Mapping[str, Json] = {
    name: {
        "color": {"mode": "fixed", "fixedColor": GREY},
        "custom.lineStyle": {"fill": "dash", "dash": dashes},
        "custom.fillOpacity": 0,
    }
    for name, dashes in (
        ("24 h average", [2, 6]),
        ("a week ago", [10, 10]),
        ("a week earlier", [10, 10]),
        ("week before", [10, 10]),
    )
}
"""Comparisons are grey and dashed, never in the color of a threshold; by the legend of their query."""
STATUS_CODES = {str(code): (status, COLORS[status]) for status, code in CODES.items()}
PAST_STATUS_CODES = {"0": ("not running", GREY), **STATUS_CODES}
"""Of the history by the hour, too, which knows no other status than running."""

BUSY = ((0.7, AMBER), (threshold("cpu_ratio"), "red"))
FULL = ((0.7, AMBER), (threshold("memory_ratio"), "red"))
DISK_FULL = ((0.8, AMBER), (threshold("disk_ratio"), "red"))
STALE = ((threshold("stale_seconds") / 2, AMBER), (threshold("stale_seconds"), "red"))
"""Seconds; the alert fires at the red threshold."""
LONG_IDLE = ((3600.0, AMBER), (4 * 3600.0, "red"))
"""Seconds; the alert fires at the red threshold."""

LABS = "Active labs are the labs of running workers as the manager counts them, stopped labs included."
NOTHING_LISTED = "No worker listed"
NO_HISTORY = "No history in this time range"
NO_HOURS_YET = "No whole hour yet"
"""Of a tile, which has no room for more; its description says which hours count."""
NO_HOURS = "No whole hour of history in this time range, or too many workers for one query: select fewer"
MISSING = Style("percentunit", "All hours", decimals=0, minimum=0, maximum=1, thresholds=((0.2, AMBER), (0.5, "red")))
"""Of a share of hours without data."""
HOURS = "suffix: h"
"""A unit of its own: Grafana's unit h makes weeks of many hours."""
RATIO = Style("percentunit", NOTHING_LISTED, minimum=0, maximum=1)
CPU_RATIO = replace(RATIO, thresholds=BUSY)
MEMORY_RATIO = replace(RATIO, thresholds=FULL)
COUNT = Style("none", NOTHING_LISTED, decimals=0, minimum=0)
SECONDS = Style("s", NOTHING_LISTED, minimum=0)
CLOCK = replace(SECONDS, unit="dtdhms")
"""For the axis of a graph: 3:00:00 instead of 2.78 or 3.33 hours."""

RATIO_CELL: Json = {"unit": "percentunit", "min": 0, "max": 1, "decimals": 0}
_BAR_CELL: Json = {**RATIO_CELL, "custom.displayMode": "gradient-gauge"}
CPU_CELL: Json = {**_BAR_CELL, "thresholds": steps(BUSY)}
FULL_CELL: Json = {**_BAR_CELL, "thresholds": steps(DISK_FULL)}
MEMORY_CELL: Json = {**_BAR_CELL, "thresholds": steps(FULL)}
IDLE_CELL: Json = {"unit": "s", "decimals": 0, "thresholds": steps(LONG_IDLE), "custom.displayMode": "color-background"}
SEVERITY_COLORS = {"critical": "red", "warning": "dark-orange", "info": "blue"}
SEVERITY_CELL: Json = {
    "mappings": mappings({severity: (severity, color) for severity, color in SEVERITY_COLORS.items()}),
    "custom.displayMode": "color-background",
}
SEVERITY_CODE_CELL: Json = {
    "mappings": mappings({str(code): (severity, SEVERITY_COLORS[severity]) for severity, code in SEVERITY_CODES.items()}),
    "custom.displayMode": "color-background",
}
TO_ON_CALL = f"/d/{ON_CALL}?${{datasource:queryparam}}&${{__url_time_range}}&var-alertname="
"""The alert's name follows; all regions and workers unless they follow, too."""
ALERT_LINK: Json = {
    "links": [
        {
            "title": "Show what it means and what to do",
            "url": TO_ON_CALL + "${__value.raw}",
            "targetBlank": False,
        }
    ]
}
"""Of a cell with the name of an alert."""
ON_CALL_LINK: Mapping[str, str] = {"Show what fires": f"/d/{ON_CALL}?${{datasource:queryparam}}&${{__url_time_range}}"}
MOMENT_CELL: Json = {"unit": "dateTimeFromNow"}
"""Expects milliseconds."""


def link_cell(title: str, url: str) -> Json:
    """Return the properties of a table cell with a link."""
    return {"links": [{"title": title, "url": url, "targetBlank": False}]}


ROW_LINK = link_cell("Open this worker", TO_WORKER + '${__data.fields["Worker id"]:percentencode}')
"""For tables that have a column `Worker id`."""


REGION = variable("region", "Region", "AWS regions that have workers.", f"label_values({INFO.name}, region)")


def history_region_variable() -> Json:
    """Return the variable of regions of all workers with history in the time range; Prometheus's own data covers only some."""
    query = f"query_result(count by (region) ({history_info('')} or last_over_time({INFO.name}[$__range])))"
    return variable("region", "Region", "AWS regions that had workers in the time range.", query, regex='/region="([^"]+)"/')


def history_worker_variable(*, several: bool) -> Json:
    """Return the variable of workers of the time range by name, including those that are gone; its value is the id.

    The variables for one and for several workers have different names: a link between dashboards keeps variables, and a
    dashboard of one worker cannot use "all".
    """
    infos = f"{history_info(IN_REGION)} or last_over_time({INFO.name}{{{IN_REGION}}}[$__range])"
    return variable(
        "workers" if several else "worker_id",
        "Workers" if several else "Worker",
        "Workers of the time range by name, including terminated ones.",
        f"query_result(max by (name, worker_id) ({infos}))",
        regex='/name="(?<text>[^"]+)|worker_id="(?<value>[^"]+)/g',
        several=several,
    )


def data_age(*, width: int, height: int = 4) -> Panel:
    """Return the panel of the age of the data: that of the source that was not read for longest."""
    return stat(
        "Age of the data",
        "How old are the values shown?",
        "Time since the last successful read, of the source and shard for which it is longest. Sources are read every 5 "
        "minutes. A source that was never read counts under Sources failing of Exporter health.",
        [instant("time() - min(cml_exporter:source_last_success_timestamp_seconds:min)")],
        replace(SECONDS, empty="Nothing read yet", thresholds=((450, AMBER), (900, "red"))),
        width=width,
        height=height,
    )


LINES = "3"
"""How many workers a graph has beside the mean; ten lines over a week are mud."""
MEAN: Mapping[str, Json] = {
    "mean of all": {"color": {"mode": "fixed", "fixedColor": GREY}, "custom.lineWidth": 3, "custom.fillOpacity": 10}
}
TOP = choice("top", "Show", "How many workers the rankings show.", ("5", "10", "20", "50"), "10")

JOB = "cml-worker-exporter"
"""The scrape job in prometheus/prometheus.yml."""
OF_EXPORTERS = "and on (job) cml_exporter:job:known"
"""Of series that other jobs have too: those of the exporters, whatever their job is called."""


def alerts(matcher: str = "") -> Json:
    """Return the annotation of firing alerts, each once for any number of workers; those without the label of `matcher` too."""
    mine = f',{matcher[:-1]}|"' if matcher else ""
    firing = f'ALERTS{{alertname=~"CML.+",alertstate="firing"{mine}}}'
    return annotation("Alerts", f"count by (alertname, severity) ({firing})", "{{alertname}}", "{{severity}}", "red")


RESTARTS = annotation(
    "Exporter restarts",
    f"1000 * max by (instance) (process_start_time_seconds {OF_EXPORTERS})",
    "The exporter was started",
    "{{instance}}",
    "dark-orange",
    at_value=True,
)
WORKER_STATUS = annotation(
    "Status changes",
    'max by (worker_id, status) (cml_worker:status:current{worker_id="$worker_id"} and on (worker_id, region) '
    'changes(cml_worker:status:code{worker_id="$worker_id"}[2m]) > 0)',
    "Now {{status}}",
    "{{worker_id}}",
    "blue",
)
