"""Parameters of the mongod of tests; without pytest, because writers that `tests.tools` starts import them too."""

NO_TTL = {"ttlMonitorEnabled": "false"}
"""Tests use fixed dates, which the TTL monitor would otherwise delete within a minute."""
FAIL_POINTS = {"enableTestCommands": "1"}
"""Fail points let a test delay the commit by a majority."""
