"""The gauges of /metrics pushed to an OpenTelemetry collector."""
