"""Every exception that the exporter raises on purpose.

    ExporterError
    ├── ConfigError                 a setting is unknown, of the wrong type, or contradicts another; nothing was started
    ├── RequestError                an HTTP request is invalid; the client must change it
    ├── SourceError                 MongoDB's worker documents or CloudWatch: no answer, a partial one, or a skewed clock
    │   ├── RejectedQueryError      CloudWatch refuses the content of a request; the same request would be refused again
    │   └── ReaderBudgetError       HTTP readers have spent their share of the day's CloudWatch budget
    └── StoreError                  the history or the outbox cannot be written or read
        ├── StoreUnavailableError   down, no primary, timed out: may work again; whether a write happened is unknown
        │   └── FencedError         another attempt to write began later; MongoDB refused this one, nothing of it is written
        ├── IncompatibleStoreError  wrong kind of collection, period, schema or privileges; the operator must act
        └── OutboxLockedError       another process holds the data folder

Every message is one sentence that names what failed and what to do. Errors of a library are translated in one place per driver:
boto3 in `sources.cloudwatch.errors`, pymongo in `storage.mongo`, sqlite3 in `pipeline.outbox_file`, pydantic in
`core.settings_loader`. An exception that never leaves its module or package is a direct subclass of ExporterError there.
"""


class ExporterError(Exception):
    """Root of the tree; the command line prints these without a traceback."""


class ConfigError(ExporterError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class RequestError(ExporterError):
    """An HTTP request is invalid; the message says what is valid."""


class SourceError(ExporterError):
    """A source did not answer, answered in part, or its clock is skewed. The read has no result.

    `source` is "mongodb" or "cloudwatch". `code` is the error code of AWS or MongoDB, else the class of the library's error.
    """

    def __init__(self, source: str, code: str, message: str, *, region: str = "") -> None:
        super().__init__(message)
        self.source = source
        self.region = region
        self.code = code


class RejectedQueryError(SourceError):
    """CloudWatch refuses the content of a request; one malformed instance id fails its whole call."""


class ReaderBudgetError(SourceError):
    """HTTP readers have spent their share of the day's CloudWatch budget, or polling needs the rest of it; until 00:00 UTC."""


class StoreError(ExporterError):
    """The history or the outbox cannot be written or read."""

    def __init__(self, message: str, *, reason: str = "error") -> None:
        super().__init__(message)
        self.reason = reason
        """Value of the label `reason` of cml_exporter_mirror_failures_total."""


class StoreUnavailableError(StoreError):
    """The store is down or slow and may recover; whether a write happened is unknown."""


class FencedError(StoreUnavailableError):
    """Another writer, or a later attempt of this one, has raised the number of the fence: this write was refused for good."""


class IncompatibleStoreError(StoreError):
    """The store exists but cannot be used as it is; the operator must act."""


class OutboxLockedError(StoreError):
    """Another process holds the data folder."""


OUTBOX_FAILURE_REASONS = ("disk_full", "read_only", "io", "damaged", "other")
"""The values of the `reason` label of cml_exporter_outbox_write_failures_total; those of a StoreError, else "other"."""

FORWARD_FAILURES = ("unavailable", "timeout", "refused", "inventory", "outbox", "bug")
"""The values of the `reason` label of cml_exporter_forward_failures_total. refused: user, password, privileges, a missing
table; inventory: MongoDB does not answer with the labels that the target stores."""

FORWARD_REFUSALS = ("retention", "invalid", "too_large")
"""Why a target refuses samples for good, values of the `reason` label of cml_exporter_forward_samples_dropped_total. retention:
older than what it keeps; invalid: a value that it cannot store, or its own rules forbid; too_large: one request is larger than
it accepts."""
