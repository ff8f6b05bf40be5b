"""Points of the line protocol, by examples of its reference."""

import pytest

from exporter.commands.export.batches import batches
from exporter.stores.line_protocol import lines, tag
from exporter.stores.store import Batch


def batch(worker_id: str = "w1", region: str = "eu-west-1", status: str | None = "running", **numbers: float | None) -> Batch:
    columns = {field: [numbers.get(field)] for field in ("cpu_utilization", "memory_utilization", "active_labs_count")}
    return Batch(worker_id, region, {}, [1_700_000_000_000], columns, [status])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            batch(cpu_utilization=12.5, active_labs_count=2),
            "cml_worker_metrics,worker_id=w1,region=eu-west-1 "
            'sample=1i,cpu_utilization=12.5,active_labs_count=2,status="running" 1700000000000',
        ),
        (batch(status=None), "cml_worker_metrics,worker_id=w1,region=eu-west-1 sample=1i 1700000000000"),
        (batch(region="", status=None), "cml_worker_metrics,worker_id=w1 sample=1i 1700000000000"),
        (
            batch("a b,c=d\ne\\", status='"\\\n'),
            'cml_worker_metrics,worker_id=a\\ b\\,c\\=d�e�,region=eu-west-1 sample=1i,status="\\"\\\\�" 1700000000000',
        ),
    ],
)
def test_a_sample_is_one_line(given: Batch, line: str) -> None:
    assert list(lines(given)) == [line]


def test_a_tag_is_read_back_without_its_escapes() -> None:
    assert tag("a b,c=d\\") == "a b,c=d�"


def test_a_worker_that_changed_its_region_has_two_batches_and_what_is_no_number_has_no_value() -> None:
    documents: list[dict[str, object]] = [
        {"time": 1, "region": "eu", "cpu_utilization": 1, "memory_utilization": float("nan"), "active_labs_count": True},
        {"time": 2, "region": None, "cpu_utilization": "2", "status": 7},
    ]
    first, second = batches("w1", documents, {"name": "one"})
    assert (first.region, first.times, first.statuses) == ("eu", [1], [None])
    assert first.numbers == {"cpu_utilization": [1], "memory_utilization": [None], "active_labs_count": [None]}
    assert (second.region, second.times, second.statuses, second.info) == ("", [2], ["7"], {"name": "one"})
    assert second.numbers["cpu_utilization"] == [None]
