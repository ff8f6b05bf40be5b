"""A large fleet, cycle after cycle: how long a collection cycle takes, how fast /metrics is meanwhile, whether memory grows.

    python -m bench.rounds [--workers 2000] [--latency 0.1] [--rounds 50] [--gap-fill-window 24h]

The fake CloudWatch, MongoDB, the exporter and the scraper are processes of their own. Only the clock is simulated, so that the
cycles of hours follow each other at once. A cycle reads the worker documents, polls CloudWatch, and mirrors until the outbox
has no final sample left. The figures are ratios to the polling interval, so that machines can be compared.
"""

import argparse
import asyncio
import http.client
import json
import os
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from bench.fake_aws import REGIONS, FakeAws
from exporter.commands.serve import SWITCH_INTERVAL_SECONDS, refresh
from exporter.core import logs
from exporter.core.heap import freeze
from exporter.core.model import Fleet
from exporter.core.periods import to_datetime
from exporter.core.settings_loader import load
from exporter.demo.mongod import Mongod
from exporter.demo.ports import free_port
from exporter.history.reader import HistoryReader
from exporter.metrics.telemetry import Telemetry
from exporter.pipeline.collector import Collector
from exporter.pipeline.lifecycle import Rules
from exporter.pipeline.mirror import Mirror
from exporter.pipeline.outbox import Outbox
from exporter.pipeline.outbox_thread import OutboxThread
from exporter.sources.aggregates import Aggregates
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.storage.inventory import Inventory
from exporter.storage.lease import LEASE_SECONDS, Lease
from exporter.storage.mongo import connect
from exporter.storage.repository import repository
from exporter.web.application import create_app
from exporter.web.backend import Backend, LoopBridge
from exporter.web.connections import Connections, Limits
from exporter.web.http_protocol import protect
from tests.helpers.fake_cloudwatch import instance_id
from tests.helpers.fake_cloudwatch.process import control

CATCHING_UP = 3
"""Cycles after the first in which the values of the last hour become final: ten times the samples of the others."""


class Shifted:
    """The real worker documents, dated with the simulated time."""

    def __init__(self, source: Aggregates, wall: "Clock") -> None:
        self._source, self._wall = source, wall

    async def read(self) -> Fleet:
        return replace(await self._source.read(), date=int(self._wall()))


class Clock:
    """The local clock plus an offset that each cycle increases."""

    offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


async def exporter(uri: str, aws: str, port: int, rounds: int, data: Path, window: str) -> None:
    """Run the process under test: real parts, simulated clock; prints one JSON line per cycle."""
    tree = {
        "CML_EXPORTER_MONGODB__URI": uri,
        "CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL": aws,
        "CML_EXPORTER_DATA_DIR": str(data),
        "CML_EXPORTER_GAP_FILL_WINDOW": window,
    }
    settings = load(None, tree)
    logs.configure("error", "logfmt")
    wall, telemetry = Clock(), Telemetry(CollectorRegistry())
    client, database = connect(settings)
    outbox = OutboxThread(Outbox(data, settings.period))
    history = repository(settings, database, settings.mongodb.history or "")
    lease = Lease(database, owner="bench")
    cloudwatch = CloudWatch(settings, telemetry, wall=wall)
    mirror = Mirror(outbox, history.writer, lease, telemetry, wall=wall)
    collector = Collector(
        settings,
        Rules.from_settings(settings),
        telemetry,
        outbox,
        Shifted(Aggregates(database, settings.mongodb.worker_collections, settings.workers), wall),
        cloudwatch,
        history=history.reader,
        inventory=Inventory(database),
        lease=lease,
        wall=wall,
        monotonic=wall,
    )
    backend = Backend(
        period=settings.period,
        collector=collector,
        telemetry=telemetry,
        reader=HistoryReader(
            period=settings.period, history=None, archive=None, wanted_retention=settings.mongodb.retention, wall=wall
        ),
        bridge=LoopBridge(),
        client=client,
        wall=wall,
    )
    config = uvicorn.Config(create_app(backend), port=port, log_level="error", lifespan="off", proxy_headers=False)
    connections = Connections(Limits.of_process())
    protect(config, connections)
    server = uvicorn.Server(config)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    serving = threading.Thread(target=server.run)  # an event loop of its own, as in `serve`
    serving.start()
    await history.ensure_collection()
    await lease.acquire_or_renew()
    keeping = [asyncio.create_task(each) for each in (_keep(lease), refresh(telemetry, connections))]
    for index in range(rounds + 1):
        now = wall()
        wall.offset += (180 - now) % settings.period or settings.period  # 3 minutes after a boundary, as the poller
        await asyncio.to_thread(control, aws, {"set": {"offset": wall.offset}})
        began, cpu = time.perf_counter(), time.process_time()
        await collector.observe()
        await collector.open_gaps()
        await collector.poll()
        while await mirror.step():
            pass
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()  # noqa: ASYNC240  # a page of proc
        print(
            json.dumps(
                {"round": index, "took": took, "cpu": cpu, "rss": rss, "mirrored": telemetry.mirrored, "at": time.time()}
            ),
            flush=True,
        )
        if index == 0:
            freeze()
        await asyncio.sleep(0.2)
    await asyncio.to_thread(sys.stdin.read)  # until the scraper is done
    for task in keeping:
        task.cancel()
    server.should_exit = True
    await asyncio.to_thread(serving.join)
    await cloudwatch.close()
    await client.close()
    outbox.close()


async def _keep(lease: Lease) -> None:
    while True:
        await asyncio.sleep(LEASE_SECONDS / 3)
        await lease.acquire_or_renew()


def scrape(port: int, seconds_between: float, encoding: str = "gzip") -> None:
    """Scrape until standard input closes; print the latencies.

    A server closes a connection that was idle for some seconds, as on a busy machine: then the scrape is sent again.
    """
    latencies: list[tuple[float, float]] = []
    size = 0
    connection = http.client.HTTPConnection("127.0.0.1", port)
    while not select.select([sys.stdin], [], [], seconds_between)[0]:
        began = time.perf_counter()
        try:
            connection.request("GET", "/metrics", headers={"Accept-Encoding": encoding})
            body = connection.getresponse().read()
        except http.client.RemoteDisconnected:
            connection.close()
            continue
        size = max(size, len(body))
        latencies.append((time.time(), time.perf_counter() - began))
    print(json.dumps({"latencies": latencies, "bytes": size}))


def aggregates(count: int) -> list[dict[str, Any]]:
    """Return the worker documents (the manager's aggregates) of a fleet whose instances the fake CloudWatch has."""
    created = to_datetime(time.time() - 30 * 86400)
    return [
        {
            "_id": f"worker-{k:05d}",
            "name": f"cml-{k:05d}",
            "aws_region": REGIONS[k % len(REGIONS)],
            "aws_instance_id": instance_id(k),
            "status": "running",
            "active_labs_count": k % 7,
            "instance_type": "m5zn.metal",
            "cml_version": "2.8.1",
            "created_at": created,
        }
        for k in range(count)
    ]


def stolen() -> tuple[int, int]:
    """Return the time that the host gave to other machines, and all time, in ticks (proc(5), /proc/stat)."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child processes are terminated too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds the fake CloudWatch takes to answer")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument(
        "--gap-fill-window", default="24h", help="what the first cycle fills; a day of 50,000 workers takes long"
    )
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, *rest = options.child
        if kind == "exporter":
            uri, aws, port, data = rest
            asyncio.run(exporter(uri, aws, int(port), options.rounds, Path(data), options.gap_fill_window))
        else:
            scrape(int(rest[0]), 0.03, *rest[1:])
        return
    run(options.workers, options.latency, options.rounds, options.gap_fill_window)


def run(workers: int, latency: float, rounds: int, window: str) -> None:
    """Start the processes, collect their output, print the figures."""
    from pymongo import MongoClient

    environment = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "PATH": "/usr/bin:/bin"}
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeAws(Path(folder), workers, latency, period=300) as fake,
    ):
        mongod = Mongod(Path(folder, "mongo"), free_port())
        mongod.start()
        port = free_port()
        child = scraper = None
        try:
            uri = mongod.uri.replace("/?", "/bench?")
            with MongoClient[dict[str, Any]](uri) as client:
                client.bench.workers.insert_many(aggregates(workers))
            me = [sys.executable, "-m", "bench.rounds", "--rounds", str(rounds), "--gap-fill-window", window, "--child"]
            child = subprocess.Popen(
                [*me, "exporter", uri, fake.url, str(port), f"{folder}/data"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for pid in (mongod.pid, fake.pid):  # in reality on other machines: they must not take the CPU of the exporter
                os.setpriority(os.PRIO_PROCESS, pid, 15)
            assert child.stdout
            lines, before = [], stolen()
            for line in child.stdout:
                lines.append(json.loads(line))
                print(line, end="")
                if scraper is None:  # the first cycle fills a day; the others are normal operation
                    scraper = subprocess.Popen(
                        [*me, "scrape", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
                    )
                if len(lines) == rounds + 1:
                    break
            assert scraper
            scraped = json.loads(scraper.communicate("")[0])
            steal, ticks = (after - earlier for after, earlier in zip(stolen(), before, strict=True))
            child.communicate("")
            report(lines, scraped)
            print(f"CPU the host gave to others     {steal / ticks:.1%}; the slowest scrapes grow with it")
        finally:
            for process in (scraper, child):
                if process and process.poll() is None:
                    process.terminate()
                    process.wait()
            mongod.stop()


def report(lines: Sequence[Mapping[str, Any]], scraped: Mapping[str, Any]) -> None:
    """Print the measurements as ratios."""
    took = [line["took"] for line in lines[1:]]
    everything = sorted(latency for _, latency in scraped["latencies"])
    steady = sorted(latency for at, latency in scraped["latencies"] if at > lines[CATCHING_UP]["at"])
    rss = [line["rss"] / 2**20 for line in lines[1:]]
    quarter = max(1, len(rss) // 4)
    print(f"first cycle (fills gaps)        {lines[0]['took']:.1f} s, {lines[0]['mirrored']} samples")
    print(
        f"cycle / interval                median {statistics.median(took) / 300:.2%}, worst {max(took) / 300:.2%} "
        f"({statistics.median(took):.2f} s, {max(took):.2f} s)"
    )
    cpu = [line["cpu"] for line in lines[1 + CATCHING_UP :]]
    print(f"CPU of a cycle, with scrapes    median {statistics.median(cpu):.2f} s, mean {statistics.mean(cpu):.2f} s")
    for name, latencies in (("all cycles", everything), ("steady cycles", steady)):
        print(
            f"gzip scrape, {name:18} p50 {latencies[len(latencies) // 2] * 1e3:.1f} ms, "
            f"p99 {latencies[int(len(latencies) * 0.99)] * 1e3:.1f} ms, {len(latencies)} of {scraped['bytes'] >> 10} KiB"
        )
    first, last = statistics.median(rss[:quarter]), statistics.median(rss[-quarter:])
    print(f"RSS, last quarter / first       {last / first:.3f} ({first:.0f} → {last:.0f} MiB over {len(rss)} cycles)")


if __name__ == "__main__":
    main()
