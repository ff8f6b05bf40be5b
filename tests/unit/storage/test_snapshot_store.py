"""The columns of the leader's snapshot."""

import pytest

from exporter.core.cloudwatch_snapshot import CloudWatchSnapshot
from exporter.core.model import Datapoint
from exporter.storage.snapshot_store import decode, encode
from tests.helpers.fake_cloudwatch import instance_id

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


@pytest.mark.parametrize(
    "snapshot",
    [
        CloudWatchSnapshot(1_790_000_000, {}, {}),
        CloudWatchSnapshot(1_790_000_000, {"cpu": {}, "memory": {}}, {}),
        CloudWatchSnapshot(
            1_790_000_000,
            {
                "cpu": {"i-2": Datapoint(1_789_999_500, 45.2), "i-1": Datapoint(0, 0.0)},
                "memory": {"i-2": Datapoint(1_789_999_200, 1e-9)},
                "cml_worker_network_in_bytes": {"i-3": Datapoint(1_789_999_500, 2.0**60)},
            },
            {"i-2": "123456789012", "i-4": "210987654321"},
        ),
    ],
)
def test_a_snapshot_is_read_as_it_was_written(snapshot: CloudWatchSnapshot) -> None:
    assert decode(snapshot.at, encode(snapshot)) == snapshot


def test_a_hundred_thousand_workers_fit_into_one_document() -> None:
    count = 100_000
    points = {
        metric: {instance_id(k): Datapoint(1_790_000_000, (k * 7919 + shift) % 10_007 / 97) for k in range(count)}
        for shift, metric in enumerate(("cpu", "memory"))
    }
    accounts = {instance_id(k): f"{k % 20:012}" for k in range(count)}
    assert len(encode(CloudWatchSnapshot(1_790_000_000, points, accounts))) < MAX_DOCUMENT_BYTES / 2
