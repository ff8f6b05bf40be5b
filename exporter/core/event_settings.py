"""Settings of `import-events`: where the manager's events are, and which of their fields hold what."""

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import Field

from exporter.core.setting_types import Collection, FieldNames, Section

EVENT_TYPES: Mapping[str, Mapping[str, list[str]]] = MappingProxyType(
    {
        "CMLWorkerTelemetryUpdatedDomainEvent": {},
        "cml_worker.telemetry.updated.v1": {},
        "CloudWatchMetricsUpdatedDomainEvent": {},
        "cml_worker.cloudwatch_metrics.updated.v1": {},
        "CMLMetricsUpdatedDomainEvent": {},
        "cml_worker.cml_metrics.updated.v1": {},
        "CMLWorkerStatusUpdatedDomainEvent": {},
        "cml_worker.status.updated.v1": {},
        "CMLWorkerCreatedDomainEvent": {},
        "cml_worker.created.v1": {},
        "CMLWorkerImportedDomainEvent": {"status": ["instance_state"]},
        "cml_worker.imported.v1": {"status": ["instance_state"]},
        "CMLWorkerTerminatedDomainEvent": {"status": ["=terminated"]},
        "cml_worker.terminated.v1": {"status": ["=terminated"]},
    }
)
"""The manager's events of all its generations, by class and by CloudEvent type, and what differs from `EventFields`."""


class EventFields(Section):
    """Where the events of one type hold what they tell; the first name present wins, a null is not present.

    Values are searched in the payload, `worker_id` and `time` in the envelope, too. A name that begins with = is the value
    itself: `=terminated`.
    """

    worker_id: FieldNames = Field(["aggregate_id", "worker_id", "subject"], description="Id of the worker.")
    time: FieldNames = Field(
        [
            *("collected_at", "synced_at", "terminated_at", "updated_at", "created_at"),
            *("occurred_at", "recorded_at", "timestamp", "time"),
        ],
        description="Time at which the values were true.",
    )
    cpu: FieldNames = Field(["cpu_utilization"], description="CPU utilization in percent.")
    memory: FieldNames = Field(["memory_utilization"], description="Memory utilization in percent.")
    labs: FieldNames = Field(["active_labs_count", "labs_count", "cml_labs_count"], description="Number of labs.")
    status: FieldNames = Field(["new_status", "status"], description="Status of the worker.")
    region: FieldNames = Field(["aws_region"], description="AWS region, for a worker that is gone.")
    name: FieldNames = Field(["name"], description="Name of the worker, for one that is gone.")


class EventsSettings(Section):
    """The manager's events, read by `import-events` only."""

    collection: Collection = Field(
        "domain_events", description="Collection of the manager's events; only `import-events` reads it."
    )
    types: dict[str, EventFields] = Field(
        default={},
        description="Additional types of events, or other fields of a built-in one, such as {WorkerSampled: {cpu: [cpu_pct]}}.",
    )

    @property
    def fields(self) -> dict[str, EventFields]:
        """Return event type → its fields: the built-in types, and those of `types` in addition or in their place."""
        return {name: EventFields.model_validate(fields) for name, fields in EVENT_TYPES.items()} | self.types
