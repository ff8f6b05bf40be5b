"""The landing page: one self-contained HTML document with the state of the exporter and its fleet. Pure functions."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean
from urllib.parse import quote

from exporter import __version__
from exporter.core.model import STATUSES, WorkerGauges
from exporter.core.periods import rfc3339

MAX_ROWS = 200
MAX_TEXT_CHARACTERS = 80
"""Characters of a text from a worker document (the manager's aggregate) that are shown."""

_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --text: #1c2530; --soft: #667382; --line: #e3e7ec;
  --accent: #0b6bcb; --good: #1a7f4b; --busy: #a86400; --bad: #c4314b; --idle: #758190; --track: #e9edf1; }
@media (prefers-color-scheme: dark) { :root { --page: #10151b; --card: #181f27; --text: #e5eaf0; --soft: #93a1b0;
  --line: #28323d; --accent: #6cb2ff; --good: #4cc38a; --busy: #e3a33c; --bad: #ff7d8e; --idle: #8796a5; --track: #28323d; } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 36px 24px 56px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 12px; margin-bottom: 24px; }
h1 { font-size: 25px; font-weight: 650; letter-spacing: -.015em; }
h2 { font-size: 12px; font-weight: 650; letter-spacing: .07em; text-transform: uppercase;
  color: var(--soft); margin-bottom: 10px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.soft { color: var(--soft); } .end { margin-left: auto; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.notice { border-left: 4px solid var(--busy); margin-bottom: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 12px; }
.tile b { display: block; font-size: 28px; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 12px; margin-bottom: 12px; }
dl { display: grid; grid-template-columns: fit-content(55%) 1fr; gap: 5px 16px; } dt { overflow-wrap: anywhere; }
dd { overflow-wrap: anywhere; color: var(--soft); }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; background: currentColor; }
.good { color: var(--good); } .busy { color: var(--busy); } .bad { color: var(--bad); } .idle { color: var(--idle); }
.chip { display: inline-flex; align-items: center; white-space: nowrap; font-size: 13px; font-weight: 550; }
.chips { display: flex; flex-wrap: wrap; gap: 6px 22px; margin-bottom: 12px; }
.chips b { margin-left: 7px; color: var(--text); }
.wide { overflow-x: auto; padding: 6px 0 0; } .wide p { padding: 10px 18px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-size: 12px; font-weight: 600; color: var(--soft); }
th, td { padding: 8px 18px; white-space: nowrap; }
td { border-top: 1px solid var(--line); } td small { display: block; color: var(--soft); font-size: 12px; line-height: 1.3; }
td:first-child { max-width: 280px; overflow: hidden; text-overflow: ellipsis; }
td:first-child small { overflow: hidden; text-overflow: ellipsis; }
.bar { display: inline-block; width: 90px; height: 6px; border-radius: 3px; background: var(--track); overflow: hidden;
  vertical-align: middle; margin-right: 10px; } .bar i { display: block; height: 100%; background: var(--accent); }
.bar .hot { background: var(--bad); } .percent { display: inline-block; min-width: 52px; text-align: right; }
""".strip()

_TONES = {"running": "good", "failed": "bad", "unknown": "bad", "stopped": "idle", "terminated": "idle"}
"""Status → color; all other statuses are transitions, in the color "busy"."""
_HOT_PERCENT = 90
"""Percent at which a bar turns red."""


def page(
    workers: Sequence[WorkerGauges],
    *,
    fresh: bool,
    ready: bool,
    collection: str,
    health: Mapping[str, str | None],
    links: Iterable[tuple[str, str]],
) -> str:
    """Return the landing page as HTML.

    Args:
        workers: gauges of the newest collection cycle; empty before the first.
        fresh: whether that cycle is recent enough for /metrics to show its values.
        ready: whether the exporter has tried to read the worker documents once.
        collection: database.collection of the worker documents; empty before it is known.
        health: source → its last error, None after a success.
        links: (path, description) of the other routes; the method stands before the path if it is not GET.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>CML worker metrics</title>
<link rel="icon" href="data:,">
<style>
{_STYLE}
</style>
</head>
<body>
<main>
<header><h1>CML worker metrics</h1><span class="soft">cml-worker-exporter {escape(__version__)}</span>
{_as_of(workers, collection)}</header>
{_notice(workers, fresh, ready)}{_problems(health)}
{_tiles(workers) if fresh else ""}
<div class="pair">{_sources(health)}{_links(links)}</div>
{_table(workers) if fresh else ""}
</main>
</body>
</html>
"""


def _as_of(workers: Sequence[WorkerGauges], collection: str) -> str:
    newest = max((gauge.observed_at for gauge in workers), default=None)
    source = f"from {escape(collection)}" if collection else ""
    parts = [f"fleet as of {rfc3339(newest)}" if newest is not None else "", source]
    text = " ".join(part for part in parts if part)
    return f'<span class="soft end">{text}</span>' if text else ""


def _notice(workers: Sequence[WorkerGauges], fresh: bool, ready: bool) -> str:
    if not ready:
        text = "Starting: the worker documents have not been read yet."
    elif not fresh:
        text = "No recent values: the last collection cycles failed, so /metrics has no workers. See the errors of the sources."
    elif not workers:
        text = "No workers: MongoDB has no worker documents, or the exporter skipped all of them. Its log shows the reasons."
    else:
        return ""
    return f'<p class="card notice">{text}</p>'


def _problems(health: Mapping[str, str | None]) -> str:
    failing = [escape(part) for part, error in sorted(health.items()) if error]
    if not failing:
        return ""
    listed = ", ".join(failing)
    return f'<p class="card notice"><b>Degraded:</b> {listed}. The errors are below; the runbook says what to do.</p>'


def _tiles(workers: Sequence[WorkerGauges]) -> str:
    statuses = Counter(gauge.worker.status for gauge in workers if gauge.show_state)
    running = [gauge for gauge in workers if gauge.show_state and gauge.worker.status == "running"]
    labs = sum(gauge.active_labs or 0 for gauge in workers)
    tiles = (
        ("workers", str(len(workers))),
        ("running", str(len(running))),
        ("active labs", str(labs)),
        ("mean CPU", _mean(gauge.cpu for gauge in running)),
        ("mean memory", _mean(gauge.memory for gauge in running)),
    )
    cards = "".join(f'<div class="card tile"><b>{value}</b><span class="soft">{name}</span></div>' for name, value in tiles)
    chips = "".join(f"<span>{_chip(status)}<b>{statuses[status]}</b></span>" for status in STATUSES if statuses[status])
    return f'<div class="tiles">{cards}</div>\n<div class="card chips">{chips or "no statuses"}</div>'


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.1f} %" if known else "–"


def _sources(health: Mapping[str, str | None]) -> str:
    rows = "".join(
        f'<dt><span class="dot {"bad" if error else "good"}"></span>{escape(source)}</dt><dd>{escape(error or "ok")}</dd>'
        for source, error in sorted(health.items())
    )
    sources = f"<dl>{rows}</dl>" if rows else "<p>No source has been read yet.</p>"
    return f'<section class="card"><h2>Health</h2>{sources}</section>'


def _links(links: Iterable[tuple[str, str]]) -> str:
    # Relative links, so that the page also works under a path prefix of a reverse proxy.
    rows = "".join(f"<dt>{_link(path)}</dt><dd>{escape(what)}</dd>" for path, what in links)
    return f'<section class="card"><h2>Routes</h2><dl>{rows}</dl></section>'


def _link(path: str) -> str:
    """Return a path as a link, or as text if it has placeholders or a method other than GET."""
    return escape(path) if "{" in path or not path.startswith("/") else f'<a href=".{escape(path)}">{escape(path)}</a>'


_HEAD = "".join(f"<th>{name}</th>" for name in ("Worker", "Region", "Status", "CPU", "Memory", "Labs", "Last activity"))


def _table(workers: Sequence[WorkerGauges]) -> str:
    if not workers:
        return ""
    busiest = sorted(workers, key=lambda gauge: (-1 if gauge.cpu is None else gauge.cpu, gauge.worker.id), reverse=True)
    rows = "\n".join(map(_row, busiest[:MAX_ROWS]))
    rest = f'<p class="soft">The {MAX_ROWS} busiest of {len(workers)}.</p>' if len(workers) > MAX_ROWS else ""
    return f"""<div class="card wide">
<table>
<thead><tr>{_HEAD}</tr></thead>
<tbody>
{rows}
</tbody>
</table>{rest}</div>"""


def _row(gauge: WorkerGauges) -> str:
    worker = gauge.worker
    address = f"./workers/{quote(worker.id, safe='')}"
    name = f'<a href="{address}">{_text(worker.name or worker.id)}</a><small>{_text(worker.id)}</small>'
    cells = (
        f"<td>{name}</td>",
        f"<td>{_text(worker.region or '–')}<small>{_text(worker.instance_type or '')}</small></td>",
        f"<td>{_chip(worker.status) if gauge.show_state else '–'}</td>",
        f"<td>{_bar(gauge.cpu)}</td>",
        f"<td>{_bar(gauge.memory)}</td>",
        f"<td>{'–' if gauge.active_labs is None else gauge.active_labs}</td>",
        f"<td>{'–' if worker.last_activity_at is None else rfc3339(worker.last_activity_at)}</td>",
    )
    return f"<tr>{''.join(cells)}</tr>"


def _chip(status: str) -> str:
    return f'<span class="chip {_TONES.get(status, "busy")}"><span class="dot"></span>{escape(status)}</span>'


def _bar(percent: float | None) -> str:
    if percent is None:
        return "–"
    hot = ' class="hot"' if percent >= _HOT_PERCENT else ""
    return (
        f'<span class="bar"><i{hot} style="width:{min(max(percent, 0), 100):.0f}%"></i></span>'
        f'<span class="percent">{percent:.1f} %</span>'
    )


def _text(text: str) -> str:
    return escape(text if len(text) <= MAX_TEXT_CHARACTERS else text[: MAX_TEXT_CHARACTERS - 1] + "…")
