"""Memory of Prometheus for a fleet: the repository's configuration and rules scrape a worker block with every field.

    python -m bench.series [--workers 1000] [--minutes 5] [--fields all|least] [--status state_set|code]

The block is rendered once and served by this process, so the values never change; the series, which take the memory, are those
of a real fleet. Prints series scraped and recorded, resident memory before and after, and the bytes of each series.
"""

import argparse
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.processes import rss_mib
from exporter.core.catalog import StatusForm
from exporter.core.model import WorkerGauges
from exporter.demo import prometheus as prometheus_module
from exporter.demo.prometheus import SOURCE
from exporter.metrics.worker_block import WorkerBlock
from tests.helpers.prometheus import Prometheus
from tests.helpers.sized_workers import running_worker

REGIONS = 20


def block(workers: int, every_field: bool, status: StatusForm) -> bytes:
    """Return /metrics of a fleet that runs."""
    now = int(time.time())
    one = running_worker(now, every_field=every_field)
    gauges = [
        WorkerGauges(
            replace(one, id=f"worker-{n:06d}", region=f"region-{n % REGIONS}", instance_id=f"i-{n:017x}", name=f"cml-{n:06d}"),
            *(now, True, True, n % 100 + 0.5, now, n % 90 + 0.5, now),
        )
        for n in range(workers)
    ]
    return WorkerBlock(status=status).snapshot(gauges, 0).body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--fields", choices=("all", "least"), default="all")
    parser.add_argument("--status", choices=("state_set", "code"), default="state_set")
    options = parser.parse_args()
    body = block(options.workers, options.fields == "all", options.status)

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    program = shutil.which("prometheus")
    if program is None:
        parser.error(f"prometheus is not on PATH; {prometheus_module.INSTALL}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = prometheus_module.configuration(SOURCE, f"127.0.0.1:{server.server_port}")
    with tempfile.TemporaryDirectory() as folder:
        prometheus = Prometheus(program, Path(folder), configuration)
        try:
            empty = rss_mib(prometheus.pid)
            time.sleep(options.minutes * 60)
            scraped = prometheus.value('scrape_samples_scraped{job="cml-worker-exporter"}')
            series = prometheus.value("count({__name__!=''})")
            rss = rss_mib(prometheus.pid)
        finally:
            prometheus.stop()
            server.shutdown()
    print(f"{options.workers:,} workers: {scraped:,.0f} series scraped, {series:,.0f} with those of the rules")
    used = (rss - empty) * 2**20 / series
    print(f"RSS {empty:.0f} → {rss:.0f} MiB: {used:,.0f} bytes a series; a scrape of {len(body) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
