"""Which loops count as dead."""

from exporter.core.liveness import Liveness


def test_a_loop_is_dead_after_three_intervals_without_a_beat() -> None:
    now = [100.0]
    liveness = Liveness(lambda: now[0])
    assert liveness.dead() == []
    fast, slow = liveness.expect("fast", 10), liveness.expect("slow", 300)
    now[0] += 30
    assert liveness.dead() == []
    now[0] += 1
    assert liveness.dead() == ["fast for 31 s"]
    fast()
    assert liveness.dead() == []
    now[0] += 1000
    assert liveness.dead() == ["fast for 1000 s", "slow for 1031 s"]
    slow()
    fast()
    assert liveness.dead() == []
