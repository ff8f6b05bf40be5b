"""A replica set of several real mongods, whose members can be ended and started again: no majority, step-downs."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import AutoReconnect, PyMongoError

from exporter.demo.mongod import REPLICA_SET, Mongod
from tests.helpers.deadlines import scaled
from tests.helpers.ports import free_port

ELECTION_MILLISECONDS = 2000
PATIENCE_SECONDS = 120
"""How long an election may take on a busy machine."""


class _Member(Mongod):
    """One member: it is started as soon as it answers, whether primary or not."""

    def _ready(self, client: "MongoClient[dict[str, object]]") -> bool:
        try:
            client.admin.command("hello")
        except PyMongoError:
            return False
        return True


class ReplicaSet:
    """Members on free ports with their data in `folder`; use it as a context manager."""

    def __init__(self, folder: Path, members: int = 3) -> None:
        self.members: Sequence[Mongod] = [
            _Member(folder / f"member-{number}", free_port(), replica_set=True, parameters={"ttlMonitorEnabled": "false"})
            for number in range(members)
        ]

    @property
    def uri(self) -> str:
        """The connection string with all members."""
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in self.members)
        return f"mongodb://{hosts}/?replicaSet={REPLICA_SET}"

    def __enter__(self) -> Self:
        for member in self.members:
            member.start()
        hosts = [{"_id": number, "host": f"127.0.0.1:{member.port}"} for number, member in enumerate(self.members)]
        settings = {"electionTimeoutMillis": ELECTION_MILLISECONDS, "heartbeatIntervalMillis": 500}
        with MongoClient[dict[str, Any]](self.members[0].uri) as client:
            client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": hosts, "settings": settings})
        self.primary()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for member in self.members:
            member.kill()

    def primary(self) -> Mongod:
        """Wait until a member may write, and return it."""
        return self._wait(lambda hello: bool(hello.get("isWritablePrimary")), "no primary was elected")

    def wait_for_no_primary(self) -> None:
        """Wait until the members that run have no primary among them."""
        deadline = time.monotonic() + scaled(PATIENCE_SECONDS)
        while any(hello.get("isWritablePrimary") for hello in self._hellos().values()):
            assert time.monotonic() < deadline, "the primary did not step down"
            time.sleep(0.1)

    def step_down(self, seconds: int = 10) -> None:
        """Let the primary step down and refuse to be elected for so many seconds."""
        with MongoClient[dict[str, Any]](self.primary().uri) as client:
            try:
                client.admin.command("replSetStepDown", seconds, secondaryCatchUpPeriodSecs=5, force=True)
            except AutoReconnect:
                return  # some versions close the connection

    def _hellos(self) -> dict[Mongod, dict[str, Any]]:
        found = {}
        for member in self.members:
            with MongoClient[dict[str, Any]](member.uri, serverSelectionTimeoutMS=500) as client:
                try:
                    found[member] = client.admin.command("hello")
                except PyMongoError:
                    continue
        return found

    def _wait(self, condition: Any, otherwise: str) -> Mongod:  # noqa: ANN401  # a predicate of a hello
        deadline = time.monotonic() + scaled(PATIENCE_SECONDS)
        while True:
            for member, hello in self._hellos().items():
                if condition(hello):
                    return member
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.1)
