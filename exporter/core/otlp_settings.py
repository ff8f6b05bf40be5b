"""Settings of the push to an OpenTelemetry collector."""

from pydantic import Field

from exporter.core.setting_types import Duration, Section, Url


class OtlpSettings(Section):
    """OTLP over HTTP; headers, certificates and the proxy are those of OpenTelemetry's environment variables."""

    endpoint: Url | None = Field(
        None,
        description="OpenTelemetry collector that gets the gauges, such as http://127.0.0.1:4318; needs the extra `otlp`. "
        "Headers: the environment variable OTEL_EXPORTER_OTLP_HEADERS.",
    )
    interval: Duration = Field("60s", description="Time between two pushes.")  # type: ignore[assignment]
