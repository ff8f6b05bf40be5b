"""For every test: a clean environment, and the real parts as fixtures."""

import os
import shutil
from typing import NoReturn

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine must not fail a property
hypothesis.settings.load_profile("untimed")

pytest_plugins = ["tests.fixtures.mongo", "tests.fixtures.cloudwatch", "tests.fixtures.process", "tests.fixtures.prometheus"]


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
