"""Which workers of a fleet one exporter has: a shard by a hash of the worker id, some regions, a filter. Pure.

Every worker is in exactly one shard of a division, and all exporters agree in which, whatever their version of Python.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple, Self

from exporter.core.patterns import compile_pattern

MAX_SHARDS = 256
_SHARD = re.compile(r"(?:.*-)?([0-9]{1,4})\s*/\s*([0-9]{1,4})")
_DIGEST_BYTES = 8
_MULTIPLIER = 2862933555777941757
"""The multiplier of the linear congruential generator of the jump consistent hash."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` exporters that divide a fleet; `index` counts from 0, as a pod of a StatefulSet does."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        """Return the form of the setting, such as 2/4."""
        return f"{self.index}/{self.count}"


class WorkerKey(NamedTuple):
    """What decides which exporter has a worker."""

    id: str
    region: str
    """Empty where the worker document has none."""
    name: str
    """Empty where it has none."""


def parse_shard(text: str) -> Shard:
    """Return the shard that a text such as 0/4 names; `cml-worker-exporter-0/4`, the name of a pod, is the same.

    Raises:
        ValueError: it names none; the sentence says what to write.
    """
    match = _SHARD.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a shard; write one such as 0/4, the first of four")
    index, count = map(int, match.groups())
    if not 1 <= count <= MAX_SHARDS:
        raise ValueError(f"{text!r}: a fleet has 1 to {MAX_SHARDS} shards")
    if index >= count:
        raise ValueError(f"{text!r}: shards count from 0, so the last of {count} is {count - 1}/{count}")
    return Shard(index, count)


def shard_of(worker_id: str, count: int) -> int:
    """Return the index of the shard that a worker is in: Lamping and Veach's jump consistent hash of the id.

    From n to n + 1 shards one worker of n + 1 moves, and only to the new shard.
    """
    return jump_hash(
        int.from_bytes(blake2b(worker_id.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).digest()), count
    )


def jump_hash(key: int, count: int) -> int:
    """Return the bucket, from 0 to `count` - 1, of a number of 64 bits (https://arxiv.org/abs/1406.2294)."""
    index, jump = -1, 0
    while jump < count:
        index = jump
        key = (key * _MULTIPLIER + 1) % 2**64
        jump = int((index + 1) * (2**31 / ((key >> 33) + 1)))
    return index


@dataclass(frozen=True)
class Part:
    """The workers that one exporter has; by default all of them.

    A worker must fit all of its conditions. Exporters with the same regions and patterns form a group, which its shards divide.
    """

    shard: Shard = field(default_factory=Shard)
    regions: frozenset[str] = frozenset()
    """Empty: all regions, and workers without one."""
    id: str | None = None
    """RE2 expression that matches the whole id; None: any, as for the other two."""
    region: str | None = None
    name: str | None = None
    idle: bool = False
    """Whether it has no worker at all, for as long as another division of the fleet is in force."""

    def __str__(self) -> str:
        """Return a phrase such as "shard 2/4 of eu-west-1"."""
        kind = "the fleet" if self.shard.count == 1 else f"shard {self.shard}"
        regions = f" of {', '.join(sorted(self.regions))}" if self.regions else ""
        patterns = [f"{name} {text}" for name in WorkerKey._fields if (text := getattr(self, name)) is not None]
        return kind + regions + (f" with {' and '.join(patterns)}" if patterns else "")

    @property
    def is_whole(self) -> bool:
        """Whether no worker is anywhere else."""
        return self.shard.count == 1 and not self.group and not self.idle

    @cached_property
    def group(self) -> str:
        """A short text that differs for other regions or patterns; empty for all workers."""
        conditions = [sorted(self.regions), self.id, self.region, self.name]
        if not any(conditions):
            return ""
        return blake2b(json.dumps(conditions).encode(), digest_size=_DIGEST_BYTES).hexdigest()

    @cached_property
    def _patterns(self) -> tuple[Any, ...]:
        return tuple(None if each is None else compile_pattern(each) for each in (self.id, self.region, self.name))

    def has_id(self, worker_id: str) -> bool:
        """Return whether the worker is in this shard, whatever its region and name."""
        return not self.idle and (self.shard.count == 1 or shard_of(worker_id, self.shard.count) == self.shard.index)

    def has(self, key: WorkerKey) -> bool:
        """Return whether the worker is one of this exporter."""
        if self.regions and key.region not in self.regions:
            return False
        fits = all(pattern is None or pattern.fullmatch(text) for pattern, text in zip(self._patterns, key, strict=True))
        return fits and self.has_id(key.id)

    def names(self) -> Iterable[str]:
        """Yield the name of each shard of the group, in order, see `part_name`."""
        return (part_name(self.group, Shard(index, self.shard.count)) for index in range(self.shard.count))

    @property
    def own_name(self) -> str:
        """The name of this shard, see `part_name`."""
        return part_name(self.group, self.shard)

    def divided(self, count: int) -> Self:
        """Return the first shard of the same group in another division."""
        return type(self)(Shard(0, count), self.regions, self.id, self.region, self.name)


def part_name(group: str, shard: Shard) -> str:
    """Return the text that tells the parts of one fleet apart in MongoDB; empty for the whole fleet."""
    division = "" if shard.count == 1 else str(shard)
    return ":".join(text for text in (group, division) if text)
