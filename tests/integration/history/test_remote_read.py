"""PromQL over the history: Prometheus, with the configuration of the repository, queries an exporter process over HTTP."""

import http.client
import os
import signal
import time
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from exporter.core.periods import DAY, HOUR, align, rfc3339, to_datetime
from exporter.demo import prometheus as prometheus_module
from exporter.demo.mongod import Mongod
from exporter.demo.prometheus import SOURCE
from tests.fixtures.process import RunExporter
from tests.fixtures.prometheus import RunPrometheus
from tests.helpers import prompb
from tests.helpers.deadlines import scaled
from tests.helpers.exporter_process import ExporterProcess

PERIOD = 300
CPU = "cml_worker_cpu_utilization_ratio"
NOW = align(int(time.time()), HOUR)
DAYS = 32


def percent(worker: int, start: int) -> float:
    """A value for each worker and period, with digits that a sum can get wrong."""
    return (start // PERIOD * 7919 + worker * 104729) % 9973 / 100


def sample(worker: int, start: int) -> dict[str, Any]:
    return {
        "worker_id": f"w{worker}",
        "timestamp": to_datetime(start),
        "region": "eu-west-1",
        "cpu_utilization": percent(worker, start),
        "active_labs_count": start // PERIOD % 3,
        "status": "running" if start // HOUR % 4 else "stopped",
    }


def inventory_entry(worker: int, last_seen: int, status: str) -> dict[str, Any]:
    dates = {"first_seen": to_datetime(NOW - DAYS * DAY), "last_seen": to_datetime(last_seen)}
    interval = {"id": f"i-{worker}", "region": "eu-west-1", "from": dates["first_seen"], "to": dates["last_seen"]}
    return {
        "_id": f"w{worker}",
        "worker_id": f"w{worker}",
        "name": f"cml {worker}",
        "region": "eu-west-1",
        "status": status,
        "instances": [interval],
        **dates,
    }


GONE_AT = NOW - 3 * DAY
"""When w2 was terminated."""


@pytest.fixture
def exporter(own_mongod: Mongod, run_exporter: RunExporter) -> ExporterProcess:
    """An exporter with a month of history of two workers; the second is gone and has no worker document."""
    uri = own_mongod.uri.replace("/?", "/cml?")
    made = run_exporter({"mongodb": {"uri": uri, "retention": "40d"}, "cloudwatch": {"enabled": False}})
    with MongoClient[dict[str, Any]](uri) as client:
        for worker, until in ((1, NOW), (2, GONE_AT)):
            documents = [sample(worker, start) for start in range(NOW - DAYS * DAY, until, PERIOD)]
            client.cml.worker_metrics_timeseries.insert_many(documents)
        entries = [inventory_entry(1, NOW, "running"), inventory_entry(2, GONE_AT, "terminated")]
        client.cml.worker_metrics_inventory.insert_many(entries)
    return made


def configuration(exporter: ExporterProcess) -> dict[str, Any]:
    return prometheus_module.configuration(SOURCE, exporter.url.removeprefix("http://"))


def mean(worker: int, start: int, end: int) -> float:
    values = [percent(worker, at) / 100 for at in range(start, end, PERIOD)]
    return sum(values) / len(values)


def test_promql_reads_the_whole_history_and_agrees_with_the_history_api(
    exporter: ExporterProcess, run_prometheus: RunPrometheus
) -> None:
    prometheus = run_prometheus(configuration(exporter), "--storage.tsdb.retention.time=30d")

    def history(worker: str, range_: str, function: str = "avg", **labels: str) -> str:
        more = "".join(f',{name}="{value}"' for name, value in labels.items())
        name = "cml_worker_status" if "status" in labels else CPU
        return f'{function}_over_time({name}{{store="history",worker_id="{worker}"{more}}}[{range_}])'

    # Before Prometheus was started, but within its local retention.
    moment = NOW - 2 * DAY
    assert prometheus.value(history("w1", "30m", "last"), moment + 299) == percent(1, moment) / 100
    # A worker that has no worker document and is not in /metrics; its series ends.
    assert prometheus.value(history("w2", "30m", "last"), GONE_AT - 1) == percent(2, GONE_AT - PERIOD) / 100
    assert prometheus.values(history("w2", "30m", "last"), GONE_AT + HOUR) == {}
    assert prometheus.value(f'count_over_time({CPU}{{store="history",worker_id="w2"}}[{DAYS}d])', NOW - 1) == (DAYS - 3) * 288
    # The same time last week.
    offset = f'last_over_time({CPU}{{store="history",worker_id="w1"}}[30m] offset 1w)'
    assert prometheus.value(offset, moment + 299) == percent(1, moment - 7 * DAY) / 100

    # A second before the boundary, so that [start, end) has the same samples in every version of Prometheus.
    for days, end in ((1, NOW), (7, NOW - DAY), (30, NOW)):
        found = prometheus.value(history("w1", f"{days}d"), end - 1)
        answer = exporter.get(
            "/api/workers/w1/metrics/history",
            params={"start": rfc3339(end - days * DAY), "end": rfc3339(end), "interval": "1h", "limit": 1000},
        ).json()
        hours = [row["cpu_utilization"] for row in answer["data"]]
        own = sum(hour["avg"] * hour["samples"] for hour in hours) / sum(hour["samples"] for hour in hours) / 100
        assert found == pytest.approx(own, rel=1e-9)
        assert found == pytest.approx(mean(1, end - days * DAY, end), rel=1e-9)
    share = prometheus.value(history("w1", "1d", status="running"), NOW - 1)
    assert share == pytest.approx(0.75)

    # Percentiles, and the time above a threshold, of the hour that ended at `moment`, and of a day.
    of_hour = sorted(percent(1, at) for at in range(moment - HOUR, moment, PERIOD))
    quantiles = 'last_over_time(cml_worker:cpu_utilization_ratio:quantile1h{store="history",worker_id="w1"}[1h])'
    assert {dict(labels)["quantile"]: value for labels, value in prometheus.values(quantiles, moment).items()} == {
        "0.5": of_hour[5] / 100,
        "0.95": of_hour[11] / 100,
        "0.99": of_hour[11] / 100,
    }
    above = 'sum_over_time(cml_worker:cpu_utilization_ratio:above_seconds1h{store="history",worker_id="w1"}[1d] offset -1s)'
    of_day = [percent(1, at) for at in range(moment - DAY, moment, PERIOD)]
    assert prometheus.value(above, moment) == PERIOD * sum(value > 90 for value in of_day) > 0

    # A query with one window gets one sample with its result, the second one, with two windows, all: the values are the same.
    labs = 'cml_worker:active_labs:avg1h{store="history"}'
    for function in ("avg", "sum", "min", "max", "last", "count", "stddev"):
        query = f"{function}_over_time({labs}[1d] offset -1s)"
        of_one, of_two = prometheus.values(query, GONE_AT), prometheus.values(f"last_over_time(({query})[90m:1h])", GONE_AT)
        assert len(of_one) == 2
        assert of_one == pytest.approx(of_two, rel=1e-12), function

    # The name of a worker that is gone, joined with its values.
    named = (
        f'max_over_time({CPU}{{store="history",worker_id="w2"}}[1h]) * on (worker_id) group_left (name, worker) '
        'last_over_time(cml_worker_info{store="history"}[1h])'
    )
    (labels,) = prometheus.values(named, GONE_AT - 1)
    assert dict(labels)["name"] == dict(labels)["worker"] == "cml 2"
    # Many series by one matcher, and all four operators.
    by_all = f'count(last_over_time({CPU}{{store="history",worker_id=~"w.*",region!="",region!~"us-.*"}}[1h]))'
    assert prometheus.value(by_all, GONE_AT - 1) == 2
    # A query without the label store does not reach the history.
    assert prometheus.values(f"last_over_time({CPU}[30m])", moment) == {}


@pytest.mark.nightly("test_an_unreachable_mongodb_is_an_error")
@pytest.mark.waits(40)
def test_while_mongodb_is_down_prometheus_keeps_its_own_data_and_warns(
    exporter: ExporterProcess, own_mongod: Mongod, run_prometheus: RunPrometheus
) -> None:
    configured = configuration(exporter) | {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}}
    configured["remote_read"][0]["remote_timeout"] = "30s"  # longer than the exporter waits for a server
    prometheus = run_prometheus(configured)
    query = f'last_over_time({CPU}{{store="history",worker_id="w1"}}[1h])'
    assert prometheus.value(query, NOW - 1) == percent(1, NOW - PERIOD) / 100
    deadline = time.monotonic() + scaled(20)
    while not prometheus.values('up{job="cml-worker-exporter"}'):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    own_mongod.kill()
    answer = prometheus.ask(f'{query} or on () max(up{{job="cml-worker-exporter"}})')
    assert any("503" in warning for warning in answer["warnings"]), answer["warnings"]
    assert [each["value"][1] for each in answer["data"]["result"]] == ["1"]
    began = time.monotonic()
    prometheus.values('up{job="cml-worker-exporter"}')
    assert time.monotonic() - began < scaled(5), "a query without the label store does not wait for the history"
    own_mongod.start()
    deadline = time.monotonic() + scaled(60)
    while prometheus.ask(query, NOW - 1)["data"]["result"] == []:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    os.kill(own_mongod.pid, signal.SIGSTOP)  # now it hangs: it accepts connections and does not answer
    try:
        began = time.monotonic()
        answer = prometheus.ask(f'{query} or on () max(up{{job="cml-worker-exporter"}})')
        assert answer["warnings"]
        assert [each["value"][1] for each in answer["data"]["result"]] == ["1"]
        assert time.monotonic() - began < scaled(60), "remote_timeout of Prometheus bounds the wait"
        rules = prometheus.http.get("/api/v1/rules").json()["data"]["groups"]
        assert rules
        assert all(group["evaluationTime"] < 1 for group in rules), "no rule waits for the history"
    finally:
        os.kill(own_mongod.pid, signal.SIGCONT)


def test_a_connection_outlives_the_pauses_between_two_requests(exporter: ExporterProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=scaled(10))
    for pause in (0, 6):  # uvicorn's default is 5 s, when Prometheus's next request may arrive
        time.sleep(pause)
        connection.request("GET", "/-/healthy")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (200, None)
        answer.read()
        assert connection.sock is not None
    connection.close()


def read(exporter: ExporterProcess, body: bytes) -> httpx.Response:
    with httpx.Client(base_url=exporter.url, trust_env=False, timeout=scaled(20)) as client:
        return client.post("/api/v1/read", content=body, headers={"Content-Encoding": "snappy"})


def test_an_invalid_request_is_refused_with_a_reason(exporter: ExporterProcess) -> None:
    good = prompb.request((NOW * 1000 - 3_600_000, NOW * 1000, [("__name__", "=", CPU)]))
    answer = read(exporter, good)
    assert (answer.status_code, answer.headers["Content-Encoding"]) == (200, "snappy")
    (found,) = prompb.parse_response(answer.content)
    assert [len(samples) for samples in found.values()] == [12]
    for body, code, sentence in (
        (good[:-3], 400, "snappy"),
        (b"", 400, "snappy"),
        (b"\x10" * 2_000_000, 413, "bytes"),
        (prompb.request((0, NOW * 1000, [("name", "=~", "((")])), 400, "RE2"),
    ):
        refused = read(exporter, body)
        assert refused.status_code == code
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert sentence in refused.json()["detail"]
    several = read(
        exporter,
        prompb.request(
            (0, 2**62, [("__name__", "=", CPU), ("worker_id", "=", "w2")]),
            (NOW * 1000, 0, [("__name__", "=", CPU)]),
            (0, NOW * 1000, [("__name__", "=", "node_load1")]),
        ),
    )
    first, second, third = prompb.parse_response(several.content)
    assert [len(samples) for samples in first.values()] == [(DAYS - 3) * 288 + 1]
    assert second == third == {}
