"""Figures of CML's system information that stand for each compute node of a worker only: their sums. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from exporter.sources import field_values as values

_KIB = 1024


class _Figure(NamedTuple):
    """Where the statistics of a compute node hold a figure: the group, and each name with its factor to the base unit."""

    group: str
    names: tuple[tuple[str, int], ...]
    convert: Callable[[object], float]


FIGURES: Mapping[str, _Figure] = {
    "disk_used": _Figure("disk", (("used", 1), ("size_kb", _KIB)), values.amount),
    "disk_total": _Figure("disk", (("total", 1), ("capacity_kb", _KIB)), values.amount),
    "memory_total": _Figure("memory", (("total", 1), ("total_kb", _KIB)), values.amount),
    "nodes_running": _Figure("dominfo", (("running_nodes", 1), ("running_vms", 1)), values.count),
    "nodes_total": _Figure("dominfo", (("total_nodes", 1), ("total_vms", 1)), values.count),
}
"""Meaning → figure. CML's releases name them differently; the manager keeps what CML answers."""

Report = Callable[[str, object, values.InvalidFieldError], None]
"""Called for a malformed figure with its path in the system information, and what is there."""


def total(info: object, meaning: str, report: Report) -> float | None:
    """Return the sum of a figure over the compute nodes that have it, None where none has.

    Args:
        info: CML's system information as the manager keeps it: the compute nodes by id, or with further keys beside `computes`.
        meaning: one of FIGURES.
        report: called for what is malformed and left out.
    """
    figure, found = FIGURES[meaning], []
    for path, stats in _statistics(info):
        group = stats.get(figure.group)
        if not isinstance(group, Mapping):
            continue
        for name, factor in figure.names:
            raw = group.get(name)
            if raw is None:
                continue
            try:
                found.append(figure.convert(raw) * factor)
            except values.InvalidFieldError as error:
                report(f"{path}.stats.{figure.group}.{name}", raw, error)
            break
    return sum(found) if found else None


def _statistics(info: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the path of each compute node and its statistics."""
    if not isinstance(info, Mapping):
        return
    inside = info.get("computes")
    nodes, prefix = (inside, "computes.") if isinstance(inside, Mapping) else (info, "")
    for node_id, node in nodes.items():
        stats = node.get("stats") if isinstance(node, Mapping) else None
        if isinstance(stats, Mapping):
            yield f"{prefix}{node_id}", stats
