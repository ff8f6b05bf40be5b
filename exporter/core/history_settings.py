"""Settings of what happens to a sample once it is in the history: other databases that get a copy."""

import re
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from exporter.core.setting_types import Section

_SCHEMES = {"victoriametrics": ("http", "https"), "influxdb": ("http", "https"), "postgresql": ("postgresql", "postgres")}
_EXAMPLES = {
    "victoriametrics": "http://host:8428",
    "influxdb": "http://user:password@host:8086/database",
    "postgresql": "postgresql://user:password@host:5432/database",
}
_PORTS = {"victoriametrics": 8428, "influxdb": 8086, "postgresql": 5432}
MIN_FORWARD_SAMPLES = 1000


class ForwardTarget(Section):
    """One database that gets a copy of every sample."""

    type: Literal["victoriametrics", "influxdb", "postgresql"] = Field(
        description="What the database is: victoriametrics, influxdb or postgresql."
    )
    url: SecretStr = Field(description="Where it is, with user and password; InfluxDB and PostgreSQL with the database.")
    name: str = Field(
        "", description="Value of the label `target`; changing it starts anew. Default: type, host, port and path of the URL."
    )

    @field_validator("name")
    @classmethod
    def _short_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[!-~]([ -~]{0,98}[!-~])?", value):
            raise ValueError("it must be 1 to 100 printable ASCII characters, such as archive")
        return value

    @model_validator(mode="after")
    def _url_fits_the_type(self) -> Self:
        # No message repeats the URL, which holds the password.
        example = _EXAMPLES[self.type]
        try:
            url = urlsplit(self.url.get_secret_value())
            url.port  # noqa: B018  # raises for what is no number
        except ValueError:
            raise ValueError(f"url cannot be read; write it as {example}") from None
        if url.scheme not in _SCHEMES[self.type]:
            raise ValueError(f"url of {self.type} must begin with {_SCHEMES[self.type][0]}://; write it as {example}")
        if self.type != "postgresql" and not url.hostname:
            raise ValueError(f"url has no host; write it as {example}")
        if self.type == "influxdb" and not re.fullmatch("/[^/]+/?", url.path):
            raise ValueError(f"url must end with the database; write it as {example}")
        return self

    @property
    def label(self) -> str:
        """The name, or what tells the target from others without its user, password and parameters."""
        url = urlsplit(self.url.get_secret_value())
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or "localhost"
        return self.name or f"{self.type}://{host}:{url.port or _PORTS[self.type]}{url.path.rstrip('/')}"

    @property
    def address(self) -> str:
        """The same as an address of `export --to`."""
        url = self.url.get_secret_value()
        return url if self.type == "postgresql" else f"{self.type}+{url}"


class HistorySettings(Section):
    """Copies of the history in other databases."""

    forward: list[ForwardTarget] = Field(
        default=[],
        description="Databases that get every sample once it is in MongoDB: [{type, url, name}]; type is victoriametrics, "
        "influxdb or postgresql.",
    )
    forward_max_samples: int = Field(
        10_000_000,
        ge=MIN_FORWARD_SAMPLES,
        description="Samples that wait in the outbox for these databases, at most, 100 bytes each; beyond it the oldest are "
        "dropped, and counted.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        labels = [target.label for target in self.forward]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"forward: two targets are called {label}; give one of them another name")
        return self
