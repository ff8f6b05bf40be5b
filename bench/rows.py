"""The rows of the benchmark: the one table of what `make bench` can measure."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from bench import cycle
from bench.context import Context
from bench.figures import Figure, Skipped


class Row(NamedTuple):
    """A row: the question that it answers, and the function that measures it."""

    question: str
    run: Callable[[Context], Iterator[Figure | Skipped]]


ROWS: Mapping[str, Row] = {
    "cycle": Row(
        "CPU, wall time, and memory of a collection cycle, beside YACE, cloudwatch_exporter, and bare calls", cycle.run
    ),
}
