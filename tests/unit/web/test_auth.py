"""Passwords take the same time whoever they are for."""

import time

import bcrypt
import pytest

from exporter.web import auth


def seconds(hashed: bytes | None, cost: int) -> float:
    times = []
    for _ in range(5):
        begin = time.thread_time()
        assert not auth._matches(b"wrong", hashed, cost)
        times.append(time.thread_time() - begin)
    return min(times)


def test_unknown_users_and_users_with_cheaper_hashes_cost_as_much_as_the_dearest() -> None:
    cheap, dear = (bcrypt.hashpw(b"right", bcrypt.gensalt(cost)) for cost in (5, 9))
    expected = seconds(dear, 9)
    assert seconds(cheap, 9) == pytest.approx(expected, rel=0.4)
    assert seconds(None, 9) == pytest.approx(expected, rel=0.4)


def test_the_right_password_is_accepted_at_every_cost() -> None:
    for cost in (4, 6):
        assert auth._matches(b"right", bcrypt.hashpw(b"right", bcrypt.gensalt(cost)), 6)
    assert not auth._matches(b"right", None, 4)
