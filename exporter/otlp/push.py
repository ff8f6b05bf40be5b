"""Push the gauges to an OpenTelemetry collector, by the official exporter: OTLP over HTTP, protobuf, gzip."""

import asyncio
import time
from collections.abc import Callable, Sequence

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData

from exporter.core import logs
from exporter.metrics.telemetry import Telemetry
from exporter.otlp.conversion import resources

PATH = "/v1/metrics"
WORKERS_PER_REQUEST = 500
"""A request of as many workers is some 300 kB; collectors refuse more than a few MB."""
TIMEOUT_SECONDS = 10.0
"""For one request, with what the exporter repeats of it."""

_log = logs.get("otlp")


class OtlpPush:
    """Pushes what /metrics would answer now, again and again; a push that fails is counted, and the next has newer values.

    Args:
        endpoint: URL of the collector; without a path the standard one is used.
        interval: seconds between two pushes.
        instance: which exporter this is, `service.instance.id`.
        texts: returns the parts of /metrics.
        telemetry: counts pushes.
        wall: UTC seconds.
    """

    def __init__(
        self,
        endpoint: str,
        interval: int,
        instance: str,
        texts: Callable[[], Sequence[bytes]],
        telemetry: Telemetry,
        wall: Callable[[], float] = time.time,
    ) -> None:
        rest = endpoint.partition("://")[2]
        self._endpoint = endpoint if rest.partition("/")[2] else endpoint.rstrip("/") + PATH
        self._interval, self._instance, self._texts, self._telemetry, self._wall = interval, instance, texts, telemetry, wall
        self._started = time.time_ns()
        self._repeats = logs.Repeats()
        for result in ("success", "failure"):
            telemetry.otlp_pushes.labels(result)

    async def run_forever(self, beat: Callable[[], object] = lambda: None) -> None:
        """Push until cancelled; `beat` is called after each."""
        exporter = OTLPMetricExporter(endpoint=self._endpoint, timeout=TIMEOUT_SECONDS, compression=Compression.Gzip)
        try:
            while True:
                began = time.monotonic()
                self._count(await asyncio.to_thread(self._push, exporter))
                beat()
                await asyncio.sleep(max(1.0, self._interval - (time.monotonic() - began)))
        finally:
            await asyncio.to_thread(exporter.shutdown, 1000)

    def _push(self, exporter: OTLPMetricExporter) -> bool:
        found = resources(self._texts(), int(self._wall() * 1e9), self._started, self._instance)
        for first in range(0, len(found), WORKERS_PER_REQUEST):
            data = MetricsData(found[first : first + WORKERS_PER_REQUEST])
            if exporter.export(data, TIMEOUT_SECONDS * 1000) is not MetricExportResult.SUCCESS:
                return False  # the rest would only take its time
        return True

    def _count(self, ok: bool) -> None:
        self._telemetry.otlp_pushes.labels("success" if ok else "failure").inc()
        if ok and self._repeats.reset():
            _log.info("pushed to the OpenTelemetry collector again", endpoint=self._endpoint, **self._repeats.count)
        elif not ok and self._repeats.is_due("failed"):
            _log.error(
                "cannot push to the OpenTelemetry collector; the log has its reason",
                endpoint=self._endpoint,
                **self._repeats.count,
            )
