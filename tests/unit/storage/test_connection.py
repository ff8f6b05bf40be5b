"""Options of the client that a connection string makes."""

import pytest

from exporter.storage.mongo import connect_uri


@pytest.mark.parametrize(
    ("options", "mode"), [("", "poll"), ("?serverMonitoringMode=stream", "stream"), ("?servermonitoringmode=auto", "auto")]
)
async def test_servers_are_polled_unless_the_connection_string_says_otherwise(options: str, mode: str) -> None:
    client, _ = connect_uri(f"mongodb://127.0.0.1:1/cml{options}")
    assert client.options.server_monitoring_mode == mode
    await client.close()
