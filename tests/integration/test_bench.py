"""`make bench` at a tiny size: its JSON, its tables, and the page that is written from it."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench
from bench import machine, starts
from bench.context import Context
from bench.cycle import TickThread
from bench.fake_aws import FakeAws
from bench.figures import BARE_CLIENT, EXPORTER, YACE, Figure, Skipped, Target, results
from bench.peers import CACHE, CLOUDWATCH_EXPORTER_JAR, YACE_VERSION
from bench.processes import Process
from bench.profile import shares
from bench.report import PAGE, Run, show, write_page
from bench.rows import ROWS
from bench.subjects import Subject, Values, wrong_values
from exporter.core.model import MetricName
from tests.helpers.fake_cloudwatch import instance_id

ABOUT: dict[str, Any] = {
    "date": "2026-11-28T00:00:00Z",
    "commit": "abc1234",
    "command": "python -m bench",
    "seconds": 90.0,
    "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 24.0, "system": "Linux 6"},
    "load": {"before": [1.0, 1.0, 1.0], "after": [2.0, 1.0, 1.0], "stolen": 0.01},
    "versions": {"exporter": "0.1.0", "YACE": "0.67.0"},
}
CASE = "1,000 workers, 0 ms"


def run_of(exporter: float, skipped: tuple[Skipped, ...] = ()) -> Run:
    figures = [
        Figure("cycle", CASE, "CPU", subject, "s", tuple(value + step for step in (0.0, -0.1, 0.1)))
        for subject, value in ((EXPORTER, exporter), (YACE, 0.2))
    ]
    return Run(dict(ABOUT), figures, list(skipped))


def parts(page: Path) -> dict[str, str]:
    """Generated part by name."""
    blocks = page.read_text().split("<!-- bench: ")[1:]
    return {block.split(" -->")[0]: block.split(" -->\n", 1)[1].split("<!-- end -->")[0] for block in blocks}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    copy = tmp_path / "benchmarks.md"
    copy.write_text(PAGE.read_text())
    return copy


def test_a_run_is_the_same_after_json() -> None:
    run = run_of(0.8, (Skipped("cycle", "YACE", "go is not on PATH"),))
    text = run.to_json()
    again = Run.from_json(text)
    assert (again.about, again.figures, again.skipped) == (ABOUT, run.figures, run.skipped)
    assert json.loads(text)["targets"][0] == {
        "row": "cycle",
        "case": CASE,
        "name": "CPU",
        "subject": EXPORTER,
        "reference": YACE,
        "at_most": 2.5,
        "value": pytest.approx(4),
        "met": False,
    }


def test_results_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="format must be"):
        Run.from_json('{"figures": []}')


def test_a_target_is_met_up_to_its_limit_and_left_out_without_its_figures() -> None:
    figures = run_of(0.5).figures
    target = Target("cycle", CASE, "CPU", EXPORTER, YACE, 2.5)
    assert [(each.value, each.is_met) for each in results(figures, [target])] == [(2.5, True)]
    assert results(figures, [Target("cycle", CASE, "CPU", EXPORTER, "bare client", 7)]) == []
    assert not results(figures, [Target("cycle", CASE, "CPU", EXPORTER, "", 0.4)])[0].is_met


def test_the_page_is_written_from_a_run_and_its_prose_stays(page: Path) -> None:
    prose = PAGE.read_text().split("<!-- bench")[0]
    write_page(run_of(0.8, (Skipped("cycle", "YACE 0.67.0", "go is not on PATH"),)), run_of(1.6), page)
    found = parts(page)
    assert page.read_text().startswith(prose)
    assert "CPU of exporter at most 2.5 × YACE: 4.00 ×" in found["unreached"]
    assert f"| {CASE} | CPU, s | 1.6 → 0.8 | 0.2 | 4.00 |" in found["cycle"]
    assert "| 8 | 4 | **not met** |" in found["targets"]
    assert "go is not on PATH" in found["skipped"]
    assert "2 cores of a processor" in found["machine"]
    write_page(run_of(0.4), None, page)
    found = parts(page)
    assert "Every target" in found["unreached"]
    assert f"| {CASE} | CPU, s | 0.4 | 0.2 | 2.00 |" in found["cycle"]


def test_another_checkout_of_the_same_run_is_what_was_before() -> None:
    whole = run_of(0.8)
    old = [Figure("cycle", CASE, "CPU", f"{EXPORTER} (before)", "s", (1.6,))]
    run, before = Run({**ABOUT, "before": "0ld0ld0"}, [*whole.figures, *old], []).split()
    assert run.figures == whole.figures
    assert before is not None
    assert before.about["commit"] == "0ld0ld0"
    (result,) = results(before.figures)
    assert (result.target.subject, round(result.value, 6)) == (EXPORTER, 8)
    assert whole.split() == (whole, None)


def test_runs_of_several_rows_are_merged() -> None:
    first, second = run_of(0.8), run_of(0.7)
    second.figures = [Figure("cli", "a process", "CPU", EXPORTER, "s", (0.1,))]
    both = first.merged(second)
    assert [figure.row for figure in both.figures] == ["cycle", "cycle", "cli"]
    assert [piece["seconds"] for piece in both.pieces] == [90, 90]
    assert first.merged(run_of(0.7)).figures == run_of(0.7).figures


def test_runs_of_one_row_at_several_sizes_are_merged_and_each_says_its_load(page: Path) -> None:
    large = run_of(7.0, (Skipped("cycle", "cloudwatch_exporter", "too slow"),))
    large.figures = [replace(each, case="10,000 workers, 0 ms") for each in large.figures]
    large.about |= {"command": "python -m bench --sizes 10000", "load": {**ABOUT["load"], "before": [9.5, 1.0, 1.0]}}
    both = Run.from_json(run_of(0.8).merged(large).to_json())
    assert [figure.case for figure in both.figures] == [CASE, CASE, "10,000 workers, 0 ms", "10,000 workers, 0 ms"]
    write_page(both, None, page)
    found = parts(page)
    assert CASE in found["cycle"]
    assert "| 10,000 workers, 0 ms | CPU, s | 7 |" in found["cycle"]
    assert "| `python -m bench` | 2026-11-28T00:00:00Z | abc1234 | 2 | 1.0, 2.0 | 1.0% |" in found["machine"]
    assert "| `python -m bench --sizes 10000` | 2026-11-28T00:00:00Z | abc1234 | 2 | 9.5, 2.0 | 1.0% |" in found["machine"]
    assert "too slow" in found["skipped"]


def test_a_command_is_shown_without_the_folders_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--before", str(tmp_path / "old"), "--sizes", "5"])
    assert machine.command() == "python -m bench --before old --sizes 5"


def test_the_version_of_mongod_is_a_number() -> None:
    assert machine.versions()["mongod"].split(".")[0].isdigit()


def test_a_wrong_a_missing_and_a_stale_value_are_counted(tmp_path: Path) -> None:
    aws, now = FakeAws(tmp_path, 60), 1_795_900_000
    starts = dict.fromkeys(("cpu", "memory"), now // 60 * 60 - 120)
    right: Values = {(instance_id(k), "cpu"): aws.value(instance_id(k), "cpu", starts["cpu"]) for k in range(60)}
    right |= {
        (instance_id(k), "memory"): aws.value(instance_id(k), "memory", starts["memory"]) for k in range(60) if k % 50 != 49
    }
    assert wrong_values(right, aws, now) == 0
    one: tuple[str, MetricName] = (instance_id(7), "memory")
    assert wrong_values({key: value for key, value in right.items() if key != one}, aws, now) == 1
    assert wrong_values({**right, one: right[one] + 0.001}, aws, now) == 1
    assert wrong_values({**right, one: aws.value(*one, now - 7200)}, aws, now) == 1


class SlowSubject(Subject):
    """A subject whose polls last until they are released."""

    def __init__(self, folder: Path) -> None:
        super().__init__("slow", FakeAws(folder, 1), folder)
        self.polls, self.released = 0, threading.Event()

    def start(self) -> Process:
        raise NotImplementedError

    def tick(self) -> None:
        self.polls += 1
        self.released.wait()


def test_a_slow_peer_is_not_polled_again_before_its_poll_has_ended_and_each_poll_counts_once(tmp_path: Path) -> None:
    subject = SlowSubject(tmp_path)
    thread = TickThread(subject)
    thread.wake()
    thread.wake()
    assert (thread.is_busy, subject.polls) == (True, 1)
    subject.released.set()
    for _ in range(2):
        while thread.is_busy:  # ended by the test's own timeout
            time.sleep(0.01)
        thread.wake()
    while thread.is_busy:
        time.sleep(0.01)
    assert (subject.polls, thread.take(), thread.take()) == (3, 3, 0)


def test_only_the_named_subjects_take_part() -> None:
    assert Context().measures(EXPORTER)
    context = Context(subjects=(EXPORTER, YACE))
    assert [context.measures(each) for each in (EXPORTER, YACE, BARE_CLIENT)] == [True, True, False]


def test_a_row_that_did_not_run_keeps_its_table(page: Path) -> None:
    write_page(run_of(0.8), None, page)
    kept = parts(page)["cycle"]
    write_page(Run(dict(ABOUT), [Figure("cli", "", "wall", EXPORTER, "s", (0.3,))], []), None, page)
    assert parts(page)["cycle"] == kept


def test_the_page_has_a_part_for_every_row() -> None:
    assert set(parts(PAGE)) == {"unreached", "machine", "targets", "skipped", *ROWS}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.0123"), (3.14159, "3.14"), (0, "0"), (45.67, "45.7"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert show(value) == text


def measured(tmp_path: Path, page: Path, rows: str) -> tuple[dict[str, Any], dict[tuple[str, str, str], float]]:
    """JSON of a tiny run, and its medians by row, name, and subject; the page was written from it."""
    file = tmp_path / "result.json"
    built = (CACHE / f"yace-{YACE_VERSION}").exists() and (CACHE / CLOUDWATCH_EXPORTER_JAR).exists()
    tiny = ["--sizes", "5", "--samples", "20000", "--cycles", "1", "--warm-up", "1", "--repeat", "1"]
    assert bench.main(["--only", rows, *tiny, "--json", str(file), "--page", *([] if built else ["--no-peers"])], page) == 0
    found = json.loads(file.read_text())
    assert {each["row"] for each in found["figures"]} == set(rows.split(","))
    for figure in found["figures"]:
        assert set(figure) == {"row", "case", "name", "subject", "unit", "samples", "median"}
        assert figure["samples"], figure
    assert found["machine"]["cores"] > 0
    assert found["versions"]["mongod"] not in ("missing", "unknown")
    assert found["load"]["before"]
    medians = {(each["row"], each["name"], each["subject"]): each["median"] for each in found["figures"]}
    for (row, name, _), median in medians.items():
        assert name in parts(page)[row]
        assert median >= 0
    return found, medians


@pytest.mark.nightly("test_a_row_that_fails_does_not_cost_the_others_and_shows_in_the_exit_status")
@pytest.mark.waits(400)
@pytest.mark.timeout(900)
def test_a_tiny_fleet_is_measured_in_minutes_and_every_value_is_right(tmp_path: Path, page: Path) -> None:
    found, medians = measured(tmp_path, page, "cycle,scrape,freshness")
    for (row, name, subject), median in medians.items():
        if name == "wrong or missing values":
            assert median == 0, subject
        if (row, name) == ("cycle", "metrics billed"):
            assert median == 10, subject
    assert medians["cycle", "CPU", EXPORTER] > medians["cycle", "CPU", BARE_CLIENT] > 0
    assert medians["scrape", "identity, size", EXPORTER] > medians["scrape", "gzip, size", EXPORTER] > 0
    assert 0 < medians["freshness", "on /metrics", EXPORTER] < 60
    assert not found["skipped"]


@pytest.mark.nightly("test_a_row_that_fails_does_not_cost_the_others_and_shows_in_the_exit_status")
@pytest.mark.waits(60)
@pytest.mark.timeout(900)
def test_the_other_rows_at_a_tiny_size(tmp_path: Path, page: Path) -> None:
    rows = "start,cli,history,remote_read,statistics,mirror,backfill,storage,pages,gaps"
    found, medians = measured(tmp_path, page, rows)
    for row in ("history", "remote_read", "statistics", "mirror", "backfill"):
        subjects = {subject for its, _, subject in medians if its == row}
        assert EXPORTER in subjects
        assert subjects & {"bare query", "bare insert_many"}
    assert medians["start", "every CPU value", EXPORTER] >= medians["start", "ready", EXPORTER] > 0
    assert {each["what"] for each in found["skipped"]} <= {"PromQL"}


def test_a_profile_counts_for_the_innermost_module_of_the_exporter() -> None:
    stacks = """\
run (uvicorn/server.py:1);serve (exporter/commands/serve.py:5);render (exporter/metrics/exposition.py:8);join (lib.py:2) 30
run (uvicorn/server.py:1) 10
main (exporter/cli.py:3);(exporter/metrics/exposition.py:99) 60
"""
    assert list(shares(stacks)) == [("metrics/exposition.py", 90), ("the interpreter and libraries alone", 10)]


def test_a_row_that_fails_does_not_cost_the_others_and_shows_in_the_exit_status(
    tmp_path: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(starts.COMMANDS, "no such program", ["-c", "raise SystemExit(3)"])
    file = tmp_path / "result.json"
    assert bench.main(["--only", "cli,gaps", "--sizes", "5", "--repeat", "1", "--json", str(file)], page) == 1
    found = json.loads(file.read_text())
    assert {each["row"] for each in found["figures"]} == {"gaps"}
    (skipped,) = found["skipped"]
    assert (skipped["row"], skipped["what"]) == ("cli", "failed")
    assert "no such program ended with 3" in skipped["reason"]


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--only", "cycles"])
    assert "no row cycles; rows are" in capsys.readouterr().err
