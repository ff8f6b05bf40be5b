"""Records the first ten minutes of a newcomer: docs/recordings/clone.txt and wheel.txt, by running what they show.

    python -m tests.tools.recordings clone [--output docs/recordings]     # from a fresh clone of this checkout
    python -m tests.tools.recordings wheel                                # from the wheel, built of it, by pip

Each command runs in a terminal of 100 columns; what it prints is recorded, without colors, and cut where the recording says so.
"""

import argparse
import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from exporter.core.periods import align
from exporter.demo.ports import refuse_taken
from exporter.demo.prometheus import QUERIES

ROOT = Path(__file__).parents[2]
COLUMNS = 100
MOST_LINES = 22
"""Of one command, unless it is worth more."""
READY_SECONDS = 600
_PACKAGE = re.compile(r" [-+~] \S+==\S+")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\([AB]")


class Program:
    """A command in a terminal of its own, which prints until it ends."""

    def __init__(self, command: str, folder: Path) -> None:
        pid, self._terminal = pty.fork()
        if pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))  # before the program asks
            os.chdir(folder)
            # In the background of a script it is ignored, and a program cannot change that by itself.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execvp("bash", ["bash", "-c", command])
        self.pid = pid
        self._printed = bytearray()
        # Always, also while another command runs: a program whose terminal is full waits.
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        while True:
            try:
                read = os.read(self._terminal, 65536)
            except OSError:  # Linux: the other side is closed
                return
            if not read:
                return
            self._printed += read

    def read(self, until: Callable[[], bool] = lambda: False, within: float = READY_SECONDS) -> bool:
        """Wait until it ends, or `until`; return whether it has ended. Raises TimeoutError."""
        deadline = time.monotonic() + within
        while not until():
            if time.monotonic() > deadline:
                raise TimeoutError(self.text[-2000:])
            self._reader.join(0.1)
            if not self._reader.is_alive():
                os.waitpid(self.pid, 0)
                os.close(self._terminal)
                return True
        return False

    @property
    def text(self) -> str:
        """What it has printed, as a terminal shows it: of a line that was written over, the newest."""
        text = _ESCAPES.sub("", self._printed.decode(errors="replace")).replace("\r\n", "\n")
        return "\n".join(line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")).strip("\n")

    def interrupt(self) -> str:
        """Press Ctrl-C, wait for the end, and return what it printed thereafter."""
        before = len(self.text)
        os.write(self._terminal, b"\x03")
        self.read(within=120)
        return self.text[before:].strip("\n")


class Recording:
    """The text of one recording, and the folder it happens in."""

    def __init__(self, folder: Path, page: str = "http://127.0.0.1:9877/", own_port: int = 9999) -> None:
        self.folder, self.page, self.own_port = folder, page, own_port
        self._begun = time.monotonic()
        self.demo_started = 0
        """UTC second of the first command that runs until Ctrl-C."""
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """Add a remark, with the time since the beginning."""
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        self.lines += ["", f"# {minutes}:{seconds:02} {text}"]

    def add(self, text: str, most: int = MOST_LINES) -> None:
        """Add what was printed, its middle left out if it is long, and the packages that were installed."""
        lines = [line for line in text.splitlines() if not _PACKAGE.match(line)]
        if len(lines) > most:
            lines = [*lines[: most - 3], f" … {len(lines) - most + 1} more lines", *lines[-2:]]
        self.lines += lines

    def run(self, *commands: str, most: int = MOST_LINES) -> None:
        """Run commands to their ends."""
        for command in commands:
            program = Program(command, self.folder)
            program.read(within=2 * READY_SECONDS)
            self.lines.append(f"$ {command}")
            self.add(program.text, most)

    def begin(self, command: str, url: str, most: int = 60) -> Program:
        """Start a command that runs until Ctrl-C, and wait for its page and for what it says then."""
        started = time.monotonic()
        self.demo_started = self.demo_started or int(time.time())
        program = Program(command, self.folder)
        program.read(until=lambda: _has_values(url))
        seconds = time.monotonic() - started
        program.read(until=lambda: "starts over" in program.text or "serve" in command, within=120)
        self.lines.append(f"$ {command}")
        self.add(program.text.partition("\n\n\n")[0], most)
        self.note(f"a page with values, {seconds:.1f} s after the command")
        return program

    def end(self, program: Program) -> None:
        """Press Ctrl-C."""
        started = time.monotonic()
        said = program.interrupt()
        self.note(f"Ctrl-C in the first shell ({time.monotonic() - started:.1f} s)")
        self.add(said.rpartition("Ctrl-C ends it")[2].lstrip("\n"))


def _has_values(url: str) -> bool:
    try:
        with urlopen(f"{url}metrics", timeout=5) as answer:
            return b"\ncml_worker_cpu_utilization_ratio{" in answer.read()
    except OSError:
        return False


OWN_PORT = {"clone": 9999, "wheel": 9998}
ENDPOINT = "python3 -c \"import json; print(json.load(open('.demo/endpoints.json'))['{}'])\""
FIRST_SAMPLE_SECONDS = 15 * 60
"""From the start of the period in which the demo starts until the history has the samples of it: as the banner says."""
SETTINGS = """\
cat > exporter.yml <<'.'
mongodb:
  uri_file: mongodb-uri
cloudwatch:
  interval: 5m
  endpoint_url: {aws}     # the demo's fake AWS; leave it out on a real account
aws:
  sts_endpoint_url: {aws}
data_dir: outbox
web:
  listen_address: {port}
."""


def look_around(recording: Recording, program: str) -> None:
    """Record what the banner says to try, and what a newcomer tries next."""
    recording.lines.append("# In another shell:")
    recording.run(
        f"curl -s {recording.page}metrics | grep ^cml_worker_cpu",
        f"curl -s '{recording.page}api/workers?limit=2' | head -c 700; echo ' …'",
        f"{program} export --since -1h --format csv --config.file .demo/exporter.yml | head -4",
    )
    recording.note("the page, and what else there is")
    recording.run(
        f"curl -s -o page.html -w '%{{http_code}}, %{{size_download}} bytes in %{{time_total}} s\\n' {recording.page}",
        "grep -o '<h1>.*</h1>' page.html",
        f"curl -s '{recording.page}api/metrics/history?region=eu-west-1&start=-1d&interval=12h&format=csv' | "
        "head -3 | cut -c1-200",
    )
    recording.run(f"{program} --help", most=40)
    recording.note("is all well, and what would CloudWatch cost?")
    os.environ |= {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"}
    recording.lines.append(
        "$ export AWS_ACCESS_KEY_ID=demo AWS_SECRET_ACCESS_KEY=demo      # any keys: the fake AWS takes them"
    )
    recording.run(f"{program} check --config.file .demo/exporter.yml", most=46)
    recording.run(f"{program} estimate --config.file .demo/exporter.yml", f"{program} chek", f"{program} export --sinse 1d")


def own_exporter(recording: Recording, program: str) -> None:
    """Record README's steps for a real account, with the demo's MongoDB and fake AWS in place of it."""
    recording.note("the steps for a real account, with the demo's MongoDB and fake AWS in its place")
    aws = subprocess.run(
        ["bash", "-c", ENDPOINT.format("aws")], cwd=recording.folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    recording.run(f"{ENDPOINT.format('mongodb')} > mongodb-uri", SETTINGS.format(aws=aws, port=recording.own_port))
    recording.run(f"{program} estimate --config.file exporter.yml | head -6")
    recording.run(f"{program} check --config.file exporter.yml --json | head -c 220; echo ' …'")
    own = recording.begin(f"{program} serve --config.file exporter.yml", f"http://127.0.0.1:{recording.own_port}/")
    recording.lines.append("# In a third shell:")
    recording.run(
        f"curl -s http://127.0.0.1:{recording.own_port}/metrics | grep -E '^cml_exporter_(leader|shard_info|source_up)'"
    )
    recording.run(f"curl -s http://127.0.0.1:{recording.own_port}/metrics | grep -c ^cml_worker_info")
    recording.run(f"curl -s http://127.0.0.1:{recording.own_port}/-/ready | head -c 400; echo")
    recording.end(own)
    recording.run(f"{program} assets --output assets", most=8)


def ask_prometheus(recording: Recording) -> None:
    """Record a query of the banner, and what else the exporter answers."""
    recording.note("Prometheus by a query of the banner, and what else there is")
    recording.run(ENDPOINT.format("prometheus") + " > prometheus-url")
    query = shlex.quote("query=" + " ".join(QUERIES["who runs without a lab"].split()))
    recording.run(
        f"curl -s $(cat prometheus-url)/api/v1/query --data-urlencode {query}; echo",
        f"curl -s '{recording.page}api/workers?name=cml-dub-01&fields=status,active_labs_count,cpu_utilization'; echo",
        f"curl -s {recording.page}runbook | grep -c '<h2'",
    )


def wait_for_sample(recording: Recording, program: str) -> None:
    """Record that a new sample is in the history some minutes later."""
    export = f"{program} export --since -20m --format csv --config.file .demo/exporter.yml"
    newest = f"{export} 2> /dev/null | grep running | cut -d, -f2,4-8 | sort -t, -k2 | tail -3"
    recording.note("the newest samples; then the next ones are waited for")
    until = align(recording.demo_started, 300) + FIRST_SAMPLE_SECONDS
    recording.run(newest, f"sleep {max(1, until - int(time.time()))}")
    recording.note("the newest samples again")
    recording.run(newest)


def clone(recording: Recording) -> None:
    """Record the minutes from a clone, by README's commands."""
    recording.note("a fresh clone")
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(recording.folder / "cml-worker-metrics")], check=True)
    recording.lines.append("$ git clone … cml-worker-metrics && cd cml-worker-metrics")
    recording.folder /= "cml-worker-metrics"
    demo = recording.begin("make demo", recording.page)
    look_around(recording, ".venv/bin/cml-worker-exporter")
    own_exporter(recording, ".venv/bin/cml-worker-exporter")
    ask_prometheus(recording)
    wait_for_sample(recording, ".venv/bin/cml-worker-exporter")
    recording.note("what a second demo says, in the same folder, and on the same port")
    recording.run("make demo", "make demo PORT=9877", most=8)
    recording.end(demo)
    recording.note("the second start")
    recording.end(recording.begin("make demo", recording.page, most=8))


def wheel(recording: Recording) -> None:
    """Record the minutes from the wheel, in an empty environment, with and without Prometheus on PATH."""
    subprocess.run(
        [str(ROOT / ".venv/bin/hatchling"), "build", "-t", "wheel", "-d", str(recording.folder)], cwd=ROOT, check=True
    )
    (built,) = recording.folder.glob("*.whl")
    recording.note("an empty environment and the wheel, by pip")
    recording.run(
        f"python3 -m venv cml && cml/bin/pip install -q '{built.name}[demo]'", "cml/bin/cml-worker-exporter --version"
    )
    demo = recording.begin("cml/bin/cml-worker-exporter demo --port 9878", recording.page)
    look_around(recording, "cml/bin/cml-worker-exporter")
    own_exporter(recording, "cml/bin/cml-worker-exporter")
    recording.run("man -M cml/share/man -P cat cml-worker-exporter 2> /dev/null | head -12")
    ask_prometheus(recording)
    wait_for_sample(recording, "cml/bin/cml-worker-exporter")
    recording.end(demo)
    recording.note("the second start, without prometheus on PATH")
    programs = recording.folder / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "env", "uname"):
        (programs / name).symlink_to(str(shutil.which(name)))
    recording.end(
        recording.begin(f"PATH={programs.name} cml/bin/cml-worker-exporter demo --port 9878", recording.page, most=32)
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Record one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("clone", "wheel"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "recordings", help="folder (default: %(default)s)")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ |= {"NO_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm", "PAGER": "cat"}
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "MONGODB_URI", "MAKEFLAGS"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="recording-") as temporary:
        # Other ports for the second one, so that both can be recorded at the same time.
        page = f"http://127.0.0.1:{9878 if arguments.which == 'wheel' else 9877}/"
        recording = Recording(Path(temporary), page, OWN_PORT[arguments.which])
        for port in (urlsplit(page).port, recording.own_port):
            refuse_taken(int(port or 0))  # else it would be another program's page that has values
        load = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.0f}"
        recording.lines.append(
            f"# Recorded by `python -m tests.tools.recordings {arguments.which}` ({load}); before each remark the"
        )
        recording.lines.append("# minutes and seconds since the beginning")
        {"clone": clone, "wheel": wheel}[arguments.which](recording)
        text = "\n".join(recording.lines).replace(temporary, "…") + "\n"
        (arguments.output / f"{arguments.which}.txt").write_text(text)
        print(text.count("\n"), "lines")


if __name__ == "__main__":
    main()
