"""`workers.hourly_price`: the gauge of the workers whose instance type has a price, and of no others."""

from pathlib import Path

from exporter.core.periods import DAY, HOUR, align
from exporter.storage.mongo import Database
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import Clock, InProcessExporter, series

NOW = align(1_790_000_000, DAY) + 2 * HOUR
NAME = "cml_worker_hourly_price_dollars"


async def test_workers_of_a_type_with_a_price_have_the_gauge(tmp_path: Path, database: Database, fake: FakeCloudWatch) -> None:
    types = {"metal": "m5zn.metal", "small": "c5.large", "other": "t3.nano", "untyped": None}
    documents = [
        Member(name, instance_id(number), "eu-west-1", NOW - HOUR).aggregate() | {"instance_type": instance_type}
        for number, (name, instance_type) in enumerate(types.items())
    ]
    await database["workers"].insert_many(documents)
    prices = {"hourly_price": {"m5zn.metal": 3.96, "c5.large": "0.1", "m6i.large": 9}}
    exporter = InProcessExporter(tmp_path, database, fake, Clock(NOW), workers=prices)
    await exporter.history.ensure_collection()
    await exporter.round(1)
    assert series(await exporter.scrape(), NAME) == {
        f'{NAME}{{region="eu-west-1",worker_id="metal"}}': 3.96,
        f'{NAME}{{region="eu-west-1",worker_id="small"}}': 0.1,
    }
    changed = await database["workers"].update_one({"_id": "metal"}, {"$set": {"status": "stopped"}})
    assert changed.modified_count == 1
    await exporter.round(1)
    metal = f'{NAME}{{region="eu-west-1",worker_id="metal"}}'
    assert series(await exporter.scrape(), NAME)[metal] == 3.96, "a price is a fact of the worker, whether it runs or not"
    await exporter.close()
