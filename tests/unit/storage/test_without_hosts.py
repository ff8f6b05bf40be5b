"""What HTTP clients read of an outage says that MongoDB's servers fail, and not where they are. No server."""

import pytest
from pymongo import AsyncMongoClient

from exporter.storage.mongo import without_hosts


@pytest.mark.parametrize(
    ("servers", "text", "public"),
    [
        ("db1", "no MongoDB for `find` on a.b: db1:27017 refuses connections", "a server refuses connections"),
        ("db1,db2:27018", "each of db1:27017, db2:27018 does not answer in time; check", "each server does not answer in time"),
        (
            "db1,db2:27018",
            "no member of the replica set is its primary, of db1:27017, db2:27018; check",
            "no member of the replica set is its primary; check",
        ),
        ("db1", "certificate is not valid for 'db1'", "certificate is not valid for its host"),
    ],
)
async def test_a_text_for_http_clients_names_no_server(servers: str, text: str, public: str) -> None:
    client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(f"mongodb://{servers}", connect=False)
    try:
        shown = without_hosts(text, client)
    finally:
        await client.close()
    assert public in shown
    assert "db1" not in shown
