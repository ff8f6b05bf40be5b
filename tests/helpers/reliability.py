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
_CUTS = "tests/integration/storage/test_network_cuts.py"
_PAUSED = "tests/integration/storage/test_paused_writers.py"
_COPIED = "tests/integration/faults/test_copied_data_dir.py"
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
        "mongodb-privileges",
        "MongoDB withdraws the user's privileges",
        "`source_up` 0 and `history` say so within two cycles; written when they are granted again",
        f"{_HEALTH}::test_mongodb_withdraws_the_privileges",
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
    Fault(
        "network-cut-replica-set",
        "the network is cut for 8 to 60 s at an insert, replica set; the kernel delivers the bytes late",
        "0 doubled: the fence refuses what arrives after the next attempt",
        f"{_CUTS}::test_a_network_cut_at_an_insert_neither_loses_nor_doubles",
    ),
    Fault(
        "network-cut-standalone",
        "the same on a standalone server, which has no fence",
        "the deadline and SO_LINGER hold; without SO_LINGER 8,000 were doubled",
        f"{_CUTS}::test_a_network_cut_at_an_insert_neither_loses_nor_doubles",
    ),
    Fault(
        "writer-paused-replica-set",
        "the writer is paused (SIGSTOP) anywhere in a batch until another has written it",
        "0 doubled",
        f"{_PAUSED}::test_wherever_a_writer_is_paused_nothing_is_lost_or_doubled_even_if_its_lease_ended_early",
    ),
    Fault(
        "writer-paused-standalone",
        "the same on a standalone server",
        "0 doubled, but for a batch that the driver is sending: `check` and the log say so",
        f"{_PAUSED}::test_on_a_standalone_server_only_an_insert_that_the_driver_is_sending_can_be_stored_twice",
    ),
    Fault(
        "data-dir-copied",
        "two exporters run with copies of one data_dir on one host",
        "0 doubled: each process has an owner of its own",
        f"{_COPIED}::test_exporters_on_copies_of_one_folder_lose_and_double_nothing",
    ),
    Fault(
        "data-dir-copied-standalone",
        "the same on a standalone server",
        "the lease and the deadline hold; there is no fence behind them",
        f"{_COPIED}::test_exporters_on_copies_of_one_folder_lose_and_double_nothing",
    ),
    Fault(
        "step-downs",
        "240 s of step-downs, kills, and pauses of the primary on three nodes",
        "each worker and period once",
        "tests/integration/pipeline/test_step_downs.py::test_step_downs_kills_and_pauses_of_the_primary_lose_and_double_nothing",
    ),
    Fault(
        "majority-lost-6-minutes",
        "a majority is lost for 6 minutes while MongoDB can be read",
        "no status lost",
        "tests/integration/pipeline/test_step_downs.py::test_a_lost_majority_costs_no_status_and_no_labs",
    ),
    Fault(
        "fsync-lock",
        "MongoDB is locked against writes (`fsyncLock`)",
        "no status lost",
        "tests/integration/pipeline/test_not_writable.py::test_an_fsync_lock_loses_no_status",
    ),
    Fault(
        "history-dropped",
        "the history is dropped while the exporter runs",
        "comes back as the time series that it was; gaps are filled",
        "tests/integration/storage/test_changed_history.py::test_what_was_dropped_comes_back_as_the_time_series_that_it_was",
    ),
    Fault(
        "older-backup",
        "MongoDB is replaced by an older backup",
        "noticed; the hole is filled within `gap_fill_window`",
        "tests/integration/pipeline/test_replaced_history.py::test_the_history_is_whole_again",
    ),
    Fault(
        "password-rotated",
        "the MongoDB user gets another password, or is dropped and made again",
        "the file is read again; no restart",
        "tests/integration/storage/test_credential_rotation.py::test_a_running_exporter_goes_on_in_all_its_clients",
    ),
    Fault(
        "account-fails",
        "one of several AWS accounts cannot be read",
        "hides no other",
        "tests/integration/pipeline/test_accounts.py::test_a_failing_account_hides_no_other_and_loses_nothing",
    ),
    Fault(
        "credentials-of-aws",
        "AWS credentials expire, rotate, or come from another provider",
        "renewed where they came from",
        "tests/integration/sources/cloudwatch/test_credentials.py::test_keys_that_expire_are_renewed_where_they_came_from",
    ),
    Fault(
        "regular-expression",
        "a remote read with a nested regular expression",
        "scrapes within a second",
        "tests/integration/web/test_attacks.py::test_metrics_go_on_within_a_second_and_memory_is_bounded",
    ),
    Fault(
        "endless-header",
        "one header line that never ends",
        "as above; memory bounded",
        "tests/integration/web/test_attacks.py::test_metrics_go_on_within_a_second_and_memory_is_bounded",
    ),
    Fault(
        "silent-connections",
        "1,000 connections that send nothing",
        "as above; descriptors are left for scrapes",
        "tests/integration/web/test_attacks.py::test_metrics_go_on_within_a_second_and_memory_is_bounded",
    ),
    Fault(
        "wrong-passwords",
        "300 wrong passwords from clients that hang up",
        "delay neither scrapes nor a first login",
        "tests/integration/web/test_attacks.py::test_wrong_passwords_delay_neither_scrapes_nor_a_first_login",
    ),
    Fault(
        "half-requests",
        "1,000 connections that send no whole request",
        "scrapes within a second; each is closed after 30 s",
        "tests/integration/web/test_attacks.py::test_metrics_go_on_within_a_second_and_memory_is_bounded",
    ),
    Fault(
        "unread-answers-of-thousands",
        "3,000 answers that are never read, on 300 connections",
        "scrapes within a second; memory bounded",
        "tests/integration/web/test_attacks.py::test_metrics_go_on_within_a_second_and_memory_is_bounded",
    ),
    Fault(
        "pipelined-requests",
        "500,000 pipelined requests on 100 connections",
        "as above",
        "tests/integration/web/test_attacks.py::test_metrics_go_on_within_a_second_and_memory_is_bounded",
    ),
    Fault(
        "anonymous-reader",
        "an anonymous reader asks for `/resources` and old history all day",
        "spends its share of the budget, then 429; polling goes on",
        "tests/integration/web/test_reader_budget.py::test_an_anonymous_loop_spends_the_share_of_readers_and_polling_goes_on",
    ),
    Fault(
        "cloudwatch-lies",
        "CloudWatch sends malformed values, times, and results",
        "each costs only itself and is counted by its kind",
        "tests/integration/pipeline/test_lies.py::test_a_lie_about_one_metric_costs_only_that_metric",
    ),
    Fault(
        "credential-process-hangs",
        "a `credential_process` hangs",
        "`source_up` 0; one thread waits for it, and its keys count when it ends",
        "tests/integration/sources/cloudwatch/test_credentials.py"
        "::test_a_process_that_hangs_leaves_one_thread_and_its_keys_count_when_it_ends",
    ),
    Fault(
        "leader-killed",
        "the exporter that writes is killed in an insert; another one stands by",
        "the other one writes within 45 s; each sample once",
        "tests/integration/pipeline/test_takeover.py"
        "::test_when_the_leader_is_killed_with_an_insert_in_flight_the_other_takes_over_and_the_history_equals_the_ledger",
    ),
    Fault(
        "replica-killed",
        "the exporter that polls CloudWatch is killed; another one serves its snapshot",
        "the other one polls and writes within 45 s; AWS bills both as one",
        "tests/integration/pipeline/test_replicas.py"
        "::test_two_replicas_are_billed_as_one_and_show_the_same_and_one_goes_on_when_the_other_is_killed",
    ),
    Fault(
        "standby-takes-over",
        "the exporter that writes ends with its outbox",
        "the one that stood by mirrors within one interval",
        "tests/integration/pipeline/test_gaps.py"
        "::test_a_standby_that_takes_over_mirrors_what_the_leader_had_not_within_one_interval",
    ),
    Fault(
        "instance-replaced-on-standby",
        "a worker gets another instance twice while an exporter stands by",
        "the one that takes over knows them all",
        "tests/integration/pipeline/test_standby.py"
        "::test_an_exporter_that_stood_by_keeps_the_instances_that_the_leader_has_seen",
    ),
    Fault(
        "long-stop",
        "the exporter was off for 12 hours",
        "CloudWatch's gauges come first, the periods of the stop meanwhile",
        "tests/integration/pipeline/test_first_values.py"
        "::test_the_first_poll_after_a_long_stop_waits_for_one_piece_of_the_stop_at_most",
    ),
    Fault(
        "reload-of-a-wrong-file",
        "SIGHUP with a wrong web.yml",
        "nothing changes, and the exporter says so",
        "tests/integration/web/test_live_config.py::test_sighup_reloads_and_a_wrong_file_ends_nothing",
    ),
    Fault(
        "loop-hangs",
        "the collector's event loop hangs",
        "`/-/healthy` 503 until it goes on",
        "tests/integration/test_systemd.py::test_healthy_is_503_while_the_collectors_event_loop_is_blocked",
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
*Besides*: how long the process took to end after SIGTERM in the middle of the fault, or how much was counted. A dash means that
the test has no such figure. What each fault looks like on `/-/ready` is in [web.md](web.md#readiness), and
what to do about it in the [runbook](../prometheus/runbook.md).

Generated: `make reliability` runs the tests of the last column and writes this page. Do not edit it by hand.

| fault | promise | lost | doubled | silence | recovery | besides | shown by |
|---|---|---|---|---|---|---|---|
{rows}
"""


def _row(fault: Fault, found: Figures | None) -> str:
    file, _, test = fault.test.partition("::")
    found = found or Figures()
    cells = (
        fault.fault,
        fault.promise,
        _number(found.lost),
        _number(found.doubled),
        _seconds(found.silence),
        _seconds(found.recovery),
        found.note or "–",
        f"[`{test}`](../{file})",
    )
    return f"| {' | '.join(cells)} |"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"
