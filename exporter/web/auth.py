"""HTTP basic authentication with bcrypt hashes, for all routes."""

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

MAX_PASSWORD_BYTES = 72
"""Bytes of a password that bcrypt uses; htpasswd and Prometheus's exporters ignore the rest too."""


class BasicAuth:
    """ASGI middleware that passes requests with a known user and the right password, and answers all others with `refusal`.

    A bcrypt hash of cost 10 takes 50 ms. The last accepted password of each user is therefore cached, as a digest with a key of
    this process, so that only the first scrape needs bcrypt. An unknown user takes as long as a wrong password.

    Args:
        app: the protected application.
        users: name → bcrypt hash; not empty.
        refusal: the response with status 401.
    """

    def __init__(self, app: ASGIApp, users: Mapping[str, bytes], refusal: ASGIApp) -> None:
        self._app = app
        self._users = {name.encode(): hash for name, hash in users.items()}
        self._refusal = refusal
        self._unknown_user_hash = next(iter(self._users.values()))
        self._key = secrets.token_bytes(32)
        self._accepted: dict[bytes, bytes] = {}
        # One at a time, as in Prometheus's exporters: guessing passwords must not slow down the collector.
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the application, or answer it with the refusal."""
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
        return await self._is_valid(user, password[:MAX_PASSWORD_BYTES])

    async def _is_valid(self, user: bytes, password: bytes) -> bool:
        digest = hmac.digest(self._key, user + b":" + password, hashlib.sha256)
        if hmac.compare_digest(self._accepted.get(user, b""), digest):
            return True
        async with self._one_at_a_time:
            matches = await asyncio.to_thread(bcrypt.checkpw, password, self._users.get(user, self._unknown_user_hash))
        if not matches or user not in self._users:
            return False
        self._accepted[user] = digest
        return True
