"""Writes what follows from the tables in code: docs/settings.md, metrics.md and http.md, and the manual page (`make docs`).

A test compares them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from exporter import cli
from exporter.commands import manual
from exporter.core.aws_settings import Role
from exporter.core.budget import UNLIMITED_DAY_DOLLARS
from exporter.core.catalog import EXPORTER_METRICS, WORKER_METRICS, Metric
from exporter.core.event_settings import EVENT_TYPES, EventFields
from exporter.core.history_metrics import HOURLY_METRICS, HourlyMetric
from exporter.core.history_settings import ForwardTarget
from exporter.core.metric_settings import UNITS, CloudWatchGauge
from exporter.core.periods import format_duration
from exporter.core.settings import CloudWatchSettings
from exporter.core.settings_loader import Setting, table
from exporter.core.workers_settings import ExtraMetric
from exporter.history.resources import SHARED_WINDOW_SECONDS
from exporter.sources.worker_documents import FIELDS
from exporter.web.compression import MIN_BYTES
from exporter.web.history_query import MAX_NAMED_WORKERS, MAX_POINTS
from exporter.web.openapi import ERRORS, Endpoint, template
from exporter.web.responses import PAGE_HEADERS
from exporter.web.routes import ROUTES

ROOT = Path(__file__).parents[2]
DEFAULT_SHARE = CloudWatchSettings().reader_budget_share
GENERATED = "<!-- Written by `make docs` from {source}; change it there. -->"

SETTINGS_INTRO = """\
# Settings

For operators: every setting with its default, and where it can be written.

Every setting can stand in a YAML file (`--config.file`), in the environment and on the command line. Flags win over the
environment, the environment wins over the file. Only the connection string of MongoDB is needed. Unknown keys and variables are
refused; all mistakes of a file are told at once, each with its line. A path in a file is relative to the folder of that file.

The dots of a key are the sections of the file: `mongodb.retention` is

```yaml
mongodb:
  retention: 60d
```

Durations are written as Prometheus writes them: `30s`, `5m`, `1h30m`, `30d`. In the environment and on the command line a list
is separated by commas or written as YAML, a mapping is YAML, and `null` unsets; an empty variable counts as not set. Give the
connection string by `uri_file` or by the environment: every user of the machine can read the flags of a process.
"""

ROLES_INTRO = """\
## `aws.roles`

One item for each account; [aws.md](aws.md) has the policies:

```yaml
aws:
  roles:
    - role_arn: arn:aws:iam::123456789012:role/metrics-reader
      external_id: from-its-trust-policy
      account: production
```
"""

GAUGES_INTRO = """\
## `cloudwatch.memory`

The CloudWatch agent publishes memory as `mem_used_percent` in `CWAgent`, by the dimension `InstanceId`. An agent with another
configuration, or another program, is told by these settings; its values must be percentages in use, and one of its dimensions
must hold the instance id. Gauge, history, gap filling, `backfill`, `verify`, `/resources`, `estimate`, and `check` use them.

```yaml
cloudwatch:
  memory: {namespace: Lab/Linux, metric: MemoryUsed, dimension: host}
```

## `cloudwatch.extra`

Further CloudWatch metrics as gauges with the labels `worker_id` and `region`; none by default. AWS bills each for every running
worker and cycle: `estimate` and the budget count them. They are not in the history. A stopped or terminated worker has none of
them, and a value older than `max_age` is not shown.

```yaml
cloudwatch:
  extra:
    - {namespace: CWAgent, metric: disk_used_percent, dimensions: {path: /}, name: cml_worker_root_disk_ratio, unit: percent,
       help: "Root file system in use, 0 to 1."}
    - {namespace: AWS/EC2, metric: StatusCheckFailed, statistic: Maximum, name: cml_worker_status_check_failed, unit: count,
       help: "Whether a status check of EC2 failed."}
    - {namespace: AWS/EC2, metric: CPUUtilization, statistic: p95, name: cml_worker_cpu_p95_ratio, unit: percent,
       help: "95th percentile of the CPU utilization of the newest period, 0 to 1."}
```

Which series of an instance counts: those that ListMetrics has listed in the last three hours with the instance in `dimension`
and with all of `dimensions`. If several are left, the
[rule for memory](sample-lifecycle.md#memory-under-several-dimension-sets) chooses one of them, so name as many `dimensions`
(`path`, `device`, `fstype`) as tell the series apart. Metrics of `AWS/EC2` without further dimensions are not listed: AWS
publishes them by `InstanceId` alone.
"""

UNITS_INTRO = """\
A unit decides how the name ends, and the factor by which values are multiplied:
"""

FORWARD_INTRO = """\
## `history.forward`

Databases that get a copy of every sample: [forward.md](forward.md).

```yaml
history:
  forward:
    - {type: victoriametrics, url: "http://127.0.0.1:8428"}
    - {type: influxdb, url_file: secrets/influxdb, name: influxdb}
```
"""

FIELDS_INTRO = """\
## `workers.fields`

The names of a field in a worker document, at top level or under `state`. The first one present wins, a null is not present;
names of `workers.fields` are tried before these, and dots in them go deeper. Dates may be BSON dates, ISO-8601 texts (without
an offset: UTC) or unix times in seconds or milliseconds.

```yaml
workers:
  fields:
    cpu: [metrics.cpu_pct]
```
"""

EXTRA_INTRO = """\
## `workers.extra`

Further fields of the worker documents as gauges with the labels `worker_id` and `region`: numbers, also as texts, booleans as
0 or 1, dates as unix seconds.

```yaml
workers:
  extra:
    - {metric: cml_worker_swap_used_bytes, field: metrics.swap_used, help: "Swap space in use."}
```
"""

PRICE_INTRO = """\
## `workers.hourly_price`

What an hour of an EC2 instance type costs you, in US dollars. Take the price that you pay: it differs by region, by savings
plan, and by what else you count (disks, licenses). The exporter knows no prices and queries none.

```yaml
workers:
  hourly_price: {m5zn.metal: 3.96, c5.4xlarge: 0.68}
```

Workers of a type that is named have the gauge `cml_worker_hourly_price_dollars`, and the page `/trends` says what their idle
hours cost. Workers of other types count in hours, not in dollars.
"""

EVENTS_INTRO = """\
## `events.types`

Which of the manager's events `import-events` reads, and which of their fields hold what. An entry adds a type, by its name as
the events hold it, or takes the place of a built-in one; what it does not name keeps the default. The first name present wins,
dots go deeper, and a name that begins with = is the value itself. Values are searched in the payload (`data`, `event` or
`payload`, else the document), `worker_id` and `time` also beside it. What they mean: [import-events.md](import-events.md).

```yaml
events:
  types:
    WorkerSampled: {cpu: [use.cpu_pct], time: [measured_at]}
```
"""

EVENT_TYPES_INTRO = """\
The built-in types, and what differs from these defaults:
"""

METRICS_INTRO = """\
# Metrics

For operators, and for authors of queries and alerts: what `/metrics` exposes, besides `process_*` and `python_info`. A value
that is not known is an absent series, never 0 and never NaN. Times are unix seconds. Labels of a released series never change.

A stopped or terminated worker has no labs, CPU, or memory from the moment its status says so, nor the times of those values.
A worker whose [document](manager.md#worker-documents) (the manager's aggregate) has no region has all its series, with
`region=""` (the same as no label in Prometheus); only CloudWatch is not queried for it.

`cml_worker_status` is nine series of each worker. With the [setting](settings.md) `metrics.status: code` there is one instead,
`cml_worker_status_code`. The recorded series `cml_worker:status:current` and `cml_worker:status:code` are the same in both
cases, and so are the results of all rules and dashboards of this repository; write queries of your own with these. The history
(`{store="history"}`) always has `cml_worker_status`.
"""

ROLLUPS_INTRO = """\
## Hourly aggregates of the history

Not on `/metrics`: Prometheus reads them from the exporter, for who asks by name and `{store="history"}`. Each whole hour with
samples is one value at the hour's **end**. They have the labels `worker_id` and `region`, the info series also those of
`cml_worker_info`. How to read them: [history.md](history.md).
"""

HTTP_INTRO = """\
# HTTP

For programs and dashboards that query the exporter: its routes, their parameters and their responses. All routes accept `GET`
and `HEAD` unless the table says otherwise; `/openapi.json` describes them for programs. Times are UTC, utilizations are
percent, and an unknown value is `null`, never 0.
"""

HISTORY_NOTES = f"""\
## A page of history

```json
{{
  "data": [
    {{"timestamp": "2026-01-31T12:00:00Z", "cpu_utilization": 45.2, "memory_utilization": null,
     "active_labs_count": 3, "status": "running"}}
  ],
  "next": null, "source": "mongodb", "resolution_seconds": 300, "interval_seconds": null,
  "segments": [{{"start": "2026-01-31T12:00:00Z", "source": "mongodb", "resolution_seconds": 300,
                "interval_seconds": null, "rows": 1}}],
  "worker": {{"worker_id": "w-1", "name": "lab 1", "region": "eu-west-1", "status": "terminated"}}
}}
```

Rows are sorted by time, oldest first. The timestamp of a sample is the start of its period; here `worker` is shortened. With
`interval` there is one row for each interval that has samples. The first one is that of `start`, with the samples from `start`
on: a `start` at the beginning of an interval makes it a whole one.

```json
{{"timestamp": "2026-01-31T00:00:00Z",
 "cpu_utilization": {{"avg": 31.7, "min": 2.1, "max": 98.0, "samples": 288}},
 "memory_utilization": {{"avg": null, "min": null, "max": null, "samples": 0}},
 "active_labs_count": {{"avg": 2.5, "min": 0, "max": 4, "samples": 288}},
 "status_share": {{"running": 0.75, "stopped": 0.25}}}}
```

- **Pages.** If `next` is not null, request the next page with `cursor=` and its value; `limit` and `format` may change. The
  first page fixes the end of the range, so samples that are written later do not shift the pages. A range may have at most
  {MAX_POINTS:,} rows.
- **Beyond MongoDB's retention** rows come from CloudWatch, from the instances that the worker ran on, at the resolution that
  CloudWatch still has: 60 s for 15 days, 5 minutes for 63 days, an hour for 455 days, never finer than `period`. `segments`
  says which rows of the page have which source and resolution, oldest first; no row combines two. `source` is theirs, or
  `mixed`; `resolution_seconds` and `interval_seconds` are the greatest of them. 30 days of five minutes are 8,640 rows, so one
  page with `limit=10000`, also where the range crosses two sources. CloudWatch has neither status nor labs. The memory of
  an instance that ended more than two weeks ago is found only if its agent published with one dimension alone, that of the
  instance (`cloudwatch.memory.dimension`), because CloudWatch no longer lists other dimensions. Results are cached, so
  drawing a chart again costs nothing.
- **For a chart**, `format=columns` has `columns` in place of `data`: an array for each field, all of the same length, with the
  names of the CSV, and `unix_seconds` beside `timestamp`. The share of the status `shutting-down` is
  `status_share_shutting_down`. With `fill=null` there is a row for every period or interval, so that a gap is a gap in the
  line, and values of several workers have the same times. The newest row may be of a period that has no sample yet.
- **Beside an earlier range.** `compare=1w` adds the row a week before to each row (`earlier`), or columns that begin with
  `earlier_`; any multiple of the interval will do. With `tz`, local days are compared with local days. Where CloudWatch has the
  earlier range at a coarser resolution, its row is beside the one in which it begins.
- **Terminated workers** have the name and the dates of the inventory, also after the manager has deleted them.
- **CSV** (RFC 4180, with a header line, empty fields for missing values) is returned for `Accept: text/csv` or `format=csv`. If
  `text/csv` and `application/json` have equal weights, the response is JSON. A text that begins with `=`, `+`, `-`, `@`, a tab
  or a carriage return (the name of a worker, say) has an apostrophe before it, so that a spreadsheet does not run it as a
  formula; numbers stay as they are. With CSV the rest of the page is in headers:

{{headers}}
"""

FLEET_HISTORY_NOTES = f"""\
## Many workers

`/api/metrics/history` takes `worker` for each of up to {MAX_NAMED_WORKERS} workers, by id or name, or `region`, or neither for
all workers, also those that have left the fleet; and otherwise the parameters of one worker's history. An unknown worker is a
404 that names it. Without rows and shortened, a page is

```json
{{
  "data": [
    {{"data": [], "source": "mongodb", "segments": [], "worker": {{"worker_id": "w-1"}}}},
    {{"data": [], "source": "mongodb", "segments": [], "worker": {{"worker_id": "w-2"}}}}
  ],
  "next": null
}}
```

Each item of `data` is a page of one worker without `next`, sorted by id. `limit` counts the rows of all workers together; a
page ends after it, or after {MAX_NAMED_WORKERS} workers, and the next one continues with the worker in which it ended. CSV has
the columns `worker_id` and `name` before the others.
"""

RESOURCES_NOTES = f"""\
## Resources

```json
{{
  "id": "i-0123456789abcdef0", "region_name": "eu-west-1", "relative_start_time": "5m",
  "avg_cpu_utilization": "45.2", "avg_memory_utilization": "61.0",
  "start_time": "2026-01-31T12:00:00Z", "end_time": "2026-01-31T12:05:00Z"
}}
```

The averages are those of whole periods (`period`), at least one, so `30s` and `1m` are one period of 5 minutes by default.

- **Newest published periods.** CloudWatch publishes a datapoint 1 to 3 minutes after its period, at times later. So the range
  ends with the newest period that has been published for both metrics, or for the only one there is. `start_time` and
  `end_time` are the range that was averaged, `relative_start_time` is `start_time` as requested.
- **`null`** means that CloudWatch has no datapoint in that range. While a datapoint is at most `max_age` old (the same limit as
  for the gauges), its metric is never `null`: if one has fresh datapoints only after the other one, the range is extended to
  the first of them. If no datapoint is that fresh (the worker is stopped, say), the range ends with the last period.
- **Memory** comes from the same series as the gauge and the history
  ([sample-lifecycle.md](sample-lifecycle.md#memory-under-several-dimension-sets)).
- **Cost.** A result is cached for a minute; ranges up to {format_duration(SHARED_WINDOW_SECONDS)} share one query, two metrics.
  What all clients together may spend a day, here and on history pages from CloudWatch, is a share of the budget
  (`cloudwatch.reader_budget_share`, {DEFAULT_SHARE:.0%} by default). Without a budget it is
  {DEFAULT_SHARE * UNLIMITED_DAY_DOLLARS:g} dollar, which pays for 34 workers that a client reads once a minute all day.
  Beyond it these requests are answered with 429 and a `Retry-After` that ends at 00:00 UTC; what is cached is still
  served. Polling, gauges, and history are not affected.
"""

TRANSFER_NOTES = f"""\
## Compression and caches

- **Compression.** Data and pages from {MIN_BYTES:,} bytes on are compressed with zstd or gzip, as `Accept-Encoding` weighs
  them; of two with equal weights it is zstd. `/metrics` has gzip.
- **Caches.** Data and errors are `Cache-Control: no-store`. A browser may keep a chart for 30 seconds and files of pages,
  by the address with their version, for a year, and asks again for pages (`ETag`).
- **Browsers** neither guess a media type (`nosniff`) nor send a `Referer`, and show no response within a frame of another page
  (`frame-ancestors`). Charts can be embedded anywhere by `<img>`. The file of [web.md](web.md) may set other headers for data.
"""

CLIENT_NOTES = """\
## A client

`/openapi.json` has a tag for each group of routes, names for operations and bodies, and examples. With
[openapi-python-client](https://github.com/openapi-generators/openapi-python-client) it becomes a Python package with types; the
file tells the generator of two media types that it does not know:

```console
$ cat > client.yml <<END
content_type_overrides:
  image/svg+xml: text/plain
  application/x-protobuf: application/octet-stream
END
$ openapi-python-client generate --url http://127.0.0.1:9877/openapi.json --config client.yml
```

```python
from cml_worker_metrics_client import Client
from cml_worker_metrics_client.api.history import get_fleet_history

with Client(base_url="http://127.0.0.1:9877") as client:
    page = get_fleet_history.sync(client=client, region=["eu-west-1"], start="-7d", interval="1h", percentiles=True)
    print(page.data[0].worker.name, page.data[0].data[0].cpu_utilization.p95)
```

An error is a `Problem` in place of the page. The client's functions read JSON only; for CSV there is
`client.get_httpx_client()`.
"""

ERRORS_INTRO = """\
## Errors

Errors are `application/problem+json` (RFC 9457); `detail` says what to do.
"""


def settings_page() -> str:
    """docs/settings.md."""
    return _page(
        "the models in `exporter/core/settings.py`",
        SETTINGS_INTRO,
        _rows(
            ("key", "default", "what it is", "environment", "flag"),
            ((f"`{row.key}`", _default(row), row.description, f"`{row.env}`", f"`{row.flag}`") for row in table()),
        ),
        ROLES_INTRO,
        _rows(("key", "default", "what it is"), _keys(Role)),
        GAUGES_INTRO,
        _rows(("key", "default", "what it is"), _keys(CloudWatchGauge)),
        UNITS_INTRO,
        _rows(
            ("unit", "the name ends in", "factor"),
            ((f"`{unit}`", f"`{end}`" if end else "–", f"{by:g}") for unit, (end, by) in UNITS.items()),
        ),
        FIELDS_INTRO,
        _rows(
            ("meaning", "names, in the order of looking"),
            ((f"`{meaning}`", _names(names)) for meaning, names in FIELDS.items()),
        ),
        EXTRA_INTRO,
        _rows(("key", "default", "what it is"), _keys(ExtraMetric)),
        PRICE_INTRO,
        FORWARD_INTRO,
        _rows(("key", "default", "what it is"), _keys(ForwardTarget)),
        EVENTS_INTRO,
        _rows(
            ("key", "default", "what it is"),
            ((f"`{name}`", _names(info.default), info.description or "") for name, info in EventFields.model_fields.items()),
        ),
        EVENT_TYPES_INTRO,
        _rows(
            ("type", "fields"),
            (
                (f"`{name}`", "; ".join(f"`{key}`: {_names(names)}" for key, names in fields.items()) or "the defaults")
                for name, fields in EVENT_TYPES.items()
            ),
        ),
    )


def metrics_page() -> str:
    """docs/metrics.md."""
    return _page(
        "`exporter/core/catalog.py` and `exporter/history/series.py`",
        METRICS_INTRO,
        "## Workers\n",
        _metrics(WORKER_METRICS),
        "Those of `workers.extra` and `cloudwatch.extra` follow (docs/settings.md).\n",
        "## The exporter itself\n",
        _metrics(EXPORTER_METRICS),
        ROLLUPS_INTRO,
        _rows(("series", "what it is"), ((f"`{_series(each)}`", each.help) for each in HOURLY_METRICS)),
    )


def _series(metric: HourlyMetric) -> str:
    if metric.label is None:
        return metric.name
    label, value = metric.label
    return f'{metric.name}{{{label}="{value}"}}'


def http_page() -> str:
    """docs/http.md."""
    detailed = [endpoint for endpoint in ROUTES if endpoint.parameters]
    return _page(
        "`ROUTES` in `exporter/web/routes.py`",
        HTTP_INTRO,
        _rows(
            ("route", "response", "media type"),
            ((_paths(each), each.description, ", ".join(f"`{kind}`" for kind in each.response.content)) for each in ROUTES),
        ),
        *(part for endpoint in detailed for part in _route(endpoint)),
        HISTORY_NOTES.replace(
            "{headers}", _rows(("header", "description"), ((f"`{name}`", text) for name, text in PAGE_HEADERS.items()))
        ).rstrip("\n")
        + "\n",
        FLEET_HISTORY_NOTES,
        RESOURCES_NOTES,
        TRANSFER_NOTES,
        CLIENT_NOTES,
        ERRORS_INTRO,
        _rows(("code", "meaning"), ((str(code), text) for code, text in ERRORS.items())),
    )


def _paths(endpoint: Endpoint) -> str:
    method = "" if endpoint.method == "GET" else f"{endpoint.method} "
    return ", also ".join(f"`{method}{template(path)}`" for path in (endpoint.path, endpoint.also) if path)


def _route(endpoint: Endpoint) -> tuple[str, str]:
    parameters = ((f"`{each.name}`", each.description) for each in endpoint.parameters)
    return f"## `{endpoint.template}`\n", _rows(("parameter", "description"), parameters)


def manual_page() -> str:
    """Return the manual page, as the command `manual` prints it: a wheel is built without the packages the parsers need."""
    return manual.page(*cli.parser_of("*"))


PAGES: dict[str, Callable[[], str]] = {
    "docs/settings.md": settings_page,
    "docs/metrics.md": metrics_page,
    "docs/http.md": http_page,
    "man/cml-worker-exporter.1": manual_page,
}
"""Path in the repository → what the file must hold."""


def _page(source: str, *parts: str) -> str:
    title, rest = parts[0].split("\n", 1)
    return "\n".join((title, "", GENERATED.format(source=source) + "\n" + rest, *parts[1:]))


def _metrics(metrics: Sequence[Metric]) -> str:
    return _rows(
        ("name", "type", "unit", "labels", "what it says", "source"),
        (
            (f"`{m.name}`", m.kind, m.unit or "–", ", ".join(f"`{label}`" for label in m.labels) or "–", m.help, m.source)
            for m in metrics
        ),
    )


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _default(row: Setting) -> str:
    if row.default is None or row.default in ([], {}):
        return "none"
    if isinstance(row.default, bool):
        return f"`{str(row.default).lower()}`"
    return f"`{','.join(row.default)}`" if isinstance(row.default, list) else f"`{row.default}`"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    for name, info in model.model_fields.items():
        yield f"`{name}`", "needed" if info.is_required() else "none", info.description or ""


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (ROOT / name).write_text(page())


if __name__ == "__main__":
    main()
