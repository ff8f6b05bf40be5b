"""JSON bodies of the responses as pydantic models: the schemas of the OpenAPI document. Small responses are built of them.

Rows of history are not built as models: a page has up to 10,000 of them. A test validates real responses of every route
against these models, so that both stay the same.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from exporter.core.model import STATUSES

Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""A time in RFC 3339, UTC."""
Status = Annotated[str, Field(json_schema_extra={"title": "WorkerStatus", "enum": list(STATUSES)})]
Source = Annotated[Literal["mongodb", "cloudwatch"], Field(json_schema_extra={"title": "HistorySource"})]
Percent = Annotated[float, Field(description="percent")]
Share = Annotated[float, Field(ge=0, le=1)]


def _allow_new_keys(schema: dict[str, Any]) -> None:
    """Keep clients that are generated from the OpenAPI document from rejecting a key that a later release adds."""
    schema.pop("additionalProperties", None)


class ResponseModel(BaseModel):
    """A JSON object of a response. Keys that are not declared are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_allow_new_keys)


# -- workers -----------------------------------------------------------------------------------------------------------


class InstanceRecord(ResponseModel):
    """An EC2 instance that a worker was seen with."""

    instance_id: str
    region: str
    first_seen: Moment
    last_seen: Moment


def _may_be_left_out(schema: dict[str, Any]) -> None:
    """Say that a request with `fields` gets only the keys that it names, and the id."""
    _allow_new_keys(schema)
    schema["required"] = ["worker_id"]


class FleetWorker(ResponseModel):
    """A worker of the fleet, or one that has left it but still has history. It has all keys, unless `fields` selects some."""

    model_config = ConfigDict(json_schema_extra=_may_be_left_out)

    worker_id: str
    region: str
    status: Status | None = Field(description="null if it is not known")
    name: str | None
    instance_id: str | None
    private_ip: str | None
    instance_type: str | None
    cml_version: str | None
    cpu_utilization: Percent | None
    cpu_time: Moment | None = Field(description="end of the period that cpu_utilization stands for")
    memory_utilization: Percent | None
    memory_time: Moment | None = Field(description="end of the period that memory_utilization stands for")
    active_labs_count: int | None
    last_activity_at: Moment | None
    created_at: Moment | None
    terminated_at: Moment | None
    observed_at: Moment | None = Field(description="when the worker document was read")
    nodes_running: int | None
    nodes_total: int | None
    ready: bool | None = Field(description="whether CML answers and is ready")
    uptime_seconds: float | None
    disk_used_bytes: float | None
    disk_total_bytes: float | None
    memory_total_bytes: float | None
    licensed: bool | None
    license_status: str | None
    service_status: str | None
    ec2_instance_check: str | None
    ec2_system_check: str | None
    detailed_monitoring: bool | None
    auto_pauses: int | None
    idle_pause_at: Moment | None = Field(description="when the manager will pause the worker unless it sees activity")
    extra: dict[str, float | str] = Field(description="metrics of `workers.extra` by name; a state set has its state")
    first_seen: Moment | None
    last_seen: Moment | None
    instances: tuple[InstanceRecord, ...] = Field(description="oldest first")


class FleetPage(ResponseModel):
    """A page of workers, sorted by id."""

    data: tuple[FleetWorker, ...]
    next: str | None = Field(description="cursor of the next page, null on the last")
    source: Literal["mongodb"]
    resolution_seconds: int = Field(description="seconds that a sample stands for")


# -- history -----------------------------------------------------------------------------------------------------------


class HistoryWorker(ResponseModel):
    """The worker that a page of history belongs to."""

    worker_id: str
    name: str | None
    region: str
    status: Status | None = Field(description="today's status, null if it is not known")
    instance_type: str | None
    cml_version: str | None
    created_at: Moment | None
    terminated_at: Moment | None
    first_seen: Moment | None
    last_seen: Moment | None
    instances: tuple[InstanceRecord, ...] = Field(description="oldest first")


class SampleValues(ResponseModel):
    """One sample."""

    timestamp: Moment = Field(description="start of the period")
    cpu_utilization: Percent | None
    memory_utilization: Percent | None
    active_labs_count: float | None
    status: str | None


class SampleRow(SampleValues):
    """One sample, as a row of a page."""

    earlier: SampleValues | None = Field(None, description="with `compare`: the sample that long before, null if there is none")


class MetricStatistics(ResponseModel):
    """Statistics of one metric over the samples of an interval; null if `samples` is 0."""

    avg: float | None
    min: float | None
    max: float | None
    samples: int = Field(ge=0, description="number of samples with a value")
    p50: float | None = Field(default=None, description="with `percentiles=true`, as p95 and p99")
    p95: float | None = None
    p99: float | None = None
    above_seconds: float | None = Field(default=None, ge=0, description="with `above`: seconds above it")


class StatusShares(RootModel[dict[str, Share]]):
    """Status → its share of the samples that have a status; empty if none has one."""


class IntervalValues(ResponseModel):
    """Statistics of the samples of one interval."""

    timestamp: Moment = Field(description="start of the interval")
    cpu_utilization: MetricStatistics
    memory_utilization: MetricStatistics
    active_labs_count: MetricStatistics
    status_share: StatusShares


class IntervalRow(IntervalValues):
    """Statistics of the samples of one interval, as a row of a page."""

    earlier: IntervalValues | None = Field(
        None, description="with `compare`: the interval that long before, null if there is none"
    )


class HistorySegment(ResponseModel):
    """Rows of a page that follow each other and have one source and one resolution."""

    start: Moment = Field(description="from which they were read")
    source: Source
    resolution_seconds: int = Field(description="seconds that a sample stands for")
    interval_seconds: int | None = Field(description="length of the intervals, null for samples")
    rows: int = Field(ge=0, description="number of rows")


class HistoryPart(ResponseModel):
    """Where the rows of a page come from, and whose they are."""

    source: Literal["mongodb", "cloudwatch", "mixed"] = Field(
        description="`mixed`: of both; `segments` says which", json_schema_extra={"title": "PageSource"}
    )
    resolution_seconds: int = Field(description="seconds that a sample stands for; the greatest of `segments`")
    interval_seconds: int | None = Field(description="length of the intervals, the greatest of `segments`; null for samples")
    segments: tuple[HistorySegment, ...] = Field(description="sources and resolutions of the rows, oldest first")
    worker: HistoryWorker
    note: str = Field("", description="remark on the page; absent if there is none")


class WorkerHistory(HistoryPart):
    """Rows of one worker's history, oldest first."""

    data: tuple[SampleRow | IntervalRow, ...] = Field(
        description="samples, or with `interval` one row for each interval that has samples"
    )


class Columns(RootModel[dict[str, tuple[float | str | None, ...]]]):
    """Name → values: `timestamp`, `unix_seconds` (the same as a number), and the columns of the CSV."""


class WorkerColumns(HistoryPart):
    """The history of one worker with `format=columns`: an array for each field, all of the same length."""

    columns: Columns


class HistoryPage(WorkerHistory):
    """A page of one worker's history, oldest row first."""

    next: str | None = Field(description="cursor of the next page, null on the last")


class HistoryColumns(WorkerColumns):
    """A page of one worker's history with `format=columns`, oldest first."""

    next: str | None = Field(description="cursor of the next page, null on the last")


class HistoryResponse(RootModel[HistoryPage | HistoryColumns]):
    """A page of one worker's history: rows, or with `format=columns` columns."""


class FleetHistoryPage(ResponseModel):
    """A page of the history of many workers, one after the other, sorted by id."""

    data: tuple[WorkerHistory | WorkerColumns, ...] = Field(
        description="workers; the last one may continue on the next page, which then begins with it"
    )
    next: str | None = Field(description="cursor of the next page, null on the last")


# -- the other routes --------------------------------------------------------------------------------------------------


class ResourceUsage(ResponseModel):
    """Average CPU and memory of one worker. Utilizations are texts."""

    id: str | None = Field(description="the EC2 instance")
    region_name: str
    relative_start_time: str = Field(description="`start_time` as it was requested")
    avg_cpu_utilization: str | None = Field(description="percent with one decimal, such as 45.2")
    avg_memory_utilization: str | None = Field(description="percent with one decimal")
    start_time: Moment = Field(description="start of the first period that was averaged")
    end_time: Moment = Field(description="end of the last period that was averaged")


class SourceState(ResponseModel):
    """Result of the last read of a source."""

    ok: bool
    error: str | None = Field(description="the last error, null after a success")
    note: str | None = Field(description="what the exporter does in place of reading this source, null while it reads it")


class Readiness(ResponseModel):
    """Whether the exporter is ready, and the state of each source, of the outbox and of the history."""

    ready: bool
    status: Literal["starting", "degraded", "ok"] = Field(
        description="starting: not ready yet; degraded: ready, but at least one of `sources` is not ok"
    )
    sources: dict[str, SourceState]


class TargetGroup(ResponseModel):
    """One target of Prometheus's HTTP service discovery."""

    targets: tuple[str, ...]
    labels: dict[str, str]


class TargetGroups(RootModel[tuple[TargetGroup, ...]]):
    """The targets of Prometheus's HTTP service discovery."""


class OpenApiDocument(RootModel[dict[str, Any]]):
    """The OpenAPI document of the routes."""


class Problem(ResponseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="one sentence that says what to do")


# -- OpenAPI -----------------------------------------------------------------------------------------------------------


class _WithoutTitles(GenerateJsonSchema):
    """JSON schemas without a title for each key, which would only repeat the key."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def definitions(models: Iterable[type[BaseModel]]) -> Mapping[str, Any]:
    """Return name → JSON schema of the models and of all models in them, for components/schemas of an OpenAPI document."""
    _, schema = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_WithoutTitles,
    )
    found: Mapping[str, Any] = schema["$defs"]
    return found
