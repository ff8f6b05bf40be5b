"""Row `profile`: where the CPU of the exporter goes, by module, in a minute with one cycle."""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.context import Context
from bench.cycle import READ_SECOND, Stand, sleep_until
from bench.figures import EXPORTER, Figure, Skipped

SECONDS, RATE = 60, 250
SHOWN = 20
"""Modules; the others are added up."""


def run(context: Context, here: Stand) -> Iterator[Figure | Skipped]:
    """Record the exporter with history of the largest fleet; samples count while a thread holds the interpreter's lock."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        yield Skipped("profile", "py-spy", "py-spy is not installed; pip install py-spy")
        return
    load = here.largest
    for build in context.builds:
        name = build.named(EXPORTER)
        (pid,) = [subject.pid for its, subject in here.subjects if its == load and subject.name == name]
        sleep_until(READ_SECOND)
        context.progress(f"{load.case}: {name}, {SECONDS} s")
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "profile.txt")
            command = [spy, "record", "--gil", "--pid", str(pid), "--duration", str(SECONDS), "--rate", str(RATE)]
            command += ["--format", "raw", "--output", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                yield Skipped("profile", name, (done.stderr.strip().splitlines() or ["py-spy failed"])[-1])
                continue
            for module, share in shares(output.read_text()):
                yield Figure("profile", load.case, module, name, "%", (share,))


def shares(stacks: str) -> Iterator[tuple[str, float]]:
    """Yield each module of the exporter and its share of the samples in percent, largest first.

    A sample counts for the innermost frame of the exporter's own code, so libraries count for the module that calls them.

    Args:
        stacks: py-spy's raw format: frames from the outermost on, separated by semicolons, and a count.
    """
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        own = [frame for frame in frames.split(";") if "exporter/" in frame]
        place = (
            own[-1].partition("exporter/")[2].partition(":")[0].rstrip(")") if own else "the interpreter and libraries alone"
        )
        counts[place] += int(count)
    total = max(1, counts.total())
    for place, found in counts.most_common(SHOWN):
        yield place, found / total * 100
    if rest := total - sum(found for _, found in counts.most_common(SHOWN)):
        yield "other modules", rest / total * 100
