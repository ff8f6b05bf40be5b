"""Writes docs/settings.md and docs/metrics.md from the tables in code (`make docs`); a test compares them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from exporter.catalog import EXPORTER_METRICS, WORKER_METRICS, Metric
from exporter.config import ExtraGauge, Role, Setting, table
from exporter.workers import FIELDS

DOCS = Path(__file__).parents[1] / "docs"
GENERATED = "<!-- Written by `make docs` from {source}; change it there. -->"

SETTINGS_INTRO = """\
# Settings

Every setting can stand in a YAML file (`--config.file`), in the environment and on the command line. Flags win over the
environment, the environment wins over the file. Only the connection string of MongoDB is needed. Unknown keys and variables are
refused.

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

One item for each role, at most one at present:

```yaml
aws:
  roles:
    - role_arn: arn:aws:iam::123456789012:role/metrics-reader
      external_id: from-its-trust-policy
```
"""

FIELDS_INTRO = """\
## `workers.fields`

The names of a field in an aggregate, at top level or under `state`. The first one present wins, a null is not present; names of
`workers.fields` are tried before these, and dots in them go deeper. Dates may be BSON dates, ISO-8601 texts (without an offset:
UTC) or unix times in seconds or milliseconds.

```yaml
workers:
  fields:
    cpu: [metrics.cpu_pct]
```
"""

EXTRA_INTRO = """\
## `workers.extra`

Further fields of the aggregates as gauges with the labels `worker_id` and `region`: numbers, also as texts, booleans as 0 or 1,
dates as unix seconds.

```yaml
workers:
  extra:
    - {metric: cml_worker_disk_utilization_ratio, field: metrics.disk, help: "Disk in use, 0 to 1."}
```
"""

METRICS_INTRO = """\
# Metrics

What `/metrics` exposes, besides `process_*` and `python_info`. A value that is not known is an absent series, never 0 and never
NaN. Times are unix seconds. Labels of a released series never change.
"""


def settings_page() -> str:
    """docs/settings.md."""
    return _page(
        "the models in `exporter/config.py`",
        SETTINGS_INTRO,
        _rows(
            ("key", "default", "what it is", "environment", "flag"),
            ((f"`{row.key}`", _default(row), row.description, f"`{row.env}`", f"`{row.flag}`") for row in table()),
        ),
        ROLES_INTRO,
        _rows(("key", "default", "what it is"), _keys(Role)),
        FIELDS_INTRO,
        _rows(
            ("meaning", "names, in the order of looking"),
            ((f"`{meaning}`", ", ".join(f"`{name}`" for name in names)) for meaning, names in FIELDS.items()),
        ),
        EXTRA_INTRO,
        _rows(("key", "default", "what it is"), _keys(ExtraGauge)),
    )


def metrics_page() -> str:
    """docs/metrics.md."""
    return _page(
        "`exporter/catalog.py`",
        METRICS_INTRO,
        "## Workers\n",
        _metrics(WORKER_METRICS),
        "Those of `workers.extra` follow (docs/settings.md).\n",
        "## The exporter itself\n",
        _metrics(EXPORTER_METRICS),
    )


PAGES: dict[str, Callable[[], str]] = {"settings.md": settings_page, "metrics.md": metrics_page}
"""File name below docs/ → what it must hold."""


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


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    for name, info in model.model_fields.items():
        yield f"`{name}`", "needed" if info.is_required() else "none", info.description or ""


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
