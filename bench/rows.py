"""The rows of the benchmark: the one table of what `make bench` can measure."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from bench import cycle, reads
from bench.context import Context
from bench.figures import Figure, Skipped


class Row(NamedTuple):
    """A row: the question that it answers, and the function that measures it."""

    question: str
    run: Callable[[Context], Iterator[Figure | Skipped]]


ROWS: Mapping[str, Row] = {
    "cycle": Row("CPU, wall time, and memory of a cycle, beside YACE, cloudwatch_exporter, and bare calls", cycle.run),
    "history": Row("the history API of one worker, against the bare query", reads.read_history),
    "remote_read": Row("remote read and PromQL over the history, against the bare query", reads.read_remotely),
    "statistics": Row("a day by hour of 100 workers in the library, against one aggregate", reads.statistics),
    "mirror": Row("samples from the outbox into the history, against a bare insert_many", reads.mirror),
}
