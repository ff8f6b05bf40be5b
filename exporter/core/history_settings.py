"""Settings of what happens to a sample once it is in the history: other databases that get a copy."""

import re
import string
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from exporter.core.errors import ConfigError
from exporter.core.setting_types import Section
from exporter.core.yaml_file import read_text

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
    url: SecretStr | None = Field(
        None, description="Where it is, with user and password; InfluxDB and PostgreSQL with the database."
    )
    url_file: Path | None = Field(
        None, description="File that holds the URL, in place of `url`; read again at each connection. It needs a `name`."
    )
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
    def _one_url(self) -> Self:
        if self.url_file and re.search(":/", str(self.url_file)):
            # Every message about the file names its path, which here holds a password.
            raise ValueError("url_file holds a URL instead of the path of a file; move it to url, or into a file")
        if self.url and self.url_file:
            raise ValueError("url and url_file are both set; keep one of them")
        if self.url:
            if problem := self._problem(self.url.get_secret_value()):
                raise ValueError(f"url {problem}")
        elif not self.url_file:
            raise ValueError("url is missing; write it, or url_file")
        elif not self.name:
            raise ValueError("name is missing; a target with url_file needs one, which stays when the URL changes")
        return self

    def _problem(self, text: str) -> str | None:
        """Return what is wrong with a URL; the sentence does not repeat it, since it holds the password."""
        example = _EXAMPLES[self.type]
        try:
            url = urlsplit(text)
            url.port  # noqa: B018  # raises for what is no number
        except ValueError:
            return f"cannot be read; write it as {example}"
        if url.scheme not in _SCHEMES[self.type]:
            return f"of {self.type} must begin with {_SCHEMES[self.type][0]}://; write it as {example}"
        if self.type != "postgresql" and not url.hostname:
            return f"has no host; write it as {example}"
        if self.type == "influxdb" and not re.fullmatch("/[^/]+/?", url.path):
            return f"must end with the database; write it as {example}"
        return None

    @property
    def label(self) -> str:
        """The name, or what tells the target from others without its user, password and parameters."""
        if self.url is None:
            return self.name
        url = urlsplit(self.url.get_secret_value())
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or "localhost"
        return self.name or f"{self.type}://{host}:{url.port or _PORTS[self.type]}{url.path.rstrip('/')}"

    def address(self) -> str:
        """Return the URL, of `url` or of `url_file` as it is now, as an address of `export --to`.

        Raises:
            ConfigError: the file cannot be read or is empty, or holds no such URL.
        """
        if self.url is not None:
            url = self.url.get_secret_value()
        else:
            key = f"history.forward {self.name}: url_file"
            url = read_text(Path(str(self.url_file)), key).strip(f"{string.whitespace}\0")
            if problem := self._problem(url) if url else f"is missing; write it as {_EXAMPLES[self.type]}":
                raise ConfigError(f"{key} {self.url_file}: the URL {problem}")
        return url if self.type == "postgresql" else f"{self.type}+{url}"


class HistorySettings(Section):
    """Copies of the history in other databases."""

    forward: list[ForwardTarget] = Field(
        default=[],
        description="Databases that get every sample once it is in MongoDB: [{type, url or url_file, name}]; type is "
        "victoriametrics, influxdb or postgresql.",
    )
    forward_max_samples: int = Field(
        10_000_000,
        ge=MIN_FORWARD_SAMPLES,
        description="Samples that wait in the outbox for these databases, at most, 100 bytes each; beyond it the oldest are "
        "dropped, and counted, apart from those of the last ten minutes.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        labels = [target.label for target in self.forward]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"forward: two targets are called {label}; give one of them another name")
        return self
