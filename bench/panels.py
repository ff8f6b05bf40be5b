"""Measures every panel of every dashboard: the length of its queries, and how long a real Prometheus takes for them.

    python -m bench.panels [--workers 1000] [--days 14] [--scrape 120] [--repeat 3] [--before FOLDER] [--json FILE]

Starts a mongod with the history, an exporter, and a Prometheus that holds 24 hours of scrapes and recorded series and reads the
history from the exporter. Each dashboard is opened with all workers and its own time range, at least 24 hours, with six queries
at once as in a browser; the first opening is the cold one. Then its panels are queried one by one: the time of a panel is the
median of the sums of its queries. CPU seconds are those of mongod, exporter, and Prometheus together: unlike the time, they do
not depend on what else the machine does. With --before, the dashboards in FOLDER (an older checkout's grafana/dashboards) are
measured on the same data.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pymongo import MongoClient

from bench.history import HISTORY, INVENTORY, PERIOD, Document, create, database, exporter_process, inventory, worker_id
from exporter.core.model import STATUSES
from exporter.core.periods import DAY, HOUR, align, to_datetime
from exporter.demo import prometheus as prometheus_module
from exporter.demo.prometheus import INSTALL, SOURCE
from tests.helpers.dashboards import ALL
from tests.helpers.grafana_variables import View, panels, seconds
from tests.helpers.prometheus import Prometheus

DASHBOARDS = Path(__file__).parents[1] / "grafana" / "dashboards"
BROWSER = 6
"""Requests that a browser has under way at once."""
QUERY_SECONDS = 300
RULE_LEVELS = 4
"""Longest chain of recording rules that read one another: labs, what is in use, idle workers, idle workers by region."""
REGION = "eu-west-1"


@dataclass
class Measured:
    """One panel: the characters of its queries as Grafana sends them, and the seconds that they took."""

    dashboard: str
    panel: str
    characters: int
    seconds: float
    cpu: float
    outcome: str = ""
    """Of each query its error, or the number of its points: an empty result costs nothing and proves nothing."""


class Stack(NamedTuple):
    """The measured Prometheus, and the processes whose CPU time counts."""

    prometheus: Prometheus
    pids: Mapping[str, int]
    """By the name of the program."""

    def cpu_by_program(self) -> dict[str, float]:
        """Return the CPU seconds that each process has used."""
        fields = {name: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for name, pid in self.pids.items()}
        return {name: (int(each[11]) + int(each[12])) / os.sysconf("SC_CLK_TCK") for name, each in fields.items()}

    def cpu(self) -> float:
        """Return the CPU seconds that the processes have used."""
        return sum(self.cpu_by_program().values())


class Opening(NamedTuple):
    """Seconds until all panels of a dashboard have answered, and the CPU seconds meanwhile of each program."""

    seconds: float
    cpu: Mapping[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {used:.1f}" for name, used in self.cpu.items())
        return f"{self.seconds:6.2f} s ({sum(self.cpu.values()):.1f} s CPU: {parts})"


def status_at(number: int, at: int) -> str:
    """Return running, except for three hours of every second day of a worker."""
    return "stopped" if (at // (3 * HOUR) + number) % 16 == 0 else "running"


def cpu_at(number: int, at: int) -> float:
    """Return the CPU in percent: a third of the workers is almost idle."""
    return (3 if number % 3 == 0 else 20 + number % 60) + (at // PERIOD * 7 + number) % 10 / 10


def fill(database: Any, workers: int, days: int, end: int) -> None:  # noqa: ANN401  # pymongo's generic database
    """Insert the samples of `days` until UTC second `end`, the inventory, and the worker documents."""
    history = database[HISTORY]
    create(history, days + 30)
    stamps = [(at, to_datetime(at)) for at in range(end - days * DAY, end, PERIOD)]
    for number in range(workers):
        history.insert_many(
            [
                {
                    "worker_id": worker_id(number),
                    "timestamp": stamp,
                    "region": REGION,
                    "cpu_utilization": cpu_at(number, at),
                    "memory_utilization": float(30 + number % 50),
                    "active_labs_count": number % 5,
                    "status": status_at(number, at),
                }
                for at, stamp in stamps
            ],
            ordered=False,
        )
    entries = inventory(workers, end)
    database[INVENTORY].insert_many([entry | {"first_seen": to_datetime(end - days * DAY)} for entry in entries])
    database.workers.insert_many(
        [
            {
                "id": worker_id(number),
                "name": f"cml {number}",
                "aws_region": REGION,
                "aws_instance_id": f"i-{number:017x}",
                "status": status_at(number, end),
                "active_labs_count": number % 5,
                "cpu_utilization": cpu_at(number, end),
                "memory_utilization": float(30 + number % 50),
                "cloudwatch_last_collected_at": to_datetime(end),
                "last_activity_at": to_datetime(end - 60 * number),
                "created_at": to_datetime(end - days * DAY),
            }
            for number in range(workers)
        ]
    )


def scrapes(workers: int, instance: str, start: int, end: int, step: int) -> Iterator[str]:
    """Yield the series that the graphs of workers read, as OpenMetrics with times."""
    times = [f" {at}\n" for at in range(start, end, step)]
    target = f'job="cml-worker-exporter",instance="{instance}"'

    def series(name: str, number: int, more: str, values: Sequence[object]) -> str:
        labels = f'{{{target},worker_id="{worker_id(number)}",region="{REGION}"{more}}} '
        return "".join([f"{name}{labels}{value}{at}" for value, at in zip(values, times, strict=True)])

    ones = [1] * len(times)
    moments = range(start, end, step)
    yield "# TYPE cml_worker_info gauge\n"
    for number in range(workers):
        facts = f',worker="cml {number}",name="cml {number}",instance_id="i-{number:017x}"'
        yield series("cml_worker_info", number, facts, ones)
    yield "# TYPE cml_worker_status gauge\n"
    for number in range(workers):
        statuses = [status_at(number, at) for at in moments]
        for status in STATUSES:
            yield series("cml_worker_status", number, f',status="{status}"', [int(each == status) for each in statuses])
    for name, value_at in (
        ("cml_worker_cpu_utilization_ratio", lambda number, at: cpu_at(number, at) / 100),
        ("cml_worker_memory_utilization_ratio", lambda number, _: (30 + number % 50) / 100),
        ("cml_worker_active_labs", lambda number, _: number % 5),
        ("cml_worker_last_activity_timestamp_seconds", lambda number, _: end - 60 * number),
    ):
        yield f"# TYPE {name} gauge\n"
        for number in range(workers):
            yield series(name, number, "", [value_at(number, at) for at in moments])
    yield "# EOF\n"


def backfill(promtool: str, folder: Path, data: Path, lines: Iterator[str]) -> None:
    """Write the series into blocks of Prometheus's data folder."""
    text = folder / "scrapes.txt"
    with text.open("w") as file:
        file.writelines(lines)
    blocks = ["tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=744h", str(text), str(data)]
    subprocess.run([promtool, *blocks], check=True, stdout=subprocess.DEVNULL)
    text.unlink()


def record(promtool: str, prometheus: Prometheus, data: Path, start: int, end: int, step: int) -> None:
    """Evaluate the recording rules for the time of the scrapes into blocks, as if this Prometheus had run then.

    promtool reads only what Prometheus has loaded, so a rule that reads another one is recorded by a later call.
    """
    window = [f"--start={start}", f"--end={end}", f"--eval-interval={step}s", f"--url={prometheus.url}"]
    files = [str(SOURCE / "rules" / f"{name}.yml") for name in ("settings", "recording")]
    command = [promtool, "tsdb", "create-blocks-from", "rules", *window, f"--output-dir={data}", *files]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def open_dashboard(stack: Stack, dashboard: dict[str, Any], now: int) -> Opening:
    """Return the time until all panels have answered, with as many queries at once as a browser sends."""
    asked = [(panel, target) for panel in panels(dashboard) for target in panel["targets"]]
    began, used = time.perf_counter(), stack.cpu_by_program()
    with ThreadPoolExecutor(BROWSER) as browser:
        list(browser.map(lambda each: ask(stack.prometheus, dashboard, each[0], each[1], now), asked))
    took = time.perf_counter() - began
    return Opening(took, {name: now_used - used[name] for name, now_used in stack.cpu_by_program().items()})


def ask(prometheus: Prometheus, dashboard: dict[str, Any], panel: Any, target: Any, now: int) -> tuple[int, float, str]:  # noqa: ANN401
    """Return the characters of a query, the seconds that it took, and its error or its number of points."""
    view = View(max(DAY, seconds(dashboard["time"]["from"])), 30, {**ALL, "worker_id": worker_id(1)})
    query = view.expand(target["expr"], panel, target)
    parameters: dict[str, str] = {"query": query, "time": str(now)}
    if not target["instant"]:
        step = view.step(panel, target)
        end = align(now, step) if step >= HOUR else now
        parameters = {"query": query, "start": str(end - view.range // step * step), "end": str(end), "step": str(step)}
    path = "/api/v1/query" if target["instant"] else "/api/v1/query_range"
    began = time.perf_counter()
    answer = prometheus.http.post(path, data=parameters, timeout=QUERY_SECONDS).json()
    took = time.perf_counter() - began
    points = sum(len(each.get("values", "1")) for each in answer.get("data", {}).get("result", ()))
    return len(query), took, answer.get("error", "") or "; ".join(answer.get("warnings", [])) or f"{points} points"


def measure(stack: Stack, dashboard: dict[str, Any], now: int, repeat: int) -> list[Measured]:
    """Return every panel of a dashboard, queried one by one."""
    found = []
    for panel in panels(dashboard):
        used = stack.cpu()
        runs = [[ask(stack.prometheus, dashboard, panel, target, now) for target in panel["targets"]] for _ in range(repeat)]
        cpu = (stack.cpu() - used) / repeat
        took = statistics.median(sum(seconds for _, seconds, _ in run) for run in runs)
        outcome = ", ".join(each for _, _, each in runs[-1])
        found.append(Measured(dashboard["uid"], panel["title"], sum(size for size, _, _ in runs[0]), took, cpu, outcome))
    return found


def report(name: str, found: Sequence[Measured], opened: dict[str, list[Opening]], worst: int) -> None:
    """Print medians, and the slowest and the longest panels."""
    characters = statistics.median(each.characters for each in found)
    median = statistics.median(each.seconds for each in found)
    print(f"\n{name}: {len(found)} panels; median {characters:.0f} characters, {median:.3f} s")
    for uid, (cold, warm) in opened.items():
        print(f"  {uid:14} cold {cold}, again {warm}")
    for title, order in (("slowest", lambda each: each.seconds), ("longest", lambda each: each.characters)):
        print(f"  {title}:")
        for each in sorted(found, key=order, reverse=True)[:worst]:
            label = f"{each.dashboard} / {each.panel}"
            took = f"{each.seconds:7.3f} s ({each.cpu:6.2f} s CPU)"
            print(f"    {label:56} {took} {each.characters:6} characters {each.outcome[:60]}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build the stack, measure, print, write the JSON, and return what it holds."""
    program, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if program is None or promtool is None:
        raise SystemExit(f"prometheus and promtool must be on PATH; {INSTALL}")
    end = align(int(time.time()), PERIOD)
    with (
        database() as (mongod, uri, folder),
        MongoClient[Document](uri, tz_aware=True) as client,
    ):
        fill(client.bench, options.workers, options.days, end)
        print("history written", flush=True)
        exporter = exporter_process(uri, folder)
        exporter.start()
        address = exporter.url.removeprefix("http://")
        configuration = prometheus_module.configuration(SOURCE, address)
        data = folder / "prometheus" / "data"
        data.mkdir(parents=True)
        backfill(promtool, folder, data, scrapes(options.workers, address, end - DAY, end, options.scrape))
        print("scrapes written", flush=True)
        sources = {"after": DASHBOARDS} | ({"before": options.before} if options.before else {})
        result: dict[str, Any] = {"workers": options.workers, "days": options.days, "scrape": options.scrape}
        try:
            quiet: dict[str, Any] = {"scrape_configs": [], "rule_files": []}
            recorded: set[Path] = set()
            for _ in range(RULE_LEVELS):
                known = set(data.glob("01*"))
                prometheus = Prometheus(program, folder / "prometheus", {**configuration, **quiet})
                try:
                    record(promtool, prometheus, data, end - DAY, end, options.scrape)
                finally:
                    prometheus.stop()
                for block in recorded:  # the next level has the same series again, and copies would be merged by each query
                    if block.exists():  # on a slow machine Prometheus has already merged it into a larger block
                        shutil.rmtree(block)
                recorded = set(data.glob("01*")) - known
            print("rules recorded", flush=True)
            for label, dashboards in sources.items():
                exporter.stop()
                collected = {"cloudwatch_last_collected_at": to_datetime(int(time.time()))}
                client.bench.workers.update_many({}, {"$set": collected})  # a slow machine took longer than values are fresh
                exporter.start()  # its cache of hourly aggregates is empty then
                prometheus = Prometheus(program, folder / "prometheus", configuration)
                try:
                    wait_for_rules(prometheus)
                    now = int(time.time())
                    found: list[Measured] = []
                    opened: dict[str, list[Opening]] = {}
                    stack = Stack(prometheus, {"mongod": mongod.pid, "exporter": exporter.pid, "prometheus": prometheus.pid})
                    loaded = [json.loads(file.read_text()) for file in sorted(dashboards.glob("*.json"))]
                    for dashboard in sorted(loaded, key=lambda each: each["uid"] != "cml-trends"):
                        opened[dashboard["uid"]] = [open_dashboard(stack, dashboard, now) for _ in range(2)]
                        found += measure(stack, dashboard, now, options.repeat)
                    report(label, found, opened, options.worst)
                    result[label] = {"opened": opened, "panels": [asdict(each) for each in found]}
                finally:
                    prometheus.stop()
        finally:
            exporter.kill()
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def wait_for_rules(prometheus: Prometheus) -> None:
    """Return when the exporter was scraped and all rules have been evaluated."""
    deadline = time.monotonic() + 300
    while not prometheus.values("count(cml_worker:idle:bool) and on () count(cml:status:code) and on () count(up == 1)"):
        if time.monotonic() > deadline:
            raise SystemExit(f"Prometheus recorded nothing; {prometheus.log.read_text()[-500:]}")
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000, help="workers of the fleet (default: %(default)s)")
    parser.add_argument("--days", type=int, default=14, help="days of history (default: %(default)s)")
    parser.add_argument("--scrape", type=int, default=120, help="seconds between backfilled scrapes (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="times each panel is queried (default: %(default)s)")
    parser.add_argument("--worst", type=int, default=10, help="slowest and longest panels to print (default: %(default)s)")
    parser.add_argument("--before", type=Path, help="folder of older dashboards to measure as well")
    parser.add_argument("--json", type=Path, help="file for all figures")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
