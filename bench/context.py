"""What the rows of the benchmark are run with."""

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.subjects import Build


@dataclass
class Context:
    """Sizes and subjects of one run."""

    sizes: Sequence[int] = (100, 1000)
    """Workers."""
    latencies: Sequence[float] = (0,)
    """Seconds that the fake CloudWatch takes to answer."""
    warm_up: int = 3
    """Cycles that do not count."""
    cycles: int = 5
    samples: Sequence[int] = (1_000_000,)
    """Sizes of the history."""
    repeat: int = 5
    builds: Sequence[Build] = field(default_factory=lambda: [Build()])
    """The first is this checkout."""
    peers: bool = True
    subjects: Sequence[str] = ()
    """Names of the subjects that take part in cycles of a minute; empty: all."""
    full: bool = False
    row: str = ""
    """The row that runs now, for progress lines."""
    stack: ExitStack = field(default_factory=ExitStack)
    """Ends what rows share."""
    shared: dict[str, object] = field(default_factory=dict)
    """What rows share, by name."""
    _began: float = field(default_factory=time.monotonic)

    def measures(self, subject: str) -> bool:
        """Say whether a subject takes part in cycles of a minute."""
        return not self.subjects or subject in self.subjects

    def progress(self, text: str) -> None:
        """Print a line to standard error, with the minutes since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"[{minutes:3}:{seconds:02}] {self.row}: {text}", file=sys.stderr, flush=True)

    def new_folder(self, stack: ExitStack) -> Path:
        """Return a folder that is removed with the stack."""
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
