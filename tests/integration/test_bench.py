"""`make bench` at a tiny size: its JSON, its tables, and the page that is written from it."""

import json
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench.figures import EXPORTER, YACE, Figure, Skipped, Target, results
from bench.report import PAGE, Run, show, write_page
from bench.rows import ROWS

ABOUT = {
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
    assert f"| {CASE} | CPU, s | 1.6 → 0.8 | 0.2 → 0.2 | 4.00 |" in found["cycle"]
    assert "| 8 | 4 | **not met** |" in found["targets"]
    assert "go is not on PATH" in found["skipped"]
    assert "2 cores of a processor" in found["machine"]
    write_page(run_of(0.4), None, page)
    found = parts(page)
    assert "Every target" in found["unreached"]
    assert f"| {CASE} | CPU, s | 0.4 | 0.2 | 2.00 |" in found["cycle"]


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


def test_an_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--only", "cycles"])
    assert "no row cycles; rows are" in capsys.readouterr().err
