"""The log: one line per event from every library, without credentials."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from exporter.core import logs

URI = "mongodb://manager:hunter2@db.example.com/cml"
TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


@pytest.fixture(autouse=True)
def logging_as_found() -> Iterator[None]:
    """Leave the process's logging as it was."""
    loggers = [logging.getLogger(), logging.getLogger(logs.ROOT)]
    found = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in found:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_line_of_logfmt_begins_with_time_level_and_message(stream: io.StringIO) -> None:
    logs.configure("info", "logfmt", stream)
    logs.get("exporter.collector").info("collection cycle finished", workers=12, cloudwatch=True, took=0.4)
    (line,) = lines(stream)
    assert re.fullmatch(rf'ts={TIMESTAMP} level=info msg="collection cycle finished" workers=12 cloudwatch=true took=0.4', line)


def test_a_line_of_json_is_one_object(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    logs.get("exporter.collector").warning("skipped", reason='no "id"\n', name="wörker")
    found = json.loads(stream.getvalue())
    assert re.fullmatch(TIMESTAMP, found.pop("ts"))
    assert found == {"level": "warn", "msg": "skipped", "reason": 'no "id"\n', "name": "wörker"}


@pytest.mark.parametrize(
    ("level", "written"),
    [("debug", "debug info warn error"), ("info", "info warn error"), ("warn", "warn error"), ("error", "error")],
)
def test_only_the_configured_level_and_above_is_written(stream: io.StringIO, level: str, written: str) -> None:
    logs.configure(level, "logfmt", stream)
    log = logs.get("exporter.app")
    log.debug("x")
    log.info("x")
    log.warning("x")
    log.error("x")
    assert re.findall(r"level=(\w+)", stream.getvalue()) == written.split()


def test_a_module_that_is_run_logs_at_the_configured_level_too(stream: io.StringIO) -> None:
    logs.configure("debug", "logfmt", stream)
    logs.get("__main__").debug("started")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("library", ["uvicorn.error", "botocore.credentials", "pymongo.topology", "asyncio"])
def test_libraries_leave_through_the_same_renderer_from_warnings_up(stream: io.StringIO, library: str) -> None:
    logs.configure("debug", "logfmt", stream)
    logging.getLogger(library).info("chatter")
    logging.getLogger(library).warning("took %d ms", 5)
    (line,) = lines(stream)
    assert re.fullmatch(rf'ts={TIMESTAMP} level=warn msg="took 5 ms" logger={re.escape(library)}', line)


@pytest.mark.parametrize("format", ["logfmt", "json"])
def test_an_exception_stays_on_its_line_with_its_traceback(stream: io.StringIO, format: str) -> None:
    logs.configure("info", "json" if format == "json" else "logfmt", stream)
    try:
        raise OSError(f"cannot reach {URI}")
    except OSError:
        logs.get("exporter.mirror").exception("cycle failed")
        logging.getLogger("pymongo").exception("lost it")
    assert len(lines(stream)) == 2
    assert all("Traceback" in line and "OSError" in line for line in lines(stream))
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize("format", ["logfmt", "json"])
def test_credentials_in_a_url_are_masked_wherever_they_stand(stream: io.StringIO, format: str) -> None:
    logs.configure("info", "json" if format == "json" else "logfmt", stream)
    log = logs.get("exporter.app")
    log.info(f"connecting to {URI}")
    log.info("connecting", uri=URI, nested={"uris": [URI]}, error=ValueError(URI))
    log.info(
        "unusual passwords",
        uris=["mongodb://u:p@hunter2@h", "mongodb://u:hunter2'@h", 'mongodb://u:hunter2"@h', "HTTPS://u:hunter2@h"],
    )
    logging.getLogger("uvicorn").error("bad URL %s", URI)
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("mongodb://***@db.example.com/cml") == 5
    if format == "json":
        assert all(json.loads(line) for line in lines(stream))


def test_what_holds_no_credentials_is_left_as_it_is() -> None:
    text = "see http://127.0.0.1:9877/metrics and mail ops@example.com, mongodb://db:27017/cml"
    assert logs.mask(text) == text


def test_configuring_again_replaces_what_was(stream: io.StringIO) -> None:
    log = logs.get("exporter.app")
    before = io.StringIO()
    logs.configure("error", "json", before)
    log.info("unheard")
    logs.configure("info", "logfmt", stream)
    log.info("heard")
    assert before.getvalue() == ""
    assert len(lines(stream)) == 1


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "logfmt")
    logs.get("exporter.app").info("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("msg=hello")) == ("", 1)


def test_the_same_text_is_due_again_only_after_the_pause() -> None:
    now = [0.0]
    repeats = logs.Repeats(600, monotonic=lambda: now[0])
    assert repeats.is_due("a")
    assert repeats.is_due("b")
    now[0] = 599
    assert not repeats.is_due("a")
    now[0] = 601
    assert repeats.is_due("a")
    assert not repeats.is_due("a")
    assert repeats.reset()
    assert not repeats.reset()
    assert repeats.is_due("a")


def test_a_repeated_failure_is_one_line_and_then_its_count() -> None:
    now = [0.0]
    repeats = logs.Repeats(600, monotonic=lambda: now[0])
    assert (repeats.is_due("a"), repeats.count) == (True, {})
    assert [repeats.is_due("a") for _ in range(5)] == [False] * 5
    now[0] = 601
    assert (repeats.is_due("a"), repeats.count) == (True, {"repeated": 5})
    assert not repeats.is_due("a")
    assert (repeats.reset(), repeats.count) == (True, {"repeated": 1})
    now[0] = 10_000
    assert (repeats.is_due("a"), repeats.count) == (True, {})


def test_the_same_warning_is_written_once_and_any_other_line_each_time(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    log = logs.get("exporter.loop")
    for number in (1, 1, 2):
        log.error("polling failed", error="the disk is full", worker=number)
        log.info("collection cycle finished")
    written = [json.loads(line) for line in lines(stream)]
    assert [(one["msg"], one.get("worker")) for one in written if one["level"] == "error"] == [
        *(("polling failed", 1), ("polling failed", 2))
    ]
    assert sum(one["msg"] == "collection cycle finished" for one in written) == 3


def test_numbers_are_numbers_in_json(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    logs.get("exporter.app").info("x", workers=12, took=0.4, leads=True, none=None)
    found = json.loads(stream.getvalue())
    assert (found["workers"], found["took"], found["leads"], found["none"]) == (12, 0.4, True, None)
