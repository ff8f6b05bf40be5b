"""Where the text of an export goes: standard output, a pipe, or a file that appears when it is complete."""

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.core.errors import ConfigError, ExporterError

STDOUT = 1
"""The descriptor of standard output."""


class Sink:
    """Where the text goes: a file descriptor, written without a buffer of ours, so that nothing is left to fail later."""

    def __init__(self, descriptor: int, name: str, *, kept: bool) -> None:
        self.descriptor = descriptor
        self._name = name
        self._kept = kept

    def write(self, text: str) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: the reader has ended.
            ExporterError: it cannot be written, such as on a full disk.
        """
        self.write_bytes(text.encode())

    def write_bytes(self, data: bytes) -> None:
        """Write all of it; the errors are those of `write`."""
        with self.failing():
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Translate what the operating system says."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            what = "what is there is not complete" if self._kept else "the partial file was removed"
            raise ExporterError(
                f"cannot write {self._name} ({error.strerror}); {what}, make room or choose another place with --output"
            ) from error


@contextmanager
def destination(output: Path | None) -> Iterator[Sink]:
    """Yield where to write; a file gets its name after everything is in it and on the disk, else it is removed."""
    if output is None:
        yield Sink(STDOUT, "standard output", kept=True)
        return
    path = output.resolve()  # a link stays one
    if path.exists() and not path.is_file() and not path.is_dir():
        with _opened(path, os.O_WRONLY, path) as descriptor:  # a pipe or device cannot be replaced
            yield Sink(descriptor, str(path), kept=True)
        return
    part = path.parent / f".export-{secrets.token_hex(6)}.part"
    try:
        with (
            _terminated(lambda: part.unlink(missing_ok=True)),
            _opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, path) as descriptor,
        ):
            sink = Sink(descriptor, str(path), kept=False)
            yield sink
            with sink.failing():
                os.fsync(descriptor)
                part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _terminated(clean: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM do this before it ends the process. Ctrl-C needs none of it: asyncio makes it an exception."""

    def end(*_: object) -> None:
        clean()
        os._exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _opened(path: Path, flags: int, shown: Path) -> Iterator[int]:
    if shown.is_dir():
        raise ConfigError(f"--output: {shown} is a folder; name a file in it")
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"--output: cannot write {shown} ({error.strerror}); choose another place") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
