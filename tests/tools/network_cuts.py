"""Cut the network at inserts, packets dropped without a sign, and count the samples that were lost or stored twice.

    python -m tests.tools.network_cuts --cuts 30 [--standalone] [--shortest 8] [--longest 60] [--without fence linger]

All of it runs in network namespaces of its own (Linux, root): mongod in one, each writer in another, between them a router that
drops the packets of one writer in both directions. The kernel of the writer keeps what it could not deliver and sends it again
for a quarter of an hour. Each writer stores batch after batch as the mirror does: it starts over after a failure. Right
before a batch is sent, or some milliseconds later, its network is cut for some seconds; a cut of 10 to 40 s lasts longer than
the writer waits, and not so long that the kernel gives up. Ends by itself after the last cut and what is delivered late.
"""

import argparse
import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pymongo import MongoClient

from exporter.core.errors import StoreUnavailableError
from exporter.core.model import WorkerMetricsSample
from exporter.core.periods import to_datetime, to_seconds
from exporter.demo.mongod import Mongod
from exporter.storage import mongo
from exporter.storage.insert_fence import InsertFence
from exporter.storage.repository import WorkerMetricsRepository
from tests.helpers.mongod import NO_TTL

START, PERIOD = 1_767_225_600, 300
WORKERS, PERIODS = 20, 100
"""Of a batch: two inserts of 1,000 samples."""
SERVER, PORT = "10.99.0.2", 27117
RETRY_SECONDS = 5
"""As the mirror waits after a failure."""
LATE_SECONDS = 150
"""How long to wait at most for what kernels still hold: the longest pause between two retransmissions is 120 s."""
ME = "tests.tools.network_cuts"
GUARDS = ("fence", "linger")
_MARK = "sending"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the samples of all writers."""

    cuts: int
    failures: int
    """Attempts that did not succeed."""
    batches: int
    lost: int
    doubled: int
    """Samples that are stored more than once."""

    def __str__(self) -> str:
        return (
            f"{self.cuts} cuts, {self.batches} batches of {WORKERS * PERIODS} samples, {self.failures} failed attempts: "
            f"{self.lost} lost, {self.doubled} doubled"
        )


def permitted() -> str | None:
    """Return why network namespaces cannot be made here; None if they can."""
    for program in ("unshare", "ip", "mount"):
        if shutil.which(program) is None:
            return f"there is no `{program}` on PATH"
    script = (
        "mount -t tmpfs none /run && ip netns add a && ip link add r type veth peer name e netns a && ip rule add blackhole"
    )
    done = subprocess.run(["unshare", "-n", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    return None if done.returncode == 0 else f"network namespaces are not permitted: {done.stderr.strip()}"


def cut_networks(
    cuts: int, *, standalone: bool, lengths: tuple[float, float], parallel: int, without: Sequence[str] = (), seed: int = 0
) -> Outcome:
    """Make `cuts` cuts, in namespaces of their own, and return what became of the samples."""
    words = ["--cuts", str(cuts), "--shortest", str(lengths[0]), "--longest", str(lengths[1])]
    words += ["--parallel", str(parallel), "--seed", str(seed)]
    words += ["--standalone"] if standalone else []
    words += ["--without", *without] if without else []
    done = subprocess.run(
        ["unshare", "-n", "-m", sys.executable, "-m", ME, "inside", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    print(done.stdout, flush=True)
    return Outcome(*map(int, done.stdout.splitlines()[-1].split()))


# -- inside the namespaces


class Network:
    """A router in this process's namespace, a server's namespace, and one for each writer."""

    def __init__(self, writers: int) -> None:
        _run("mount", "-t", "tmpfs", "none", "/run")  # `ip netns` keeps names there; the mount is in a namespace, too
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        for number, name in enumerate(["server", *(f"writer{n}" for n in range(1, writers + 1))]):
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"r{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "addr", "add", f"10.99.{number}.1/24", "dev", f"r{number}")
            _run("ip", "link", "set", f"r{number}", "up")
            _run("ip", "-n", name, "addr", "add", f"10.99.{number}.2/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "route", "add", "default", "via", f"10.99.{number}.1")

    def cut(self, writer: int) -> None:
        """Drop every packet from and to a writer, without an answer."""
        for direction in ("from", "to"):
            _run("ip", "rule", "add", direction, f"10.99.{writer}.2", "priority", "10", "blackhole")

    def mend(self, writer: int) -> None:
        """Let the packets of a writer pass again."""
        for direction in ("from", "to"):
            _run("ip", "rule", "del", direction, f"10.99.{writer}.2", "priority", "10", "blackhole")

    def undelivered(self, writer: int) -> int:
        """Return how many bytes the kernel of a writer holds for the server."""
        table = _run("ip", "netns", "exec", f"writer{writer}", "cat", "/proc/net/tcp").splitlines()[1:]
        return sum(int(line.split()[4].partition(":")[0], 16) for line in table)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class CutWriter:
    """A writer process in its namespace, and the cuts it suffers, in a thread of this process."""

    def __init__(
        self, network: Network, number: int, lengths: Sequence[float], rng: random.Random, without: Sequence[str]
    ) -> None:
        self.network, self.number, self.lengths, self.rng = network, number, lengths, rng
        self.uri = f"mongodb://{SERVER}:{PORT}/cut{number}?directConnection=true"
        self.failures = 0
        self._problem: BaseException | None = None
        command = ["ip", "netns", "exec", f"writer{number}", sys.executable, "-m", ME]
        self.process = subprocess.Popen(
            [*command, "write", self.uri, str(len(lengths)), *without], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.thread = threading.Thread(target=self._live)
        self.thread.start()

    def _live(self) -> None:
        try:
            self._cut_each_batch()
        except BaseException as error:  # noqa: BLE001  # `end` raises it in the main thread
            self._problem = error

    def _cut_each_batch(self) -> None:
        assert self.process.stdout is not None
        for length in self.lengths:
            assert self.process.stdout.readline().strip() == _MARK
            before = self.rng.random() < 0.5
            if not before:
                self._go()
                time.sleep(self.rng.uniform(0, 0.03))
            self.network.cut(self.number)
            if before:
                self._go()
            time.sleep(length)
            self.network.mend(self.number)
            failures = self.process.stdout.readline()
            print(f"writer {self.number}: cut for {length:.0f} s, {failures.strip()} failed attempts", flush=True)
            self.failures += int(failures)

    def _go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Wait until the kernel has delivered or dropped everything, then end the process: it keeps its sockets until then."""
        self.thread.join()
        if self._problem is not None:
            raise self._problem
        deadline = time.monotonic() + LATE_SECONDS
        while self.network.undelivered(self.number) and time.monotonic() < deadline:
            time.sleep(1)
        self._go()
        self.process.wait(60)

    def count(self) -> tuple[int, int]:
        """Return how many samples are lost, and how many are stored more than once."""
        with MongoClient[dict[str, Any]](self.uri, tz_aware=True) as client:
            found = client.get_default_database()["worker_metrics_timeseries"].find({}, {"worker_id": 1, "timestamp": 1})
            stored = Counter((each["worker_id"], to_seconds(each["timestamp"])) for each in found)
        wanted = {key(sample) for number in range(len(self.lengths)) for sample in batch(number)}
        return len(wanted - stored.keys()), sum(count > 1 for count in stored.values())


def inside(options: argparse.Namespace) -> None:
    """Run it in the namespaces this process was started in; the last line has the figures of the Outcome."""
    rng = random.Random(options.seed)
    lengths = [rng.uniform(options.shortest, options.longest) for _ in range(options.cuts)]
    network = Network(options.parallel)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        kind = "standalone" if options.standalone else "replica set"
        command = ["ip", "netns", "exec", "server", sys.executable, "-m", ME, "serve", folder, kind]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(server.wait)
        assert server.stdin is not None
        assert server.stdout is not None
        stack.callback(server.stdin.close)
        assert server.stdout.readline() == "ready\n"
        writers = [
            CutWriter(network, n, lengths[n - 1 :: options.parallel], random.Random(rng.random()), options.without)
            for n in range(1, options.parallel + 1)
        ]
        for writer in writers:
            writer.end()
        counts = [writer.count() for writer in writers]
        failures = sum(writer.failures for writer in writers)
    outcome = Outcome(options.cuts, failures, options.cuts, sum(lost for lost, _ in counts), sum(twice for _, twice in counts))
    print(f"{kind}, without {', '.join(options.without) or 'nothing'}: {outcome}")
    print(outcome.cuts, outcome.failures, outcome.batches, outcome.lost, outcome.doubled)


def serve(folder: str, kind: str) -> None:
    """Run mongod in this namespace until standard input ends."""
    with Mongod(Path(folder) / "mongod", PORT, replica_set=kind == "replica set", host="0.0.0.0", parameters=NO_TTL):
        print("ready", flush=True)
        sys.stdin.read()


def key(sample: WorkerMetricsSample) -> tuple[str, int]:
    """Return what makes a sample unique."""
    return sample.worker_id, to_seconds(sample.timestamp)


def batch(number: int) -> list[WorkerMetricsSample]:
    """Return the samples of one batch."""
    first = START + number * PERIODS * PERIOD
    return [
        WorkerMetricsSample(f"w{w}", "eu-west-1", to_datetime(first + p * PERIOD), float(p), float(w), 3, "running")
        for w in range(WORKERS)
        for p in range(PERIODS)
    ]


async def write(uri: str, batches: int, without: Sequence[str]) -> None:
    """Store the batches as the mirror does; before each is sent the first time, say so and wait for a line."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if "linger" in without:
        del mongo.DroppingPool.connect
    if "fence" in without:
        InsertFence.raise_number = _no_fence  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    async with WorkerMetricsRepository.connect(uri, wall=lambda: float(START)) as repository:
        await repository.ensure_collection()
        fence, fresh = repository.writer._fence, True
        insert = fence.insert

        async def announced(collection: str, documents: Sequence[Mapping[str, Any]]) -> None:
            nonlocal fresh
            if fresh:
                fresh = False
                print(_MARK, flush=True)
                await loop.run_in_executor(None, sys.stdin.readline)
            await insert(collection, documents)

        fence.insert = announced  # type: ignore[method-assign]
        for number in range(batches):
            failures, fresh = 0, True
            while True:
                try:
                    await repository.writer.insert_missing(batch(number))
                    break
                except StoreUnavailableError as error:
                    print(f"batch {number}: {error.reason}", file=sys.stderr)
                    failures += 1
                    await asyncio.sleep(RETRY_SECONDS)
            print(failures, flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)


async def _no_fence(self: InsertFence) -> None:
    """Stand in for the fence, which is taken away."""


def main() -> None:
    """Cut networks and print the figures; exit with 1 if a sample was lost or doubled."""
    roles: dict[str, Callable[[list[str]], object]] = {
        "serve": lambda words: serve(*words),
        "write": lambda words: asyncio.run(write(words[0], int(words[1]), words[2:])),
        "inside": lambda words: inside(_options().parse_args(words)),
    }
    if sys.argv[1:2] and sys.argv[1] in roles:
        roles[sys.argv[1]](sys.argv[2:])
        return
    options = _options().parse_args()
    if problem := permitted():
        sys.exit(problem)
    lengths = options.shortest, options.longest
    outcome = cut_networks(
        options.cuts,
        standalone=options.standalone,
        lengths=lengths,
        parallel=options.parallel,
        without=options.without,
        seed=options.seed,
    )
    sys.exit(1 if outcome.lost or outcome.doubled else 0)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=30)
    parser.add_argument("--standalone", action="store_true", help="mongod as a standalone server, which has no fence")
    parser.add_argument("--shortest", type=float, default=8, help="seconds of a cut")
    parser.add_argument("--longest", type=float, default=60, help="seconds of a cut")
    parser.add_argument("--parallel", type=int, default=6, help="writers, each with a network and a database of its own")
    parser.add_argument("--without", nargs="*", default=[], choices=GUARDS, help="take these away, to see what they are for")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
