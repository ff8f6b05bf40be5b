"""Everything this package raises on purpose.

    ExporterError
    ├── ConfigError          a setting is unknown, of the wrong type, or contradicts another; nothing was started
    ├── RequestError         an HTTP request asks for what cannot be answered; the client must change it
    ├── SourceError          a source (the aggregates, CloudWatch) did not answer, answered in part, or its clock is not ours
    │   └── RejectedQueryError  CloudWatch refuses the content of a request; asking the same again is pointless
    └── StoreError           the history or the outbox cannot be written or read
        ├── StoreUnavailableError    down, no primary, timed out: may work again; whether a write happened is unknown
        ├── IncompatibleStoreError   wrong kind of collection, period, schema or privileges; the operator must act
        └── OutboxLockedError        another process holds the data folder

Every message is one sentence that names the thing and the way out. Foreign errors are translated where they enter:
boto's in `cloudwatch`, pymongo's in `history`, sqlite's in `outbox`, pydantic's in `config`.
"""


class ExporterError(Exception):
    """The root of the tree; the command line prints these without a traceback."""


class ConfigError(ExporterError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class RequestError(ExporterError):
    """An HTTP request asks for what cannot be answered; the message says what can."""


class SourceError(ExporterError):
    """A source did not answer, answered in part, or its clock is not ours. Nothing follows from it.

    `source` is "mongodb" or "cloudwatch", `code` the foreign error's own code (of AWS or MongoDB, else a class name).
    """

    def __init__(self, source: str, code: str, message: str, *, region: str = "") -> None:
        super().__init__(message)
        self.source = source
        self.region = region
        self.code = code


class RejectedQueryError(SourceError):
    """CloudWatch refuses the content of a request, so that one malformed instance id fails its whole batch."""


class StoreError(ExporterError):
    """The history or the outbox cannot be written or read."""

    def __init__(self, message: str, *, reason: str = "error") -> None:
        super().__init__(message)
        self.reason = reason
        """A short word for the `reason` label of cml_exporter_mirror_failures_total."""


class StoreUnavailableError(StoreError):
    """It may work again by itself; whether a write happened is unknown."""


class IncompatibleStoreError(StoreError):
    """What is there is not ours to use; somebody must act."""


class OutboxLockedError(StoreError):
    """Another process holds the data folder."""
