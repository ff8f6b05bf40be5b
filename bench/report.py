"""One run as JSON, as tables in the terminal, and as the generated parts of docs/benchmarks.md."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.table import Table

from bench.figures import EXPORTER, REFERENCES, Figure, Result, Skipped, results

FORMAT = 1
BEFORE = "before"
"""Label of the checkout that a run compares itself with."""
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
_PART = re.compile(r"(?P<head><!-- bench: (?P<name>[\w ]+) -->\n)(?P<text>.*?)(?P<end><!-- end -->)", re.DOTALL)
Key = tuple[str, str, str, str]


@dataclass
class Run:
    """What one run measured, and where; `about` holds date, commit, command, machine, versions, load, and seconds."""

    about: dict[str, Any]
    figures: list[Figure]
    skipped: list[Skipped]

    def to_json(self) -> str:
        """Return the run as JSON; each figure has its samples and their median."""
        figures = [{**asdict(figure), "median": figure.median} for figure in self.figures]
        whole = {"format": FORMAT, **self.about, "figures": figures, "skipped": [asdict(each) for each in self.skipped]}
        whole["targets"] = [{**asdict(each.target), "value": each.value, "met": each.is_met} for each in results(self.figures)]
        return json.dumps(whole, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; raises ValueError for another format."""
        whole = json.loads(text)
        if whole.pop("format", None) != FORMAT:
            raise ValueError(f"not a result of this benchmark: format must be {FORMAT}")
        whole.pop("targets")
        figures = [
            Figure(**{name: value for name, value in each.items() if name != "median"} | {"samples": tuple(each["samples"])})
            for each in whole.pop("figures")
        ]
        return cls(figures=figures, skipped=[Skipped(**each) for each in whole.pop("skipped")], about=whole)

    def split(self) -> "tuple[Run, Run | None]":
        """Divide a run with `--before DIR` into the run without that checkout, and one that has it as the exporter."""
        suffix = f" ({BEFORE})"
        old = [
            replace(each, subject=each.subject.removesuffix(suffix)) for each in self.figures if each.subject.endswith(suffix)
        ]
        if not old:
            return self, None
        new = [each for each in self.figures if not each.subject.endswith(suffix)]
        about = {**self.about, "commit": self.about["before"]}
        return Run(self.about, new, self.skipped), Run(about, [*old, *(each for each in new if each.subject in REFERENCES)], [])

    def merged(self, other: "Run") -> "Run":
        """Return a run that has the cases of both; those of `other` win, and so does what it says of the machine.

        So a long run can be cut into pieces by rows, sizes, latencies, or samples. What was skipped in either stays.
        """
        cases = {(figure.row, figure.case) for figure in other.figures}
        figures = [each for each in self.figures if (each.row, each.case) not in cases] + other.figures
        rows = list(dict.fromkeys(figure.row for figure in figures))
        return Run(
            {**self.about, **other.about, "pieces": [*self.pieces, *other.pieces]},
            sorted(figures, key=lambda each: rows.index(each.row)),
            list(dict.fromkeys([*self.skipped, *other.skipped])),
        )

    @property
    def pieces(self) -> list[dict[str, Any]]:
        """Return what is known of each run that was merged into this one: command, date, commit, seconds, and load."""
        own = {name: self.about[name] for name in ("command", "date", "commit", "seconds", "load")}
        found: list[dict[str, Any]] = self.about.get("pieces", [own])
        return found


def show(value: float) -> str:
    """Write a number with three significant digits, and all digits before the point."""
    if value and abs(value) < 100:
        text = f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
        return text if "e" not in text else f"{value:.5f}".rstrip("0")
    return f"{value:,.0f}"


@dataclass(frozen=True)
class Grid:
    """The figures of one row of the benchmark: a line for each case and name, a column for each subject."""

    columns: Sequence[str]
    """Subjects, then ratios."""
    lines: Sequence[tuple[str, str, Sequence[str]]]
    """Case, name with unit, cells."""


def grid(figures: Sequence[Figure], before: Mapping[Key, float]) -> Grid:
    """Arrange figures; a cell is the median, or "before → after" where `before` has the figure too.

    Behind the subjects is the exporter divided by each reference that is among them.
    """
    subjects = list(dict.fromkeys(figure.subject for figure in figures))
    lines: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
    found: list[tuple[str, str, Sequence[str]]] = []
    for figure in figures:
        label = f"{figure.name}, {figure.unit}" if figure.unit else figure.name
        text = show(figure.median)
        if figure.key in before and figure.subject not in REFERENCES:
            text = f"{show(before[figure.key])} → {text}"
        lines.setdefault((figure.case, figure.name), (label, {}))[1][figure.subject] = text
    references = [each for each in REFERENCES if each in subjects and EXPORTER in subjects]
    values = {(figure.case, figure.name, figure.subject): figure.median for figure in figures}
    for (case, name), (label, cells) in lines.items():
        own = values.get((case, name, EXPORTER))
        for reference in references:
            other = values.get((case, name, reference))
            if own is not None and other:
                cells[f"÷ {reference}"] = f"{own / other:.2f}"
        found.append((case, label, [cells.get(each, "") for each in (*subjects, *(f"÷ {each}" for each in references))]))
    return Grid([*subjects, *(f"÷ {each}" for each in references)], found)


def medians(run: Run | None) -> dict[Key, float]:
    """Return the medians of a run by the key of their figures."""
    return {figure.key: figure.median for figure in run.figures} if run else {}


def print_run(run: Run, before: Run | None, console: Console) -> None:
    """Print tables of all rows, the targets, and what was skipped."""
    for row in dict.fromkeys(figure.row for figure in run.figures):
        cells = grid([figure for figure in run.figures if figure.row == row], medians(before))
        table = Table("case", "figure", *cells.columns, title=row, title_justify="left", box=box.SIMPLE)
        for column in table.columns[2:]:
            column.justify = "right"
        for case, name, line in cells.lines:
            table.add_row(case, name, *line)
        console.print(table)
    for each in results(run.figures):
        console.print(f"{'met     ' if each.is_met else 'NOT MET '} {sentence(each)}", highlight=False)
    for skipped in run.skipped:
        console.print(f"skipped  {skipped.row}: {skipped.what}: {skipped.reason}", highlight=False)


def sentence(result: Result) -> str:
    """Say a target and what was measured in one line."""
    target = result.target
    return f"{target.row}, {target.case}: {target.name} of {target.subject} at most {limit(result)}: {measured(result)}"


def limit(result: Result) -> str:
    """Return how much a target allows: times a reference, or an amount with its unit."""
    target = result.target
    return f"{show(target.at_most)} × {target.reference}" if target.reference else f"{show(target.at_most)} {result.unit}"


def measured(result: Result) -> str:
    """Return what was measured as `limit` says what is allowed."""
    return f"{result.value:.2f} ×" if result.target.reference else f"{show(result.value)} {result.unit}"


def write_page(run: Run, before: Run | None, page: Path = PAGE) -> None:
    """Replace the generated parts of the page; what stands around them stays, and so do parts of rows that did not run.

    A part is what stands between `<!-- bench: NAME -->` and `<!-- end -->`; NAME is "unreached", "machine", "targets",
    "skipped", or a row.
    """
    parts: dict[str, Callable[[], str]] = {
        "unreached": lambda: _unreached(run),
        "machine": lambda: _machine(run, before),
        "targets": lambda: _targets(run, before),
        "skipped": lambda: _skipped(run),
    }
    rows = {figure.row for figure in run.figures}

    def part(match: re.Match[str]) -> str:
        name = match["name"]
        if name in parts:
            text = parts[name]()
        elif name in rows:
            text = _table([figure for figure in run.figures if figure.row == name], medians(before))
        else:
            text = match["text"]
        return match["head"] + text + match["end"]

    page.write_text(_PART.sub(part, page.read_text()))


def _table(figures: Sequence[Figure], before: Mapping[Key, float]) -> str:
    cells = grid(figures, before)
    head = f"| case | figure | {' | '.join(cells.columns)} |\n|---|---|{'---:|' * len(cells.columns)}\n"
    return "\n" + head + "".join(f"| {case} | {name} | {' | '.join(line)} |\n" for case, name, line in cells.lines) + "\n"


def _unreached(run: Run) -> str:
    missed = [each for each in results(run.figures) if not each.is_met]
    if not missed:
        return "\nEvery target that this run measured is met.\n\n"
    return "\n" + "".join(f"- {sentence(each)}\n" for each in missed) + "\n"


def _targets(run: Run, before: Run | None) -> str:
    earlier = {each.target: each.value for each in results(before.figures)} if before else {}
    lines = [
        "| target | at most | " + ("before | " if before else "") + "measured | |",
        "|---|---:|" + ("---:|" if before else "") + "---:|---|",
    ]
    for each in results(run.figures):
        target = each.target
        name = f"{target.row}, {target.case}: {target.name} of {target.subject}"
        old = (f" {show(earlier[target])} |" if target in earlier else " |") if before else ""
        lines.append(f"| {name} | {limit(each)} |{old} {show(each.value)} | {'met' if each.is_met else '**not met**'} |")
    return "\n" + "\n".join(lines) + "\n\n"


def _machine(run: Run, before: Run | None) -> str:
    about = run.about
    machine = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    measured_at = f", measured {before.about['date']}" if before and len(run.pieces) == 1 else ""
    then = f" “before” is commit {before.about['commit']}{measured_at}." if before else ""
    lines = [
        "| command | ended | commit | minutes | load average before, after | CPU taken by the host |",
        "|---|---|---|---:|---:|---:|",
    ]
    for piece in run.pieces:
        load = piece["load"]
        lines.append(
            f"| `{piece['command']}` | {piece['date']} | {piece['commit']} | {piece['seconds'] / 60:.0f} | "
            f"{load['before'][0]}, {load['after'][0]} | {load['stolen']:.1%} |"
        )
    return (
        f"\nMachine: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}.{then} "
        f"Versions: {versions}.\n\n" + "\n".join(lines) + "\n\n"
    )


def _skipped(run: Run) -> str:
    if not run.skipped:
        return "\nNothing was skipped.\n\n"
    return "\n" + "".join(f"- {each.row}: {each.what}: {each.reason.splitlines()[0]}\n" for each in run.skipped) + "\n"
