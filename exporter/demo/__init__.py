"""`demo`: a fake AWS, a MongoDB and a simulated manager in front of the unmodified exporter."""
