"""Whether a part of the exporter works, and since when."""

from typing import NamedTuple


class Condition(NamedTuple):
    """Whether a part works or fails."""

    error: str | None = None
    """Why it fails; None: it works."""
    since: int | None = None
    """UTC second since which it works, or fails; None: it has not been tried."""
    note: str | None = None
    """What it does in place of its usual work; None: nothing else."""

    def then(self, error: str | None, now: float) -> "Condition":
        """Return the condition after another result at the UTC second `now`; another error alone does not restart the time."""
        same = self.since is not None and (self.error is None) == (error is None)
        return Condition(error, self.since if same else int(now))
