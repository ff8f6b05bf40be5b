"""Sources that the exporter only reads: the manager's worker documents and CloudWatch."""
