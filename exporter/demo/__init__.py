"""`cml-worker-exporter demo`: a fake AWS, a MongoDB and a simulated manager for the unmodified exporter."""
