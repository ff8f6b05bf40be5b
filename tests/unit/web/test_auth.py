"""Passwords take the same time whoever they are for."""

import bcrypt
import pytest

from exporter.web import auth


def rounds(monkeypatch: pytest.MonkeyPatch, hashed: bytes | None, cost: int) -> int:
    """Return how many rounds bcrypt makes for a wrong password; a hash of cost n is 2 ** n of them."""
    made: list[int] = []
    compare, hash_password = bcrypt.checkpw, bcrypt.hashpw

    def compared(password: bytes, hash: bytes) -> bool:
        before = len(made)
        same = compare(password, hash)
        made[before:] = [auth._cost(hash)]  # older versions call hashpw in it
        return same

    def filled(password: bytes, salt: bytes) -> bytes:
        made.append(auth._cost(salt))
        return hash_password(password, salt)

    with monkeypatch.context() as patch:
        patch.setattr(bcrypt, "checkpw", compared)
        patch.setattr(bcrypt, "hashpw", filled)
        assert not auth._matches(b"wrong", hashed, cost)
    return sum(2**each for each in made)


@pytest.mark.parametrize("cost", [None, 5, 7, 9])
def test_unknown_users_and_users_with_cheaper_hashes_cost_as_much_as_the_dearest(
    monkeypatch: pytest.MonkeyPatch, cost: int | None
) -> None:
    hashed = None if cost is None else bcrypt.hashpw(b"right", bcrypt.gensalt(cost))
    assert rounds(monkeypatch, hashed, 9) == 2**9


def test_the_right_password_is_accepted_at_every_cost() -> None:
    for cost in (4, 6):
        assert auth._matches(b"right", bcrypt.hashpw(b"right", bcrypt.gensalt(cost)), 6)
    assert not auth._matches(b"right", None, 4)
