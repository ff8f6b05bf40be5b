"""Documents of every generation of the manager: each field on /metrics, in the API and in the history, as written."""

from pathlib import Path

from exporter.storage.mongo import Database
from tests.helpers.fake_cloudwatch import FakeCloudWatch
from tests.helpers.generations import WORKERS
from tests.helpers.in_process_exporter import Clock
from tests.tools.generations import FIELDS, compare, show


async def test_every_field_of_every_generation_is_shown_and_stored_as_written(
    tmp_path: Path, database: Database, fake: FakeCloudWatch, clock: Clock
) -> None:
    rows = await compare(database, fake, clock, tmp_path)
    show(rows, print)  # pytest shows it only when the test fails
    assert not [row for row in rows if row.differs]
    assert len(rows) == len(WORKERS) * len(FIELDS) == 12 * 28
    assert len({worker.status for worker in WORKERS}) == 9
    assert len({worker.generation for worker in WORKERS}) == 5
