"""HTTP basic authentication with bcrypt hashes, for all routes."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import bcrypt
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from exporter.web.connections import client_of
from exporter.web.turns import TOO_MANY, TooManyWaitingError, Turns, while_connected

MAX_PASSWORD_BYTES = 72
"""Bytes of a password that bcrypt uses; htpasswd and Prometheus's exporters ignore the rest too."""
MAX_WAITING_CHECKS = 8
"""Passwords of one client that wait to be hashed."""
MAX_REJECTED = 1000
"""Wrong credentials that are remembered, so that a client that repeats one costs nothing."""
_SALT = b"." * 22


class BasicAuth:
    """ASGI middleware that passes requests with a known user and the right password, and answers all others with `refusal`.

    A bcrypt hash of cost 10 takes 50 ms. The last accepted password of each user is therefore cached, as a digest with a key of
    this process, so that only the first scrape needs bcrypt. Hashes are computed one at a time, as in Prometheus's exporters:
    guessing passwords must not slow down the collector. Clients take turns, and one that hangs up loses its turn.

    Args:
        app: the protected application.
        users: name → bcrypt hash; not empty.
        refusal: the response with status 401.
    """

    def __init__(self, app: ASGIApp, users: Mapping[str, bytes], refusal: ASGIApp) -> None:
        self._app = app
        self._users = {name.encode(): hash for name, hash in users.items()}
        self._refusal = refusal
        self._cost = max(map(_cost, self._users.values()))
        self._key = secrets.token_bytes(32)
        self._accepted: dict[bytes, bytes] = {}
        self._rejected: OrderedDict[bytes, None] = OrderedDict()
        self._turns = Turns(1, MAX_WAITING_CHECKS)
        self._thread = ThreadPoolExecutor(1, "bcrypt")  # of its own: requests may keep all other threads busy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application, or answer it with the refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        credentials = _credentials(Headers(scope=scope).get("authorization", ""))
        valid = self._known(*credentials) if credentials else False
        if valid is None and credentials:
            try:
                valid, receive = await while_connected(receive, self._check(client_of(scope.get("client")), *credentials))
            except TooManyWaitingError:
                await TOO_MANY(scope, receive, send)
                return
            except ClientDisconnect:
                return
        await (self._app if valid else self._refusal)(scope, receive, send)

    def _known(self, user: bytes, password: bytes) -> bool | None:
        """Return whether the password is right, if it was given before; None if it must be hashed."""
        digest = self._digest(user, password)
        if hmac.compare_digest(self._accepted.get(user, b""), digest):
            return True
        return False if digest in self._rejected else None

    async def _check(self, client: str, user: bytes, password: bytes) -> bool:
        async with self._turns.turn(client):
            known = self._known(user, password)  # a request that was before this one may have brought the same password
            if known is not None:
                return known
            hashed = self._users.get(user)
            loop = asyncio.get_running_loop()
            matches = await loop.run_in_executor(self._thread, _matches, password, hashed, self._cost)
        digest = self._digest(user, password)
        if matches:
            self._accepted[user] = digest
        else:
            self._rejected[digest] = None
            if len(self._rejected) > MAX_REJECTED:
                self._rejected.popitem(last=False)
        return matches

    def _digest(self, user: bytes, password: bytes) -> bytes:
        return hmac.digest(self._key, user + b":" + password, hashlib.sha256)


def _credentials(header: str) -> tuple[bytes, bytes] | None:
    """Return user and password of an Authorization header; None if it is not one of basic authentication."""
    scheme, _, token = header.partition(" ")
    try:
        user, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):  # ValueError: the header is not ASCII
        return None
    return (user, password[:MAX_PASSWORD_BYTES]) if scheme.lower() == "basic" and colon else None


def _matches(password: bytes, hashed: bytes | None, cost: int) -> bool:
    """Compare a password with a hash, None for an unknown user; takes the time of the highest `cost` in any case.

    A hash of cost n takes twice the time of n - 1. So the comparison and one hash of each cost from that of `hashed` to
    cost - 1 take as long as one hash of `cost`.
    """
    matches = hashed is not None and bcrypt.checkpw(password, hashed)
    for fill in range(_cost(hashed), cost) if hashed is not None else (cost,):
        bcrypt.hashpw(b"any", b"$2b$%02d$" % fill + _SALT)
    return matches


def _cost(hashed: bytes) -> int:
    return int(hashed.split(b"$")[2])
