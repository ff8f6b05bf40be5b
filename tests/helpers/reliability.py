"""The catalog of faults: what the product promises in each, which test proves it, and what the last measured run saw.

A test that injects a fault ends with

    record("mongodb-killed", lost=0, doubled=0, silence=scraper.longest, recovery=seconds)

which writes a file of figures if RELIABILITY_RECORD is set (`make reliability`), and does nothing else otherwise. The page
docs/reliability.md is made of this catalog and those files, so every row names the test from which its figures are.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "tests" / "reliability"
"""One file of figures for each fault, so that tests may run at the same time."""
PAGE = ROOT / "docs" / "reliability.md"
RECORD = "RELIABILITY_RECORD"
"""Environment variable that makes `record` write."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table."""

    key: str
    fault: str
    promise: str
    test: str
    """File below the repository and name of the function, as pytest takes them."""


_HEALTH = "tests/integration/faults/test_health.py"
_FAULTS = "tests/integration/pipeline/test_faults.py"
_OUTBOX = "tests/integration/faults/test_outbox.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "mongodb-killed",
        "MongoDB is killed for half a minute",
        "`source_up` 0 within 30 s; gauges go on; nothing lost or doubled",
        f"{_HEALTH}::test_mongodb_is_killed",
    ),
    Fault(
        "mongodb-hung",
        "MongoDB hangs (SIGSTOP) for half a minute",
        "as above",
        f"{_HEALTH}::test_mongodb_hangs",
    ),
    Fault(
        "mongodb-no-majority",
        "the replica set loses its majority",
        "`history` says so within half a minute, `check` too; gauges of CloudWatch go on",
        f"{_HEALTH}::test_a_replica_set_without_majority",
    ),
    Fault(
        "mongodb-credentials",
        "MongoDB refuses the credentials",
        "`source_up` 0, `history` says so; written when they are accepted again",
        f"{_HEALTH}::test_mongodb_refuses_the_credentials",
    ),
    Fault(
        "cloudwatch-hangs",
        "CloudWatch accepts requests and never answers",
        "`source_up` 0 of the region within two cycles; gap-filled afterwards",
        f"{_HEALTH}::test_cloudwatch_never_answers",
    ),
    Fault(
        "source-bug",
        "an exception that nobody foresaw in a source",
        "counts as that source failing: `source_up` 0, `/-/ready`; other regions go on",
        f"{_HEALTH}::test_a_bug_in_a_source_is_that_source_failing",
    ),
    Fault(
        "clocks-apart",
        "MongoDB's or CloudWatch's clock is 10 minutes off",
        "that source fails; nothing is dated wrongly",
        f"{_HEALTH}::test_clocks_apart",
    ),
    Fault(
        "disk-full",
        "the disk of the outbox is full for two cycles",
        "`outbox` and `history` fail, the metric counts `disk_full`; gauges go on; no final sample lost",
        f"{_OUTBOX}::test_the_disk_is_full",
    ),
    Fault(
        "file-size-limit",
        "the outbox reaches a limit of the file size",
        "as above, `io`",
        f"{_OUTBOX}::test_a_limit_of_the_file_size",
    ),
    Fault(
        "outbox-damaged-at-start",
        "the outbox is not a database, cut off, malformed, of another program",
        "set aside under a dated name, counted; gaps are looked for again; CPU and memory complete",
        f"{_OUTBOX}::test_a_damaged_outbox_at_the_start",
    ),
    Fault(
        "outbox-damaged-in-use",
        "the outbox turns out damaged while the exporter runs",
        "as above, without a restart",
        f"{_OUTBOX}::test_a_damaged_outbox_in_use",
    ),
    Fault(
        "unread-answers",
        "200 clients send requests and never read the answers",
        "scrapes are answered; SIGTERM within 5 s",
        f"{_HEALTH}::test_clients_that_never_read_their_answers",
    ),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the last recorded run of a test measured; None where it has no such figure."""

    lost: int | None = None
    """Samples, or their status and labs, that the history lacks."""
    doubled: int | None = None
    """Samples that the history has twice."""
    silence: float | None = None
    """Seconds without an answer on /metrics, at most."""
    recovery: float | None = None
    """Seconds from the end of the fault until everything was well again."""
    note: str = ""


def record(key: str, **figures: Any) -> None:  # noqa: ANN401  # the fields of Figures
    """Keep the figures of a fault for the page; without RELIABILITY_RECORD only check that the catalog has the fault."""
    assert key in {fault.key for fault in FAULTS}, f"{key} is not in the catalog of faults"
    found = Figures(**figures)
    if os.environ.get(RECORD):
        FIGURES.mkdir(exist_ok=True)
        values = {name: getattr(found, name) for name in Figures.__dataclass_fields__}
        rounded = {name: round(value, 1) if isinstance(value, float) else value for name, value in values.items()}
        (FIGURES / f"{key}.json").write_text(json.dumps(rounded, indent=1) + "\n")


def recorded() -> Mapping[str, Figures]:
    """Return the figures of the recorded runs by fault."""
    return {path.stem: Figures(**json.loads(path.read_text())) for path in sorted(FIGURES.glob("*.json"))}


def page() -> str:
    """Return docs/reliability.md."""
    figures = recorded()
    rows = "\n".join(_row(fault, figures.get(fault.key)) for fault in FAULTS)
    return f"""# Reliability

For operators who want to know what a fault costs: each row is a fault that a test injects into a running exporter, with the
figures of the last recorded run.

*Lost* are samples, or their status and labs, that the history lacks afterwards; *doubled* are samples that it has twice.
*Silence* is the longest time without an answer on `/metrics`, measured by a client that scrapes ten times a second, on two
shared cores. *Recovery* is the time from the end of the fault until every source, the outbox, and the history were well again.
A dash means that the test has no such figure. What each fault looks like on `/-/ready` is in [web.md](web.md#readiness), and
what to do about it in the [runbook](../prometheus/runbook.md).

Generated: `make reliability` runs the tests of the last column and writes this page. Do not edit it by hand.

| fault | promise | lost | doubled | silence | recovery | shown by |
|---|---|---|---|---|---|---|
{rows}
"""


def _row(fault: Fault, found: Figures | None) -> str:
    file, _, test = fault.test.partition("::")
    found = found or Figures()
    note = f" ({found.note})" if found.note else ""
    cells = (
        fault.fault,
        fault.promise,
        f"{_number(found.lost)}{note}",
        _number(found.doubled),
        _seconds(found.silence),
        _seconds(found.recovery),
        f"[`{test}`](../{file})",
    )
    return f"| {' | '.join(cells)} |"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"
