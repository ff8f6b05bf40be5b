"""What the commands read before they plan."""

import time
from typing import Any

import pytest

from exporter.commands.backfill.targets import read_fleet
from exporter.core.clock import MAX_SKEW_SECONDS
from exporter.core.errors import SourceError
from exporter.core.model import Fleet


class Documents:
    """Worker documents of a MongoDB whose clock differs from this host's by so many seconds."""

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead

    async def read(self) -> Fleet:
        return Fleet(int(time.time()) + self._ahead, ())


@pytest.mark.parametrize("sign", [1, -1])
async def test_a_clock_too_far_from_this_hosts_is_refused_before_anything_is_planned(sign: int) -> None:
    wrong: Any = Documents(sign * (MAX_SKEW_SECONDS + 60))
    with pytest.raises(SourceError) as caught:
        await read_fleet(wrong)
    assert caught.value.code == "ClockSkew"
    right: Any = Documents(sign * (MAX_SKEW_SECONDS - 60))
    assert (await read_fleet(right)).workers == ()
