"""Helpers that tests and bench share: emulators, readers of formats, an exporter on a pretended clock.

This is the only part of tests/ that bench/ may import; import-linter holds that (pyproject.toml).
"""
