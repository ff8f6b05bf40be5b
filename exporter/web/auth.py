"""HTTP basic authentication against bcrypt hashes, in front of the whole application."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping

import bcrypt
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

LONGEST_PASSWORD = 72
"""Bytes that bcrypt looks at; htpasswd and Prometheus' exporters ignore the rest too."""


class BasicAuth:
    """ASGI middleware: whoever names a user and that user's password passes, everybody else gets `refusal`.

    A hash of cost 10 takes some 50 ms, so the password that passed last is remembered for each user, as a digest under a key
    that lives as long as the process: scrapes pay for bcrypt only once. Unknown users cost as much time as wrong passwords.

    Args:
        app: what is protected.
        users: name → bcrypt hash; not empty.
        refusal: the 401 response.
    """

    def __init__(self, app: ASGIApp, users: Mapping[str, bytes], refusal: ASGIApp) -> None:
        self._app = app
        self._users = {name.encode(): hash for name, hash in users.items()}
        self._refusal = refusal
        self._decoy = next(iter(self._users.values()))
        self._key = secrets.token_bytes(32)
        self._passed: dict[bytes, bytes] = {}
        # One at a time, as Prometheus' exporters do it: guessing must not take the processors from the collecting.
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or await self._allows(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
        else:
            await self._refusal(scope, receive, send)

    async def _allows(self, header: str) -> bool:
        scheme, _, token = header.partition(" ")
        try:
            user, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):  # ValueError: the header is not ASCII
            return False
        if scheme.lower() != "basic" or not colon:
            return False
        return await self._knows(user, password[:LONGEST_PASSWORD])

    async def _knows(self, user: bytes, password: bytes) -> bool:
        digest = hmac.digest(self._key, user + b":" + password, hashlib.sha256)
        if hmac.compare_digest(self._passed.get(user, b""), digest):
            return True
        async with self._one_at_a_time:
            matches = await asyncio.to_thread(bcrypt.checkpw, password, self._users.get(user, self._decoy))
        if not matches or user not in self._users:
            return False
        self._passed[user] = digest
        return True
