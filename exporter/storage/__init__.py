"""The MongoDB collections that the exporter writes."""
