"""Ages on the dashboards of a fleet in shards: a shard that is behind shows, a replica that stands by does not."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from exporter.core.shards import Shard
from exporter.metrics.telemetry import Telemetry
from grafana.conventions import EXPORTER, FLEET, ON_CALL
from tests.fixtures.prometheus import RunPrometheus
from tests.helpers.dashboards import faster, newest
from tests.helpers.deadlines import scaled
from tests.helpers.text_server import METRICS, serving_text

EU, US = "eu-west-1", "us-east-1"
MINUTE = 60


class Exporter:
    """What one exporter says of itself."""

    def __init__(self, shard: Shard, *, collects: bool = True) -> None:
        self.telemetry = Telemetry(CollectorRegistry())
        self.telemetry.show_shard(shard, collects=collects)

    def read(self, ago: Mapping[tuple[str, str], float]) -> None:
        """Say when each source was read last: (source, region) → seconds ago."""
        for (source, region), seconds in ago.items():
            self.telemetry.source_succeeded(source, region, time.time() - seconds, 0.1)

    def wrote(self, ago: float, oldest: float | None) -> None:
        """Say when history and another database were written last, and how old the oldest waiting sample is; seconds."""
        self.telemetry.mirror_last_success.value = time.time() - ago
        self.telemetry.forward.last_success.labels("lake").set(time.time() - ago)
        self.telemetry.outbox_oldest.value = None if oldest is None else time.time() - oldest

    def text(self) -> str:
        return self.telemetry.rendered(0).text.decode()


def fleet() -> dict[str, Exporter]:
    """Shard 0 with a leader and one that led an hour ago, shard 1, 20 minutes behind in one region, and one that waits."""
    leader, standby = Exporter(Shard(0, 2)), Exporter(Shard(0, 2))
    behind, waiting = Exporter(Shard(1, 2)), Exporter(Shard(2, 3), collects=False)
    leader.read({("mongodb", ""): 10, ("cloudwatch", EU): 20, ("cloudwatch", US): 20})
    leader.wrote(30, oldest=8 * MINUTE)
    standby.read({("mongodb", ""): 10, ("cloudwatch", EU): 60 * MINUTE, ("cloudwatch", US): 60 * MINUTE})
    standby.wrote(60 * MINUTE, oldest=65 * MINUTE)
    behind.read({("mongodb", ""): 10, ("cloudwatch", EU): 20 * MINUTE, ("cloudwatch", US): 40})
    behind.wrote(25 * MINUTE, oldest=30 * MINUTE)
    waiting.read({("mongodb", ""): 90 * MINUTE, ("cloudwatch", US): 90 * MINUTE})
    waiting.wrote(90 * MINUTE, oldest=95 * MINUTE)
    return {"leader": leader, "standby": standby, "behind": behind, "waiting": waiting}


def test_the_shard_that_is_behind_is_the_age_that_shows_and_a_standby_is_not(
    run_prometheus: RunPrometheus, tmp_path: Path
) -> None:
    said = fleet()
    with ExitStack() as servers:
        at = {name: servers.enter_context(serving_text(exporter.text, METRICS)) for name, exporter in said.items()}
        configuration = faster(tmp_path / "rules", at["leader"])
        configuration["scrape_configs"][0]["static_configs"][0]["targets"] = list(at.values())
        del configuration["remote_read"]  # what serves here has no history
        prometheus = run_prometheus(configuration)
        since = time.monotonic()

        def shows(ages: Sequence[float], title: str, ref: str = "A", uid: str = EXPORTER, **chosen: list[str]) -> None:
            """Ask until a panel shows these minutes, beside the time that passes: the exporters are not scraped at once."""
            while True:
                found = sorted(newest(prometheus, uid, title, ref, time.time(), **chosen).values())
                passed = time.monotonic() - since
                if found == pytest.approx([each * MINUTE for each in ages], abs=passed + 2):
                    return
                assert passed < scaled(40), f"{title} {ref} of {uid} {chosen}: {found}"
                time.sleep(0.2)

        for uid in (EXPORTER, ON_CALL, FLEET):
            shows([20], "Age of the data", uid=uid)
        shows([0.2, 0.7, 20], "Age of each source")
        shows([30], "Age of samples and writes", "A")
        shows([25], "Age of samples and writes", "B")
        shows([25], "Other databases: age", "B")
