"""Row `profile`: where the CPU of the exporter goes, by module, in a minute with one cycle."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.context import Context
from bench.cycle import READ_SECOND, shared_loads, sleep_until, stand
from bench.figures import EXPORTER, Figure, Skipped

SECONDS, RATE = 60, 250
SHOWN = 20
"""Modules; the others are added up."""


def run(context: Context) -> Iterator[Figure | Skipped]:
    """Record the exporter with history of the largest fleet; samples are taken only while a thread uses the CPU."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        yield Skipped("profile", "py-spy", "py-spy is not installed; pip install py-spy")
        return
    for loads in shared_loads(context):
        with ExitStack() as stack:
            here = stand(context, loads, stack)
            load = max(loads)
            for build in context.builds:
                name = build.named(EXPORTER)
                (pid,) = [subject.pid for its, subject in here.subjects if its == load and subject.name == name]
                output = context.new_folder(stack) / "profile.txt"
                sleep_until(READ_SECOND)
                context.progress(f"{load.case}: {name}, {SECONDS} s")
                command = [spy, "record", "--pid", str(pid), "--duration", str(SECONDS), "--rate", str(RATE)]
                done = subprocess.run(
                    [*command, "--format", "raw", "--output", str(output)], capture_output=True, text=True, check=False
                )
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
