"""Numbers to text: the exposition format and the exporter metrics."""
