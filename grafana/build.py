"""Write grafana/dashboards/*.json and docs/dashboards.md (`make dashboards`); a test compares them."""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from grafana import fleet, health, on_call, trends, worker
from grafana.panels import Dashboard, Panel, render

ROOT = Path(__file__).parents[1]
DASHBOARDS: tuple[Dashboard, ...] = (
    on_call.DASHBOARD,
    fleet.DASHBOARD,
    worker.DASHBOARD,
    trends.DASHBOARD,
    health.DASHBOARD,
)

_INTRO = """\
# Dashboards

<!-- Written by `make dashboards` from `grafana/`; change it there. -->

For users of the Grafana dashboards, and for authors of new panels: which panel answers which question, by which query.

There are five dashboards, the same files for Grafana 9.1 to 12 (checked against the schema of 10.4), in `grafana/dashboards/`.
`docker compose up` provisions them. Elsewhere import the files and choose the Prometheus that scrapes the exporter.

- Values of *now* come from `/metrics`. Averages, last week's values, and workers that are gone come from the history, which
  Prometheus reads from the exporter (`{store="history"}`, `remote_read` in `prometheus/prometheus.yml`). Idle workers,
  numbers of statuses, values of running workers, counts by region, lists of workers by name, and alert thresholds come from
  `prometheus/rules/`, which record them once a minute, what fills up or has changed every two minutes, and alerts that fire
  every 15 seconds. What a graph shows of the workers' past does not depend on a rule that came with an upgrade.
- Counts of *Exporter health* (errors, requests, billed metrics, samples) are sums of what each counter rose by in each minute
  (`cml_exporter:…:increase1m`), of all exporters. They are whole and exact, also where Prometheus misses evaluations: an
  `increase` over an interval would extrapolate, and miss what is counted between two intervals or before the first scrape.
- Graphs show the first three workers by their average in the time range and the mean of all, rankings the first few (variable
  *Show*), never all of a large fleet. Numbers of the fleet include all workers.
- *Trends* reads [hourly aggregates](history.md#hourly-aggregates-weeks-and-months-of-a-large-fleet)
  (`cml_worker:…:avg1h{store="history"}` and similar). They do not include the current hour, and one query reads at most a month
  of 1,250 workers. The exporter caches them. With 1,000 workers and a period of 5 minutes, the first query of a week took 5 to
  8 seconds on two cores shared by MongoDB, Prometheus, and the exporter, a month 17 to 33; later queries took 0.2 seconds for a
  week and 0.8 for a month.
- *Fleet overview* reads hourly aggregates, too, for time that this Prometheus does not know, for the hour before each point.
- Alerts link to *On call* with their labels, and to the runbook. Record the addresses of both in a
  [file of your own](prometheus.md#links-in-alerts).
- Add `?kiosk` to an address for a screen on the wall: no panel needs the bar of variables. Grafana's public dashboards refuse
  panels with variables: `python -m grafana.public --datasource UID FOLDER` writes copies without, for all regions and workers.
  *Worker detail* has none, because its variable chooses the worker. The copies have no links and no marks of alerts.
- `python -m bench.panels` measures every panel of a fleet of 1,000 workers: its queries' length, time, and CPU seconds. With
  24 hours, and a week for *Trends*, no panel took more than 1.6 seconds on two cores that MongoDB, Prometheus, and the
  exporter share. Opened as a whole, *Fleet overview* took 3 seconds; *Trends* with 14 days of history took 9.2 to 9.9 while
  the exporter's cache was empty (17 CPU seconds, 10 of them MongoDB's), and 2 afterwards. On the same machine it was 19 and 9
  before workers with the same hours were encoded together, and before an instant function got one number of each worker.
- Red lines mark the alert thresholds of `prometheus/rules/settings.yml`, also where you recorded
  [others](../prometheus/local/README.md). After changing that file run `make dashboards`.

## How long the queries are

Characters of a query as it stands in the dashboard; a test fails if they grow.

| | queries | lower quartile | median | upper quartile | longest |
| --- | --- | --- | --- | --- | --- |
| names and numbers of statuses computed in each query | 209 | 86.5 | 159 | 306.5 | – |
| the same recorded | 228 | 80.5 | 126 | 193.5 | 1,304 |
| lists of workers, alerts, and counts by region recorded | 236 | 67.25 | 108.5 | 166 | 922 |
| counters by the minute, and times and sums of all shards recorded (now) | <numbers> |

What is still long, and why:

- The history is read with three matchers (`store`, `region`, `worker_id`) and an offset of a second, which together are 68
  characters of each query of *Trends*. `store="history"` sends a query to the exporter and keeps all others away from it. `.*`
  stands for all workers, because the ids of a large fleet are too long for a query; so the region has a matcher of its own.
- `$instance` and `$job` choose among the exporters; where each of them is shown, its queries have both matchers.
- Graphs of *Fleet overview* continue into time before this Prometheus by a second half from the history.

## On VictoriaMetrics

The dashboards work on VictoriaMetrics unchanged, as a data source of the type Prometheus. It needs three things:

- **Scraped and recorded series, and `ALERTS`**: by Prometheus's `remote_write`. Or VictoriaMetrics scrapes, and vmalert
  evaluates the same rule files: `vmalert -rule='prometheus/rules/*.yml'` with `-datasource.url`, `-remoteWrite.url`,
  `-remoteRead.url`, and `-notifier.url`. VictoriaMetrics alone evaluates no rules: without one of the two, most panels of
  *now* are empty.
- **The history**: by `cml-worker-exporter export --to victoriametrics+http://…`
  ([docs/export.md](export.md#into-another-database)), and from then on by [`history.forward`](forward.md).
- **Its hourly aggregates**, which *Trends* and past time of *Fleet overview* read: VictoriaMetrics cannot read from the
  exporter, so copy what remote read answers, for example once a day. Newer versions have `vmctl remote-read` for it. The
  tests run with version 1.79, which has not, so that command was not tried; they write the aggregates as text with times
  (`/api/v1/import/prometheus`), because some values are `+Inf`, which JSON cannot hold.

A test sends all three to VictoriaMetrics 1.79 and compares every query of every dashboard with Prometheus 2.42: none fails, and
the values agree to a millionth. In another one vmalert evaluates the rules over what was scraped, and what it records is
compared. What differs:

- `rate` includes the sample before the window and does not extrapolate. Rates of a steady counter, such as network and CPU,
  agree. Columns of *Exporter health* are sums of counts by the minute, which both add up alike.
- A range excludes its first end, as in Prometheus 3. Prometheus 2 includes it, so that a step of the history that ends on a
  sample (*CPU over time*) is the mean of two samples there.
- The history is in the same database: a selector without `store` finds it, too. *Nodes and labs* begins earlier.
- vmalert writes `ALERTS_FOR_STATE` only of alerts with `for`, which these have not: the times since when an alert fires and
  *Whom it concerns* are empty, unless Prometheus evaluates the rules.
- The newest 30 seconds are not shown (`-search.latencyOffset`); the tests set it to 1 ms.
"""


def files() -> Mapping[Path, str]:
    """Return the generated files: path → text."""
    made = {ROOT / "grafana" / "dashboards" / f"{each.uid}.json": dump(each) for each in DASHBOARDS}
    return made | {ROOT / "docs" / "dashboards.md": page()}


def dump(dashboard: Dashboard) -> str:
    """Return the JSON of a dashboard."""
    return json.dumps(render(dashboard), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def page() -> str:
    """Return the text of docs/dashboards.md."""
    return "\n".join((_intro(), *(part for dashboard in DASHBOARDS for part in _section(dashboard))))


def lengths() -> list[int]:
    """Return the characters of each query of each panel."""
    return [len(target["expr"]) for dashboard in DASHBOARDS for panel in dashboard.panels for target in panel.body["targets"]]


def _intro() -> str:
    found = lengths()
    numbers = (len(found), *statistics.quantiles(found), max(found))
    return _INTRO.replace("<numbers>", " | ".join(f"{number:,.10g}" for number in numbers))


def _section(dashboard: Dashboard) -> Iterator[str]:
    yield f"## {dashboard.title}\n\n{dashboard.description} (`{dashboard.uid}`)\n"
    rows = (_row(panel) for panel in dashboard.panels)
    yield "| question | panel | query |\n| --- | --- | --- |\n" + "".join(rows)


def _row(panel: Panel) -> str:
    queries = "<br>".join(f"`{target['expr'].replace('|', chr(92) + '|')}`" for target in panel.body["targets"])
    return f"| {panel.question} | {panel.body['title']} | {queries} |\n"


def main() -> None:
    """Write all files."""
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
