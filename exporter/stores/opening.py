"""Which store an address means."""

from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, urlsplit

from exporter.core.errors import ConfigError
from exporter.stores.influxdb import InfluxDB
from exporter.stores.store import Store
from exporter.stores.victoriametrics import VictoriaMetrics


def _postgresql(url: SplitResult) -> Store:
    from exporter.stores.postgresql import PostgreSQL  # the driver is an extra

    return PostgreSQL(url)


_KINDS: Mapping[str, Callable[[SplitResult], Store]] = {
    "victoriametrics": VictoriaMetrics,
    "influxdb": InfluxDB,
    "postgresql": _postgresql,
    "postgres": _postgresql,
}
EXAMPLES = (
    "victoriametrics+http://host:8428",
    "influxdb+http://user:password@host:8086/database",
    "postgresql://user:password@host:5432/database",
)


def open_store(address: str) -> Store:
    """Return the store at an address such as those of EXAMPLES; nothing is connected yet.

    Raises:
        ConfigError: the address is none, or the driver is not installed.
    """
    try:
        url = urlsplit(address)
        url.port  # noqa: B018  # raises for what is no number
    except ValueError as error:
        raise ConfigError(f"the address of the store cannot be read ({error}); write it as {_examples()}") from error
    kind, _, transport = url.scheme.partition("+")
    make = _KINDS.get(kind)
    web = kind in ("victoriametrics", "influxdb")
    if make is None or (web and (transport not in ("http", "https") or not url.hostname)) or (not web and transport):
        raise ConfigError(f"no store is known at {url.scheme or 'an address without a scheme'}://…; write it as {_examples()}")
    return make(url)


def _examples() -> str:
    return ", ".join(EXAMPLES[:-1]) + f", or {EXAMPLES[-1]}"
