"""The recorded terminals of docs/recordings: there, short enough to read, and made as they say."""

import re
from pathlib import Path

import pytest

from tests.helpers.deadlines import scaled
from tests.tools.recordings import COLUMNS, Program, Recording

RECORDINGS = Path(__file__).parents[2] / "docs" / "recordings"


@pytest.mark.parametrize("name", ["clone", "wheel"])
def test_a_recording_is_of_a_whole_first_visit(name: str) -> None:
    lines = (RECORDINGS / f"{name}.txt").read_text().splitlines()
    assert len(lines) <= 340
    minutes = [int(line[2:].split(":")[0]) for line in lines if re.match(r"# \d+:\d\d ", line)]
    assert minutes[-1] >= 10, "the first ten minutes"
    for shown in (" demo", " --help", " check ", " estimate ", " export ", " serve ", "curl -s http://127.0.0.1:987"):
        assert any(line.startswith("$ ") and shown in line for line in lines), shown
    assert sum("a page with values" in line for line in lines) == 3  # the demo, an exporter of one's own, the second start
    assert sum("Ctrl-C in the first shell" in line for line in lines) == 3
    assert not [line for line in lines if "Traceback" in line]


def test_what_a_terminal_shows_is_recorded_without_what_was_written_over(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.run(r"printf '\033[31mred\033[0m\n10 %%\r90 %%\n'; echo ' + one==1'; stty size; echo error >&2")
    assert recording.lines[1:] == ["red", "90 %", f"40 {COLUMNS}", "error"]


def test_the_middle_of_a_long_output_is_left_out(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.run("seq 9", most=6)
    assert recording.lines == ["$ seq 9", "1", "2", "3", " … 4 more lines", "8", "9"]


def test_ctrl_c_ends_a_program_and_what_it_says_then_is_told(tmp_path: Path) -> None:
    program = Program("trap 'echo ended; exit' INT; echo begun; while true; do sleep 0.1; done", tmp_path)
    assert not program.read(until=lambda: "begun" in program.text, within=scaled(20))
    assert program.interrupt().removeprefix("^C").strip() == "ended"
