"""`check` asks the targets of `history.forward`, writes nothing there, and shows no password."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from exporter.commands.check.targets import check_targets
from exporter.core.settings import Settings
from tests.helpers.ports import free_port
from tests.helpers.stores import PostgreSQLServer
from tests.integration.forwarding.stand import target_of


@pytest.fixture
def postgresql() -> Iterator[PostgreSQLServer]:
    server = PostgreSQLServer()
    yield server
    server.remove()


async def test_targets_that_answer_are_ok_and_others_a_warning(postgresql: PostgreSQLServer) -> None:
    away = {"type": "influxdb", "url": f"http://me:hidden@127.0.0.1:{free_port()}/cml", "name": "archive"}
    nobody = {"type": "postgresql", "url": f"postgresql://nobody:hidden@127.0.0.1:{postgresql.port}/postgres"}
    settings = Settings.model_validate(
        {
            "mongodb": {"uri": "mongodb://127.0.0.1:1"},
            "history": {"forward": [target_of(postgresql), away, nobody | {"name": "nobody"}]},
        }
    )
    good, bad, refused = await check_targets(settings)
    assert (good.status, good.text) == ("ok", f"PostgreSQL at 127.0.0.1:{postgresql.port} answers")
    assert (bad.check, bad.status) == ("forward archive", "warn")
    assert "refuses connections; is it running?" in bad.text
    assert refused.status == "warn"
    assert 'role "nobody" does not exist' in refused.text
    assert not any("hidden" in each.text for each in (good, bad, refused))

    def tables() -> int:
        with psycopg.connect(postgresql.address) as connection:
            found = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'cml_worker_metrics'").fetchone()
        return int(found[0]) if found else 0

    assert await asyncio.to_thread(tables) == 0
