"""Programs that a benchmark runs with the code of another checkout: they import only `exporter`, not `bench`."""
