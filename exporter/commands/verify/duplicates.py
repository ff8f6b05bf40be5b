"""Search the whole window of a `verify` for samples that are stored twice, whether or not they could be compared."""

import time
from collections.abc import Sequence
from dataclasses import replace

from exporter.commands.verify.compare import MAX_EXAMPLES, Example, Tally
from exporter.core.periods import HOUR
from exporter.storage.collection import HistoryCollection
from exporter.storage.duplicates import count_duplicates, duplicated_times


async def with_duplicates(tally: Tally, collection: HistoryCollection, since: int, worker_ids: Sequence[str]) -> Tally:
    """Return the tally with the number and the first examples of the duplicates in the window, up to now.

    The comparison itself only meets those of the periods that it compares: not the newest ones, and not those of workers that
    neither the worker documents nor the inventory know.

    Args:
        tally: what the comparison found.
        collection: the history.
        since: start of the window in UTC seconds.
        worker_ids: of the workers searched; empty: all.

    Raises:
        StoreError: MongoDB does not answer.
    """
    until = int(time.time()) + HOUR  # a clock may be ahead
    found = await count_duplicates(collection, since, until, worker_ids or None)
    examples: list[Example] = []
    for worker_id in sorted(found):
        if len(examples) >= MAX_EXAMPLES:
            break
        times = await duplicated_times(collection, worker_id, since, until)
        examples += [Example("duplicate", "", worker_id, at // 1000, None, None, samples) for at, samples in times]
    others = [example for example in tally.examples if example.kind != "duplicate"]
    return replace(tally, duplicates=sum(found.values()), examples=others + examples[:MAX_EXAMPLES])
