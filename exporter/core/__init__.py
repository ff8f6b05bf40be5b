"""Vocabulary of the whole project: records, errors, time arithmetic, settings, the metric catalog. No network I/O."""
