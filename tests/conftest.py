"""For every test: a clean environment, and the real parts as fixtures."""

import os
import shutil
from typing import NoReturn

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a property
hypothesis.settings.load_profile("untimed")

pytest_plugins = ["tests.fixtures.mongo", "tests.fixtures.cloudwatch", "tests.fixtures.process", "tests.fixtures.prometheus"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests with a timeout of their own first: they wait for minutes, and the others run meanwhile.

    pytest-xdist gives each process an equal run of consecutive tests, so the long ones go to the beginning of every other run;
    the other processes take over what is left of it.
    """
    long = [item for item in items if (mark := item.get_closest_marker("timeout")) and mark.args[0] >= 600]
    waiting = frozenset(long)
    rest = [item for item in items if item not in waiting]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    size = -(-len(items) // workers)
    items.clear()
    holders = (workers + 1) // 2
    for number in range(workers):
        own = long[number // 2 :: holders] if number % 2 == 0 else []
        items += own + rest[: size - len(own)]
        del rest[: size - len(own)]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, credential or proxy of the machine reaches a test."""
    for name in os.environ:
        if name.startswith(("CML_EXPORTER_", "AWS_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def missing(program: str, install: str) -> NoReturn:
    """Skip the test where a program is missing; with CI=true that is a failure."""
    reason = f"{program} is not on this machine; install it with: {install}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, install: str) -> str:
    """Where a program is; the test is skipped without it, or fails with CI=true."""
    return shutil.which(name) or missing(name, install)
