"""What the dashboards tell at a glance, over series of hours: the cost of idling, labs on average, and past time."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from exporter.core.catalog import CPU
from exporter.core.history_metrics import CPU_1H
from exporter.core.periods import HOUR
from grafana.promql import (
    fleet_labs,
    idle_hours_cost,
    max_by_worker,
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
        hourly("cpu_utilization_ratio_running:avg1h", "a"): "0.1x12",
        hourly("cpu_utilization_ratio_running:avg1h", "b"): "0.2x12",
        worker("cml_worker:cpu_utilization_ratio:running", "a"): "_x6 0.7x6",
        worker("cml_worker:status:code", "a"): "_x6 2x6",
        worker("cml_worker:status:code", "b"): "_x6 4x6",
    }

    def of(worker_id: str) -> str:
        return f'{{worker_id="{worker_id}", region="r"}}'

    expr = with_history(f"max by (worker_id, region) ({of_running(CPU, ALL)})", max_by_worker(of_running_by_hour(CPU_1H, ALL)))
    query(tmp_path, series, expr, "4h", [(of("a"), 0.1), (of("b"), 0.2)], interval="1h")
    query(tmp_path, series, expr, "9h", [(of("a"), 0.7)], interval="1h")


def test_hours_without_labs_count_in_the_average_of_labs(tmp_path: Path) -> None:
    """A worker with 4 labs runs for 5 of 10 hours: 2 on average."""
    series = {hourly("active_labs_running:avg1h", "a"): "_ 4x5 0x4 _x3"}
    query(tmp_path, series, fleet_labs(ALL, "10h"), "11h", [("{}", 5 * 4 / 10)], interval="1h")
