"""`metrics.status`: the status of a worker as a state set, or as one number."""

from pathlib import Path

import pytest

from exporter.core.periods import DAY, HOUR, align
from exporter.storage.mongo import Database
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import Clock, InProcessExporter, series

NOW = align(1_790_000_000, DAY) + 2 * HOUR


@pytest.mark.parametrize(("form", "states", "numbers"), [(None, 9, 0), ("state_set", 9, 0), ("code", 0, 1)])
async def test_the_setting_chooses_the_family(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, form: str | None, states: int, numbers: int
) -> None:
    await database["workers"].insert_one(Member("w1", instance_id(0), "eu-west-1", NOW - HOUR).aggregate())
    exporter = InProcessExporter(tmp_path, database, fake, Clock(NOW), metrics={"status": form} if form else {})
    await exporter.history.ensure_collection()
    await exporter.round(1)
    text = await exporter.scrape()
    assert len(series(text, "cml_worker_status{")) == states
    assert list(series(text, "cml_worker_status_code").values()) == [1.0] * numbers
    await exporter.close()
