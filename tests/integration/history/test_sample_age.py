"""How old a sample is when it reaches the history: the lookback that the docs and dashboards use follows from it."""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from exporter.core.history_metrics import LOOKBACK_SECONDS
from exporter.core.periods import HOUR, MINUTE, align, to_seconds
from exporter.pipeline.observer import OBSERVE_OFFSET_SECONDS
from exporter.pipeline.poller import POLL_OFFSET_SECONDS
from exporter.storage.mongo import Database
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter

LISTED_AFTER = 15 * MINUTE
"""The longest that ListMetrics takes to list a new metric, as AWS documents it."""
LAGS = tuple(minutes * MINUTE for minutes in (1, 2, 3, 4, 7))
"""How long after the end of its period basic monitoring publishes a datapoint."""
FEW_CYCLES = 2 * HOUR // PERIOD
"""Until the gaps before the start are filled."""


async def cycle(exporter: InProcessExporter, clock: Clock, delay: float) -> None:
    """Run one collection cycle whose loops wake up `delay` seconds late, as in a real process."""
    boundary = align(int(clock()), PERIOD) + PERIOD
    clock.now = boundary + OBSERVE_OFFSET_SECONDS + delay
    await exporter.lease.acquire_or_renew()
    await exporter.observe()
    clock.now = boundary + POLL_OFFSET_SECONDS + delay
    await exporter.ask()
    await exporter.mirror_all()


async def measure(exporter: InProcessExporter, clock: Clock, cycles: int) -> Mapping[str, list[int]]:
    """Run cycles; return by worker the age in seconds of each sample when it was first found in the history."""
    delays = random.Random(0)
    ages: dict[str, list[int]] = defaultdict(list)
    seen = set[tuple[str, int]]()
    for number in range(FEW_CYCLES + cycles):
        await cycle(exporter, clock, delays.uniform(0, 2))
        found = {(each["worker_id"], to_seconds(each["timestamp"])) for each in await exporter.documents()}
        for worker_id, start in found - seen:
            if number >= FEW_CYCLES:
                ages[worker_id].append(int(clock()) - start)
        seen |= found
    return ages


async def test_a_sample_is_in_the_history_within_the_documented_lookback(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    """The ages are those that docs/history.md and docs/sample-lifecycle.md state."""
    began, cycles = int(clock()) - 6 * HOUR, 4 * HOUR // PERIOD
    fake.list_lag = LISTED_AFTER
    for number, (kind, lag) in enumerate((kind, lag) for kind in ("agent", "plain", "silent") for lag in LAGS):
        member = Member(f"{kind}-{lag}", instance_id(number), "eu-west-1", began)
        fake.add(member.instance_id, runs=[(began, None)], agent=kind != "plain", lag=lag)
        if kind == "silent":
            (series,) = fake.instances[member.region, member.instance_id].memory
            fake.change(member.instance_id, memory=(replace(series, runs=((None, int(clock()) + 2 * HOUR),)),))
        await database["workers"].insert_one(member.aggregate())
    exporter = InProcessExporter(tmp_path, database, fake, clock, absence_timeout="1h")
    ages = await measure(exporter, clock, cycles)
    await exporter.close()
    assert exporter.errors == []
    assert {name.partition("-")[0]: len(each) for name, each in ages.items()}.keys() == {"agent", "plain", "silent"}
    for name, each in ages.items():
        youngest, oldest = min(each) // MINUTE, max(each) // MINUTE
        if name.startswith("agent"):
            assert 13 <= youngest <= oldest <= 23, (name, youngest, oldest)
        elif name.startswith("plain"):
            assert 28 <= youngest <= oldest <= 43, (name, youngest, oldest)
        else:  # waits for `absence_timeout`, because its series is listed
            assert oldest <= 75, (name, oldest)
        if not name.startswith("silent"):  # the next sample comes a period later: until then this one is the newest
            assert max(each) + PERIOD < LOOKBACK_SECONDS, name
