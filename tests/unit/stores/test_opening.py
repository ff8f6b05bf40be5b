"""What an address of a store must be."""

import pytest

from exporter.core.errors import ConfigError
from exporter.stores.opening import open_store


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("graphite://127.0.0.1", "no store is known at graphite"),
        ("influxdb+http://127.0.0.1:8086", "ends with the database"),
        ("victoriametrics://127.0.0.1:8428", r"write it as victoriametrics\+http://"),
        ("influxdb+http://127.0.0.1:port/db", "cannot be read"),
        ("127.0.0.1", "an address without a scheme"),
    ],
)
def test_an_address_that_is_none_says_how_to_write_one(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_store(address)
