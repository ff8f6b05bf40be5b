"""Records, errors, time arithmetic, settings and the metric catalog, which every package uses. No network I/O."""
