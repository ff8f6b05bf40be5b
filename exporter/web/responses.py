"""How answers look: workers, pages of history as JSON and CSV, resources, problems. Pure."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple, cast
from urllib.parse import urlencode

import orjson

from exporter.core.history_metrics import METRIC_FIELDS
from exporter.core.model import STATUSES, InventoryEntry, Worker, WorkerGauges
from exporter.core.periods import rfc3339
from exporter.history.reader import Page, Resources
from exporter.storage.rows import Document as HistoryRow
from exporter.web.parameters import ResourcesQuery, encoded

NEXT, SOURCE, RESOLUTION, NOTE = "X-Next-Cursor", "X-Source", "X-Resolution-Seconds", "X-Note"
PAGE_HEADERS: Mapping[str, str] = {
    "Link": 'where the next page is, rel="next"; absent on the last',
    NEXT: "its cursor",
    SOURCE: "mongodb or cloudwatch",
    RESOLUTION: "how many seconds a sample stands for",
    NOTE: "what there is to know of the page, if anything",
}


# -- workers -----------------------------------------------------------------------------------------------------------


class ListedWorker(NamedTuple):
    """A worker to choose from; its row is built when it is on the page, because 10,000 of them would hold up a scrape."""

    worker_id: str
    region: str
    status: str | None
    facts: Callable[[], HistoryRow]
    entry: InventoryEntry | None

    def row(self) -> HistoryRow:
        """Build what is answered."""
        own = {"worker_id": self.worker_id, "region": self.region, "status": self.status}
        return own | self.facts() | _remembered(self.entry)


def listed_worker(gauge: WorkerGauges, entry: InventoryEntry | None, fresh: bool) -> ListedWorker:
    """A worker of the newest round; what is too old for /metrics is null here too."""
    worker = gauge.worker
    state = fresh and gauge.show_state

    def facts() -> HistoryRow:
        return {
            "name": worker.name,
            "instance_id": worker.instance_id,
            "private_ip": worker.address,
            "instance_type": worker.instance_type,
            "cml_version": worker.cml_version,
            "cpu_utilization": gauge.cpu if fresh else None,
            "cpu_time": _time(gauge.cpu_time),
            "memory_utilization": gauge.memory if fresh else None,
            "memory_time": _time(gauge.memory_time),
            "active_labs_count": worker.active_labs if state else None,
            "last_activity_at": _time(worker.last_activity_at),
            "created_at": _time(worker.created_at),
            "terminated_at": _time(worker.terminated_at),
            "observed_at": _time(gauge.observed_at),
            "extra": dict(worker.extra) if state else {},
        }

    return ListedWorker(worker.id, worker.region, worker.status if state else None, facts, entry)


def gone_worker(entry: InventoryEntry) -> ListedWorker:
    """A worker that has left /metrics. Unless it was terminated its status is null: the last one seen is no longer true."""

    def facts() -> HistoryRow:
        return {
            "name": entry.name,
            "instance_id": entry.instances[-1].instance_id if entry.instances else None,
            "private_ip": None,
            "instance_type": entry.instance_type,
            "cml_version": entry.cml_version,
            "cpu_utilization": None,
            "cpu_time": None,
            "memory_utilization": None,
            "memory_time": None,
            "active_labs_count": None,
            "last_activity_at": None,
            "created_at": _time(entry.created_at),
            "terminated_at": _time(entry.terminated_at),
            "observed_at": None,
            "extra": {},
        }

    return ListedWorker(entry.worker_id, entry.region, "terminated" if entry.status == "terminated" else None, facts, entry)


def _remembered(entry: InventoryEntry | None) -> HistoryRow:
    return {
        "first_seen": _time(entry.first_seen) if entry else None,
        "last_seen": _time(entry.last_seen) if entry else None,
        "instances": [
            {
                "instance_id": each.instance_id,
                "region": each.region,
                "first_seen": _time(each.first),
                "last_seen": _time(each.last),
            }
            for each in (entry.instances if entry else ())
        ],
    }


def workers_page(found: Sequence[ListedWorker], limit: int, period: int) -> HistoryRow:
    """The page of those with the first ids."""
    ordered = sorted(found, key=lambda each: each.worker_id)
    shown = ordered[:limit]
    following = encoded(shown[-1].worker_id) if len(ordered) > limit else None
    data = [each.row() for each in shown]
    return {"data": data, "next": following, "source": "mongodb", "resolution_seconds": period}


def _time(time: int | None) -> str | None:
    return None if time is None else rfc3339(time)


# -- history -----------------------------------------------------------------------------------------------------------


def history_worker(worker: Worker, entry: InventoryEntry | None, status: str | None) -> HistoryRow:
    """Who the history is of. `status` is today's, None where nobody knows."""
    return {
        "worker_id": worker.id,
        "name": worker.name or (entry.name if entry else None),
        "region": worker.region,
        "status": status,
        "instance_type": worker.instance_type or (entry.instance_type if entry else None),
        "cml_version": worker.cml_version or (entry.cml_version if entry else None),
        "created_at": _time(worker.created_at),
        "terminated_at": _time(worker.terminated_at),
        **_remembered(entry),
    }


def history_json(page: Page, cursor: str | None, worker: HistoryRow) -> bytes:
    """A page as the JSON of lists."""
    answer = {
        "data": page.rows,
        "next": cursor,
        "source": page.source,
        "resolution_seconds": page.resolution,
        "interval_seconds": page.interval,
        "worker": worker,
    }
    if page.note:
        answer["note"] = page.note
    return orjson.dumps(answer, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def history_csv(page: Page, interval: int | None) -> bytes:
    """A page as CSV (RFC 4180): a line of names, empty fields where there is no value.

    Args:
        page: the rows.
        interval: what was asked for; every page of it has the same columns.
    """
    rows = cast("Sequence[HistoryRow]", page.rows)
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    if interval is None:
        names = ("timestamp", *METRIC_FIELDS, "status")
        writer.writerow(names)
        writer.writerows([_stamp(row), *(row[name] for name in names[1:])] for row in rows)
    else:
        writer.writerow(
            [
                "timestamp",
                *(f"{field}_{how}" for field in METRIC_FIELDS for how in _STATISTICS),
                *(f"status_share_{status}" for status in STATUSES),
            ]
        )
        writer.writerows(
            [
                _stamp(row),
                *(row[field][how] for field in METRIC_FIELDS for how in _STATISTICS),
                # A status nobody has the share of is 0 only where the shares of the others are known.
                *(row["status_share"].get(status, 0.0) if row["status_share"] else None for status in STATUSES),
            ]
            for row in rows
        )
    return out.getvalue().encode()


def page_headers(page: Page, cursor: str | None, parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What CSV has no other place for.

    Args:
        page: the page.
        cursor: of the next one.
        parameters: the request's, for the link to the next page: relative, so that it holds behind a proxy.
    """
    headers = {SOURCE: page.source, RESOLUTION: str(page.resolution)}
    if page.note:
        headers[NOTE] = page.note
    if cursor:
        kept = [(name, value) for name, value in parameters if name in ("limit", "interval", "format")]
        headers[NEXT] = cursor
        headers["Link"] = f'<?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'
    return headers


def _stamp(row: HistoryRow) -> str:
    return f"{row['timestamp'].isoformat()}Z"


# -- resources ---------------------------------------------------------------------------------------------------------


def resources(found: Resources, query: ResourcesQuery) -> HistoryRow:
    """The answer of the customer's document, key by key: numbers are texts there."""
    return {
        "id": found.instance_id,
        "region_name": found.region,
        "relative_start_time": query.relative,
        "avg_cpu_utilization": None if found.cpu is None else f"{found.cpu:.1f}",
        "avg_memory_utilization": None if found.memory is None else f"{found.memory:.1f}",
        "start_time": rfc3339(found.start),
        "end_time": rfc3339(found.end),
    }


# -- problems: application/problem+json (RFC 9457) ---------------------------------------------------------------------


def problem(status: int, detail: str) -> HistoryRow:
    """What went wrong, in one sentence."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


_STATISTICS = ("avg", "min", "max", "count")
