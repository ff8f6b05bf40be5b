"""For every test: a clean environment, and the real parts as fixtures."""

import gc
import os
import shutil
import sys
from collections.abc import Generator, Iterator
from typing import Any, NoReturn

import hypothesis
import pytest
import structlog

from exporter.core.heap import collect_rarely
from tests.helpers.deadlines import scaled

# Without a deadline, because a busy machine must not fail a property.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=400)
hypothesis.settings.load_profile("quick")

pytest_plugins = ["tests.fixtures.mongo", "tests.fixtures.cloudwatch", "tests.fixtures.process", "tests.fixtures.prometheus"]


NIGHTLY = "nightly"
BUSY_PROCESSES = 5
"""Processes of a run that begin with tests that use the processor; measured on two of them."""
LEFT_OUT = pytest.StashKey[int]()
"""How many tests were left to `make test-all`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(f"--{NIGHTLY}", action="store_true", help="run the nightly tests too, and properties with more examples")


def pytest_configure(config: pytest.Config) -> None:
    # Each process of a run, and each of the hundreds that tests start, would compile all modules again: a second of CPU each.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    config.addinivalue_line(
        "markers", "waits(seconds): how long the test takes, mostly waiting, on an idle machine; such tests begin first"
    )
    config.addinivalue_line(
        "markers",
        f"{NIGHTLY}(sibling): left to `make test-all`, because it takes long and shows little beyond that shorter test, "
        "which is named as pytest names it; `--nightly` runs it",
    )
    if config.getoption(NIGHTLY):
        hypothesis.settings.load_profile(NIGHTLY)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without Python's search for garbage, which would go through all these objects again and again.

    They live as long as the process, so that no later search goes through them either; and searches are as rare as in the
    exporter.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        collect_rarely()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the nightly tests, unless they are wanted or named, and begin with those that wait."""
    leave_out_nightly(config, items)
    begin_with_waiting(items)


def leave_out_nightly(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the nightly tests without `--nightly`; one that the command line names is run."""
    if config.getoption(NIGHTLY) or any("::" in argument for argument in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker(NIGHTLY)]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker(NIGHTLY)]
        config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = len(left_out)
    if hasattr(config, "workeroutput"):  # of a process of pytest-xdist
        config.workeroutput[NIGHTLY] = len(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401  # pytest-xdist has no types
    """Note what a process of pytest-xdist has left out; each has collected all tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get(NIGHTLY, 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} nightly tests are left to `make test-all`.")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let the time after which a test counts as hung follow the load, as all deadlines do, before pytest-timeout reads it."""
    own = item.get_closest_marker("timeout")
    seconds = own.args[0] if own else item.config.getini("timeout")
    item.add_marker(pytest.mark.timeout(scaled(float(seconds))), append=False)
    return (yield)


def begin_with_waiting(items: list[pytest.Item]) -> None:
    """Begin with the tests that wait for a minute or so, the longest ones first, while the others use the processor.

    pytest-xdist gives each process a run of consecutive tests; a process that has finished takes over the end of another's. So
    the tests that wait stand at the beginning of the runs of all processes but five: the others wait at times, too.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    waiting = sorted((item for item in items if _waits(item)), key=_waits, reverse=True)
    rest = [item for item in items if not _waits(item)]
    queues: list[list[pytest.Item]] = [[] for _ in range(max(1, workers - BUSY_PROCESSES))]
    for item in waiting:
        min(queues, key=lambda queue: sum(map(_waits, queue))).append(item)
    left = len(items)
    items.clear()
    for number in range(workers):
        size = left // (workers - number)  # as pytest-xdist divides them
        begin = queues[number] if number < len(queues) else []
        others = max(0, size - len(begin))
        items += begin + rest[:others]
        del rest[:others]
        left -= size


def _waits(item: pytest.Item) -> float:
    """Return for how many seconds a test waits, 0 for most."""
    mark = item.get_closest_marker("waits")
    return float(mark.args[0]) if mark else 0.0


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


@pytest.fixture(autouse=True)
def default_log() -> None:
    """Print the log, whatever an earlier test of this process has configured."""
    structlog.reset_defaults()
