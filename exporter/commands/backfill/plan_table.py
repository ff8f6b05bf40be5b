"""The calls of a plan as a table, with their price."""

from collections.abc import Sequence
from typing import TextIO

from exporter.commands import terminal
from exporter.commands.backfill.plan import Plan, PlannedCall
from exporter.commands.terminal import say
from exporter.core.budget import Usage
from exporter.core.periods import format_duration, rfc3339


def show_calls(plan: Plan, namespace: str, periods: str, out: TextIO) -> None:
    """Print the window of a plan and a row for each region.

    Args:
        plan: with at least one call.
        namespace: database and collection of the history.
        periods: heading of the column of periods.
        out: where to.
    """
    shown = f"{namespace}, periods of {format_duration(plan.period)} from {rfc3339(plan.since)} until {rfc3339(plan.until)}"
    say(f"Plan for {shown}:", out)
    regions = sorted({call.region for call in plan.calls})
    rows = [_figures(region, [call for call in plan.calls if call.region == region], plan.period) for region in regions]
    if len(regions) > 1:
        rows.append(_figures("all", plan.calls, plan.period))
    terminal.print_table(("region", "workers", periods, "calls", "metrics billed", "dollars"), rows, out)


def _figures(name: str, calls: Sequence[PlannedCall], period: int) -> tuple[str, ...]:
    usage = Usage.of(len(call.queries) for call in calls)
    workers = len({gap_query.worker_id for call in calls for gap_query in call.gap_queries})
    periods = sum(call.periods(period) for call in calls)
    return name, f"{workers:,}", f"{periods:,}", f"{usage.calls:,}", f"{usage.metrics:,}", f"{usage.dollars:.5f}"
