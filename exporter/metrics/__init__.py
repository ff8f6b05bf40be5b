"""The text of /metrics: the worker block in the exposition format, and the exporter metrics."""
