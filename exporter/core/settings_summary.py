"""What a log line tells of the settings: those that differ from the defaults, without secrets. Pure."""

from pydantic import BaseModel, SecretStr

from exporter.core.settings import Settings
from exporter.core.settings_loader import table

_MASK = "***"


def value_of(settings: Settings, key: str) -> object:
    """Return the value of a setting by its dotted key."""
    value: object = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def differing(settings: Settings) -> dict[str, object]:
    """Return the settings that differ from their defaults, by dotted key: durations in seconds, secrets masked."""
    defaults = Settings.model_validate({"mongodb": {"uri": "mongodb://-"}})
    found = {}
    for setting in table():
        value = value_of(settings, setting.key)
        if value != value_of(defaults, setting.key) and value is not None:
            found[setting.key] = _shown(value)
    return found


def _shown(value: object) -> object:
    """Return a value as the log can write it: numbers and truth values as they are, models and lists as text."""
    if isinstance(value, SecretStr):
        return _MASK
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list):
        return ",".join(str(_shown(item)) for item in value)
    if isinstance(value, dict):
        return ",".join(f"{key}={_shown(item)}" for key, item in value.items())
    if isinstance(value, BaseModel):
        return f"{{{_shown({name: one for name, one in value if one is not None and one != ''})}}}"
    return str(value)
