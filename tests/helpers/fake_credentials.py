"""A fake of what hands out AWS credentials over HTTP, beside STS: instance metadata (IMDSv2), containers, and SSO.

STS is in `fake_cloudwatch`. The keys of each have a prefix of their own, so that CloudWatch's ledger of keys tells where the
keys of a request came from. Every answer has new keys, so a test sees each renewal.
"""

import http.server
import itertools
import json
import threading
import time
from collections import Counter
from typing import Self
from urllib.parse import urlsplit

ROLE = "cml-exporter"
SSO_TOKEN = "sso-access-token"
CONTAINER_TOKEN = "container-token"


class FakeCredentials:
    """The server, in a thread of its own; a context manager.

    Attributes: `seconds` that keys live, `calls` by what was asked for.
    """

    def __init__(self) -> None:
        self.seconds = 3600
        self.calls: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def do_PUT(self) -> None:
                self._send(*fake.put(urlsplit(self.path).path))

            def do_GET(self) -> None:
                self._send(*fake.get(urlsplit(self.path).path, {name.lower(): value for name, value in self.headers.items()}))

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, path: str) -> tuple[int, bytes]:
        return (200, b"imds-token") if path == "/latest/api/token" else (404, b"")

    def get(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        roles = "/latest/meta-data/iam/security-credentials/"
        if path.startswith(roles):
            if headers.get("x-aws-ec2-metadata-token") != "imds-token":
                return 401, b""
            if path == roles:
                return 200, ROLE.encode()
            self.calls["imds"] += 1
            return 200, _json(self._keys("ASIAIMDS"), Code="Success", Type="AWS-HMAC")
        if path == "/container":
            if headers.get("authorization") != CONTAINER_TOKEN:
                return 401, b""
            self.calls["container"] += 1
            return 200, _json(self._keys("ASIACONT"))
        if path == "/federation/credentials":
            if headers.get("x-amz-sso_bearer_token") != SSO_TOKEN:
                return 401, b'{"__type": "UnauthorizedException", "message": "Session token not found or invalid"}'
            self.calls["sso"] += 1
            keys = self._keys("ASIASSOX")
            expires = int((time.time() + self.seconds) * 1000)
            names = {"accessKeyId": "AccessKeyId", "secretAccessKey": "SecretAccessKey", "sessionToken": "Token"}
            return 200, json.dumps(
                {"roleCredentials": {name: keys[of] for name, of in names.items()} | {"expiration": expires}}
            ).encode()
        return 404, b""

    def _keys(self, prefix: str) -> dict[str, str]:
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.seconds))
        key = f"{prefix}{next(self._numbers):012d}"
        return {"AccessKeyId": key, "SecretAccessKey": "s", "Token": "t", "Expiration": expires}


def _json(keys: dict[str, str], **more: str) -> bytes:
    return json.dumps({**keys, "LastUpdated": "2026-01-01T00:00:00Z", **more}).encode()
