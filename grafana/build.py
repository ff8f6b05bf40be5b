"""Writes grafana/dashboards/*.json and docs/dashboards.md (`make dashboards`); a test compares."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from grafana import fleet, health, trends, worker
from grafana.panels import Dashboard, Panel, render

ROOT = Path(__file__).parents[1]
DASHBOARDS: tuple[Dashboard, ...] = (fleet.DASHBOARD, worker.DASHBOARD, trends.DASHBOARD, health.DASHBOARD)

_INTRO = """\
# Dashboards

<!-- Written by `make dashboards` from `grafana/`; change it there. -->

Four dashboards, the same files for Grafana 9.1 and later. They lie in `grafana/dashboards/`; `docker compose up` provisions
them, elsewhere import the files and choose the Prometheus that scrapes the exporter as data source. Below is which panel
answers which question, and by which query.

- Values of *now* are those of `/metrics`. Averages, last week and workers that are gone come from the history, which Prometheus
  reads from the exporter (`{store="history"}`, `remote_read` in `prometheus/prometheus.yml`). Which workers are idle, and the
  lines of the alerts, come from `prometheus/rules/`.
- Graphs and rankings show the first few workers by their average in the time shown (*Show*), never all of a large fleet.
  Numbers of the fleet are made of all.
- *Trends* reads the history by the hour (`cml_worker:…:avg1h{store="history"}` and its like, see [history.md](history.md)): the
  hour under way is not in it yet, and one query reads at most a month of 1,250 workers. The exporter keeps the hours it has
  read. With 1,000 workers of 5 minutes the first look at a week took 5 to 8 seconds on two cores that MongoDB, Prometheus and
  the exporter shared, at a month 17 to 33; after that a week takes 0.2 seconds a query and a month 0.8.
- Red lines stand where the alerts of `prometheus/rules/settings.yml` do. After changing a number there run `make dashboards`.
"""


def files() -> Mapping[Path, str]:
    """What must be written: path → text."""
    made = {ROOT / "grafana" / "dashboards" / f"{each.uid}.json": dump(each) for each in DASHBOARDS}
    return made | {ROOT / "docs" / "dashboards.md": page()}


def dump(dashboard: Dashboard) -> str:
    """The JSON of a dashboard."""
    return json.dumps(render(dashboard), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def page() -> str:
    """docs/dashboards.md."""
    return "\n".join((_INTRO, *(part for dashboard in DASHBOARDS for part in _section(dashboard))))


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
