"""Which memory series of an instance is queried, and how long a listing is used."""

import pytest

from exporter.core.model import Dimensions, Listing
from exporter.sources.cloudwatch.memory_series import memory_series


def dims(**names: str) -> Dimensions:
    return tuple(sorted({"InstanceId": "i-0a", **names}.items()))


PLAIN = dims()
USUAL = dims(ImageId="ami-1", InstanceType="m5.large")
STALE_TYPE = dims(InstanceType="t3.large")
OTHER_IMAGE = dims(ImageId="ami-2", InstanceType="m5.large")
PER_HOST = dims(host="worker-1")


@pytest.mark.parametrize(
    ("listed", "instance_type", "silent", "expected"),
    [
        pytest.param([], "m5.large", [], (), id="no agent"),
        pytest.param([USUAL, PLAIN], "m5.large", [], (PLAIN,), id="fewest dimensions"),
        pytest.param([PER_HOST, USUAL], "m5.large", [], (USUAL,), id="unknown dimension names last"),
        pytest.param([STALE_TYPE, USUAL], "m5.large", [], (USUAL,), id="another instance type last"),
        pytest.param([STALE_TYPE, PER_HOST], "m5.large", [], (PER_HOST,), id="a mismatch weighs more than unknown names"),
        pytest.param([STALE_TYPE, USUAL], None, [], (STALE_TYPE,), id="unknown instance type mismatches nothing"),
        pytest.param([OTHER_IMAGE, USUAL], "m5.large", [], (USUAL, OTHER_IMAGE), id="a tie is all of them, lexical"),
        pytest.param([PLAIN, USUAL], "m5.large", [PLAIN], (USUAL,), id="a silent one is passed over"),
        pytest.param([PLAIN], "m5.large", [PLAIN], (PLAIN,), id="unless there is no other"),
        pytest.param([STALE_TYPE], "m5.large", [], (STALE_TYPE,), id="a mismatch is better than nothing"),
    ],
)
def test_the_memory_series_most_likely_to_speak_is_chosen(
    listed: list[Dimensions], instance_type: str | None, silent: list[Dimensions], expected: tuple[Dimensions, ...]
) -> None:
    listing = Listing(1, 0, {"i-0a": tuple(listed), "i-0b": ((("InstanceId", "i-0b"),),)})

    assert memory_series(listing, "i-0a", instance_type, frozenset(silent)) == expected
