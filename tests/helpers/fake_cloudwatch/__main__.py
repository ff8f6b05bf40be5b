"""Serve a fake CloudWatch with a fleet that always ran, until SIGTERM. Its first line is its URL."""

import argparse
import asyncio
import contextlib
import signal

from tests.helpers.fake_cloudwatch.instances import fleet
from tests.helpers.fake_cloudwatch.server import FakeCloudWatch


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A fast fake CloudWatch with a fleet that always ran.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2000)
    parser.add_argument("--regions", default="eu-west-1")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--period", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fake = FakeCloudWatch(port=arguments.port, latency=arguments.latency, period=arguments.period, seed=arguments.seed)
    fleet(fake, arguments.workers, arguments.regions.split(","))
    serving = asyncio.create_task(fake.serve(lambda: print(fake.url, flush=True)))
    for ending in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(ending, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    asyncio.run(_main())
