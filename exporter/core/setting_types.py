"""What the models of the settings share: their base class, and the types of names in MongoDB."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

OWN_COLLECTIONS = ("worker_metrics_inventory", "cml_exporter_state")
"""Collections beside the history that the exporter writes; a setting that names a collection must name another one."""


def _collection(value: str) -> str:
    if not value or value.startswith("system.") or set(value) & set("$\0"):
        raise ValueError(f"{value!r} is not a collection name; write one without $ that does not begin with system.")
    if value in OWN_COLLECTIONS:
        raise ValueError(f"{value!r} is reserved for the exporter; choose another name")
    return value


def _field_name(value: str) -> str:
    if not all(part and not part.startswith("$") for part in value.split(".")) or "\0" in value:
        raise ValueError(f"{value!r} is not a field name; write keys joined by dots, none of them empty or beginning with $")
    return value


def listed(value: object) -> object:
    """Return the parts of a text that is separated by commas, any other value as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Collection = Annotated[str, AfterValidator(_collection)]
FieldName = Annotated[str, AfterValidator(_field_name)]
"""Keys joined by dots."""
FieldNames = Annotated[list[FieldName], BeforeValidator(listed)]


class Section(BaseModel):
    """A mapping of settings: unknown keys are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)
