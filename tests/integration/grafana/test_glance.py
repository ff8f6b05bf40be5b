"""What the dashboards tell at a glance, over series of hours: changes, what fills up, the cost of idling, labs on average."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from exporter.core.catalog import CPU
from exporter.core.history_metrics import CPU_1H
from exporter.core.periods import HOUR
from grafana.promql import (
    changed_in_an_hour,
    filling,
    fleet_labs,
    idle_cost,
    idle_hours_cost,
    of_running,
    of_running_by_hour,
    with_history,
)
from tests.conftest import program
from tests.fixtures.prometheus import INSTALL
from tests.helpers.deadlines import scaled
from tests.helpers.grafana_variables import View

ALL = 'region=~".*"'
VIEW = View(24 * HOUR, 60, {"top": "5", "region": None})


def worker(name: str, worker_id: str, **more: str) -> str:
    labels = {"worker_id": worker_id, "region": "r", **more}
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def query(
    folder: Path,
    series: Mapping[str, str],
    expr: str,
    at: str,
    expected: Sequence[tuple[str, float]],
    *,
    interval: str = "1m",
    rules: str = "",
) -> None:
    """Let promtool evaluate an expression of a panel over these series, and compare."""
    test = {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": VIEW.expand(expr),
                "eval_time": at,
                "exp_samples": [{"labels": labels, "value": value} for labels, value in expected],
            }
        ],
    }
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "rule_files": [rules] if rules else [], "tests": [test]}))
    promtool = program("promtool", INSTALL)
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=scaled(60), check=False)
    assert done.returncode == 0, done.stdout + done.stderr


STATUS = "cml_worker:status:current"
INSTANCE = "cml_worker:instance:current"
CODE = "cml_worker:status:code"


def changes() -> dict[str, str]:
    """Three hours of seven workers, by the minute."""
    return {
        worker(STATUS, "steady", status="running"): "1x200",
        worker(INSTANCE, "steady", instance_id="i-1"): "1x200",
        worker(STATUS, "stopped", status="running"): "1x150 stale",
        worker(STATUS, "stopped", status="stopped"): "_x151 1x49",
        worker(INSTANCE, "stopped", instance_id="i-2"): "1x200",
        # Stopped more than an hour ago.
        worker(STATUS, "long", status="running"): "1x100 stale",
        worker(STATUS, "long", status="stopped"): "_x101 1x99",
        # It ran again after ten minutes: the same status as an hour ago.
        worker(STATUS, "back", status="running"): "1x130 stale _x9 1x60",
        worker(STATUS, "back", status="stopped"): "_x131 1x9 stale",
        worker(STATUS, "moved", status="running"): "1x200",
        worker(INSTANCE, "moved", instance_id="i-3"): "1x160 stale",
        worker(INSTANCE, "moved", instance_id="i-4"): "_x161 1x39",
        worker(STATUS, "new", status="running"): "_x170 1x30",
        worker(STATUS, "gone", status="running"): "1x165 stale",
        worker(CODE, "steady"): "2x200",
        worker(CODE, "stopped"): "2x150 4x49",
        worker(CODE, "long"): "2x100 4x99",
        worker(CODE, "back"): "2x130 4x9 2x60",
        worker(CODE, "moved"): "2x200",
        worker(CODE, "new"): "_x170 2x30",
        worker(CODE, "gone"): "2x165 stale",
        "cml_fleet:workers:count": "6x200",
    }


def change(worker_id: str, what: str) -> str:
    return f'{{worker_id="{worker_id}", region="r", change="{what}"}}'


def test_a_change_of_the_last_hour_is_listed_with_its_time(tmp_path: Path) -> None:
    expected = [
        (change("stopped", "now stopped"), 150 * 60),
        (change("back", "now running"), 140 * 60),
        (change("moved", "other instance"), 160 * 60),
        (change("new", "new"), 170 * 60),
        (change("gone", "gone"), 165 * 60),
    ]
    query(tmp_path, changes(), changed_in_an_hour(ALL), "190m", expected)


def test_without_the_exporter_no_worker_is_new_or_gone(tmp_path: Path) -> None:
    """An hour ago it was not there: all were new. Now it is not: all were gone."""
    started = {
        worker(STATUS, "first", status="running"): "_x30 1x60",
        worker(CODE, "first"): "_x30 2x60",
        "cml_fleet:workers:count": "_x30 1x60",
    }
    query(tmp_path, started, changed_in_an_hour(ALL), "60m", [])
    stopped = {
        worker(STATUS, "last", status="running"): "1x170 stale",
        worker(CODE, "last"): "2x170 stale",
        "cml_fleet:workers:count": "1x170 stale",
    }
    query(tmp_path, stopped, changed_in_an_hour(ALL), "180m", [])


DISK, MEMORY = "cml_worker:disk_utilization_ratio:max", "cml_worker:memory_utilization_ratio:max"


def test_what_fills_up_is_predicted_along_a_line(tmp_path: Path) -> None:
    """A tenth of a percent a minute are 144 points a day, a hundredth 14.4."""
    runs = "cml_worker:status:current"
    running = {worker(runs, each, status="running"): "1x400" for each in ("fast", "slow", "flat", "young")}
    series = {
        **running,
        worker(runs, "off", status="stopped"): "1x400",
        worker(DISK, "fast"): "0.1+0.001x400",
        worker(DISK, "slow"): "0.2+0.0001x400",
        worker(MEMORY, "slow"): "0.5-0.0001x400",
        worker(DISK, "flat"): "0.95x400",
        worker(DISK, "young"): "_x380 0.5+0.001x20",
        worker(DISK, "off"): "0.1+0.001x400",
    }

    def of(worker_id: str) -> str:
        return f'{{worker_id="{worker_id}", region="r", what="disk"}}'

    for expr, fast, slow in zip(filling(ALL), (1, 0.5, 30000), (0.384, 0.24, 456000), strict=True):
        rounded = f"round({expr}, 0.001)"
        query(tmp_path, series, rounded, "400m", [(of("fast"), fast), (of("slow"), slow)])


def test_idling_costs_what_its_hours_cost(tmp_path: Path) -> None:
    idle, price = "cml_worker:idle:bool", "cml_worker_hourly_price_dollars"
    workers = {worker(idle, "a"): "1x10", worker(idle, "b"): "0x10", worker(idle, "free"): "1x10"}
    priced = {worker(price, "a", instance="x"): "4.5x10", worker(price, "b", instance="x"): "2x10"}
    query(tmp_path, workers | priced, idle_cost(ALL), "5m", [("{}", 4.5)])
    query(tmp_path, workers | priced, idle_cost(ALL, 24), "5m", [("{}", 108)])
    query(tmp_path, priced, idle_cost(ALL), "5m", [("{}", 0)])
    query(tmp_path, workers, idle_cost(ALL), "5m", [])  # the panel says that no price is set


def hourly(metric: str, worker_id: str) -> str:
    return worker(f"cml_worker:{metric}", worker_id, store="history")


def test_idle_time_costs_its_price(tmp_path: Path) -> None:
    """Two of three hours idle, at 3 dollars; another one without a price."""
    series = {
        worker("cml_worker:idle:bool", "a"): "1x119 0x59",
        worker("cml_worker:idle:bool", "free"): "1x179",
        worker("cml_worker_hourly_price_dollars", "a"): "3x179",
    }
    query(tmp_path, series, idle_hours_cost(ALL, "4h"), "179m", [("{}", 6)])


def test_the_history_stands_in_only_while_this_prometheus_knows_no_worker(tmp_path: Path) -> None:
    """It began after 5 hours; since then one worker runs, and the other, which ran an hour before, has no value."""
    series = {
        hourly("running:avg1h", "a"): "1x12",
        hourly("running:avg1h", "b"): "1x12",
        hourly("cpu_utilization_ratio:avg1h", "a"): "0.1x12",
        hourly("cpu_utilization_ratio:avg1h", "b"): "0.2x12",
        worker("cml_worker:cpu_utilization_ratio:running", "a"): "_x6 0.7x6",
        worker("cml_worker:status:code", "a"): "_x6 2x6",
        worker("cml_worker:status:code", "b"): "_x6 4x6",
    }

    def of(worker_id: str) -> str:
        return f'{{worker_id="{worker_id}", region="r"}}'

    expr = with_history(f"max by (worker_id, region) ({of_running(CPU, ALL)})", of_running_by_hour(CPU_1H, ALL))
    query(tmp_path, series, expr, "4h", [(of("a"), 0.1), (of("b"), 0.2)], interval="1h")
    query(tmp_path, series, expr, "9h", [(of("a"), 0.7)], interval="1h")


def test_hours_without_labs_count_in_the_average_of_labs(tmp_path: Path) -> None:
    """A worker with 4 labs runs for 5 of 10 hours: 2 on average."""
    series = {hourly("active_labs_running:avg1h", "a"): "_ 4x5 0x4 _x3"}
    query(tmp_path, series, fleet_labs(ALL, "10h"), "11h", [("{}", 5 * 4 / 10)], interval="1h")
