"""Which exporter has a worker."""

import random
from collections import Counter

import pytest

from exporter.core.shards import MAX_SHARDS, Part, Shard, WorkerKey, jump_hash, parse_shard, part_name, shard_of

DIVISIONS = range(1, 17)
RANDOM = random.Random(15)
IDS = [f"worker-{number:05d}" for number in range(500)] + [
    "".join(chr(RANDOM.choice((*range(32, 127), 0xE9, 0x4E2D, 0x1F600))) for _ in range(RANDOM.randrange(1, 40)))
    for _ in range(200)
]
"""Ids of both kinds: numbered, and any text."""


def key(worker_id: str, region: str = "eu-west-1", name: str = "") -> WorkerKey:
    return WorkerKey(worker_id, region, name)


@pytest.mark.parametrize("count", DIVISIONS)
def test_each_worker_is_in_exactly_one_shard(count: int) -> None:
    """Whatever the division, the shards are disjoint and together the fleet."""
    parts = [Part(Shard(index, count)) for index in range(count)]
    for worker_id in IDS:
        assert [part.shard.index for part in parts if part.has(key(worker_id))] == [shard_of(worker_id, count)]


@pytest.mark.parametrize("count", DIVISIONS)
def test_shards_are_of_one_size(count: int) -> None:
    """No shard has a quarter more or less than its share."""
    sizes = Counter(shard_of(f"worker-{number}", count) for number in range(1000 * count))
    assert len(sizes) == count
    assert all(750 < size < 1250 for size in sizes.values())


@pytest.mark.parametrize("count", DIVISIONS)
def test_a_further_shard_takes_its_share_and_nothing_else_moves(count: int) -> None:
    """From n to n + 1 shards only workers move that the new shard then has: one of n + 1, within a quarter."""
    ids = [f"worker-{number}" for number in range(1000 * (count + 1))]
    moved = [worker_id for worker_id in ids if shard_of(worker_id, count) != shard_of(worker_id, count + 1)]
    assert {shard_of(worker_id, count + 1) for worker_id in moved} == {count}
    assert 750 < len(moved) < 1250


@pytest.mark.parametrize(
    ("number", "count", "bucket"), [(1, 1, 0), (42, 57, 43), (0xDEAD10CC, 1, 0), (0xDEAD10CC, 666, 361), (256, 1024, 520)]
)
def test_the_jump_hash_is_the_published_one(number: int, count: int, bucket: int) -> None:
    """Values that implementations in other languages return."""
    assert jump_hash(number, count) == bucket


def test_the_hash_never_changes() -> None:
    """Exporters of two releases share a fleet, so the shard of an id is fixed for ever."""
    expected = [2, 1, 4, 1, 2]
    assert [shard_of(worker_id, 5) for worker_id in ("w1", "w2", "worker-0001", "é中😀", "")] == expected


@pytest.mark.parametrize(
    ("text", "shard"),
    [("0/4", Shard(0, 4)), ("3/4", Shard(3, 4)), (" 0/1 ", Shard()), ("cml-worker-exporter-2/4", Shard(2, 4))],
)
def test_a_shard_is_written_as_its_index_and_their_number(text: str, shard: Shard) -> None:
    """The name of a StatefulSet's pod stands for the number it ends in."""
    assert parse_shard(text) == shard


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("4/4", "shards count from 0, so the last of 4 is 3/4"),
        ("0/0", f"1 to {MAX_SHARDS} shards"),
        ("0/257", f"1 to {MAX_SHARDS} shards"),
        ("1", "write one such as 0/4"),
        ("-/4", "write one such as 0/4"),
        ("exporter2/4", "write one such as 0/4"),
    ],
)
def test_what_is_no_shard_is_refused(text: str, problem: str) -> None:
    """The sentence says what to write."""
    with pytest.raises(ValueError, match=problem):
        parse_shard(text)


def test_regions_and_patterns_all_have_to_fit() -> None:
    """Patterns match the whole text; a worker without a region is in no listed one."""
    part = Part(regions=frozenset({"eu-west-1", "us-east-1"}), id="w.*", name="lab-[0-9]+")
    assert part.has(key("w1", name="lab-7"))
    assert not part.has(key("w1", name="lab-7b"))
    assert not part.has(key("w1", region="eu-west-2", name="lab-7"))
    assert not part.has(key("w1", region="", name="lab-7"))
    assert not part.has(key("v1", name="lab-7"))
    assert not part.is_whole


def test_each_pattern_is_for_its_own_field() -> None:
    """The text that matches stands in one field only."""
    keys = [WorkerKey("match", "b", "c"), WorkerKey("a", "match", "c"), WorkerKey("a", "b", "match")]
    for part, fits in ((Part(id="ma.*"), keys[0]), (Part(region="ma.*"), keys[1]), (Part(name="ma.*"), keys[2])):
        assert [each for each in keys if part.has(each)] == [fits]


def test_an_idle_part_has_no_worker() -> None:
    """While another division is in force, every worker is elsewhere."""
    part = Part(idle=True)
    assert not part.is_whole
    assert not part.has(key("w1"))
    assert not part.has_id("w1")


def test_parts_of_one_fleet_have_different_names() -> None:
    """Leases and markers are told apart by them; that of the whole fleet is the one of earlier releases."""
    europe, america = Part(regions=frozenset({"eu-west-1"})), Part(regions=frozenset({"us-east-1"}))
    names = [
        *Part().names(),
        *Part(Shard(0, 4)).names(),
        *Part(Shard(0, 5)).names(),
        *(name for group in (europe, america) for count in (1, 4) for name in group.divided(count).names()),
    ]
    assert len(set(names)) == len(names)
    assert part_name("", Shard()) == "" == Part().own_name
    assert Part(Shard(2, 4)).own_name == "2/4"


@pytest.mark.parametrize(
    ("part", "phrase"),
    [
        (Part(), "the fleet"),
        (Part(Shard(2, 4)), "shard 2/4"),
        (Part(Shard(2, 4), frozenset({"eu-west-1"})), "shard 2/4 of eu-west-1"),
        (Part(id="a.*", name="b.*"), "the fleet with id a.* and name b.*"),
    ],
)
def test_a_part_is_named_in_messages(part: Part, phrase: str) -> None:
    """`check` and `estimate` say what they see."""
    assert str(part) == phrase
