"""Check every service of a running stack: python3 deploy/check_stack.py (needs only Python and .env).

Prints one line per check and exits with 1 if one failed. The workflow .github/workflows/stack.yml runs it, too.
"""

import argparse
import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

ROOT = Path(__file__).parents[1]
DASHBOARDS = {"cml-fleet", "cml-worker", "cml-trends", "cml-exporter", "cml-on-call"}
HOME = "cml-fleet"
DATA_SOURCE = "cml-prometheus"

Check = tuple[str, Callable[[], bool]]


def main() -> int:
    """Repeat the checks until all pass or the time limit ends, and return the exit status."""
    parser = argparse.ArgumentParser(description="Check every service of a running stack.")
    parser.add_argument(
        "--env-file", type=Path, default=ROOT / ".env", help="file with ports and passwords (default: .env of the checkout)"
    )
    parser.add_argument(
        "--patience", type=float, default=0, metavar="SECONDS", help="time limit for repeated checks (default: check once)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="minimum number of workers expected (default: 0)")
    options = parser.parse_args()
    environment = read_env(options.env_file) | dict(os.environ)
    deadline = time.monotonic() + options.patience
    while True:
        failed = [what for what, holds in checks(environment, options.workers) if not _passes(holds)]
        if not failed or time.monotonic() > deadline:
            break
        time.sleep(2)
    for what, _ in checks(environment, options.workers):
        print(f"{'FAIL' if what in failed else 'ok  '}  {what}")
    return 1 if failed else 0


def read_env(file: Path) -> dict[str, str]:
    """Return the variables of a .env file; none if there is no such file."""
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def rule_names() -> set[str]:
    """Return the names of all alerts and recorded series in prometheus/rules."""
    files = (ROOT / "prometheus" / "rules").glob("*.yml")
    return {
        name for file in files for name in re.findall(r'^ *- {?(?:alert|record): "?([\w:]+)', file.read_text(), re.MULTILINE)
    }


def checks(environment: Mapping[str, str], workers: int) -> Iterator[Check]:
    """Yield (description, function that checks it); nothing is requested before the function is called."""

    def at(variable: str, port: int) -> str:
        return f"http://127.0.0.1:{environment.get(variable) or port}"

    exporter, prometheus = at("EXPORTER_PORT", 9877), at("PROMETHEUS_PORT", 9090)
    alertmanager, grafana = at("ALERTMANAGER_PORT", 9093), at("GRAFANA_PORT", 3000)
    password = environment.get("GRAFANA_ADMIN_PASSWORD", "")

    def grafana_json(path: str) -> Any:  # noqa: ANN401  # any JSON
        return get(grafana + path, password)

    def count(query: str) -> float:
        found = get(f"{prometheus}/api/v1/query?query={query}")["data"]["result"]
        return float(found[0]["value"][1]) if found else 0

    yield "exporter: ready, all sources can be read", lambda: _sources(get(exporter + "/-/ready"))
    yield f"exporter: at least {workers} workers", lambda: len(get(exporter + "/api/workers?limit=1000")["data"]) >= workers
    yield "prometheus: the exporter is scraped", lambda: count("sum(up%7Bjob%3D%22cml-worker-exporter%22%7D)") >= 1
    yield "prometheus: every rule evaluates", lambda: not list(_failing_rules(get(prometheus + "/api/v1/rules")))
    yield "prometheus: has loaded prometheus/rules", lambda: _names(get(prometheus + "/api/v1/rules")) == rule_names()
    yield "prometheus: alertmanager is known", lambda: bool(_notified(get(prometheus + "/api/v1/alertmanagers")))
    yield "alertmanager: configured", lambda: bool(get(alertmanager + "/api/v2/status")["config"]["original"])
    yield "grafana: refuses requests without a password", lambda: _refused(grafana + "/api/search")
    yield (
        "grafana: the data source answers",
        lambda: grafana_json(f"/api/datasources/uid/{DATA_SOURCE}/health")["status"] == "OK",
    )
    yield "grafana: five dashboards", lambda: {each["uid"] for each in grafana_json("/api/search?type=dash-db")} >= DASHBOARDS
    for uid in sorted(DASHBOARDS):
        yield f"grafana: {uid} is provisioned", partial(_provisioned, grafana_json, uid)
    yield (
        f"grafana: the home is {HOME}",
        lambda: _title(grafana_json("/api/dashboards/home")) == _title(grafana_json(f"/api/dashboards/uid/{HOME}")),
    )


def get(url: str, password: str = "") -> Any:  # noqa: ANN401  # any JSON
    """GET a JSON document, as Grafana's admin if there is a password. Raises URLError, its HTTPError, or ValueError."""
    request = Request(url)
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    with build_opener(ProxyHandler({})).open(request, timeout=10) as response:
        return json.load(response)


def _sources(answer: Mapping[str, Any]) -> bool:
    return bool(answer["ready"]) and all(source["ok"] for source in answer["sources"].values())


def _notified(answer: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = answer["data"]["activeAlertmanagers"]
    return found


def _provisioned(grafana_json: Callable[[str], Any], uid: str) -> bool:
    return bool(grafana_json(f"/api/dashboards/uid/{uid}")["meta"]["provisioned"])


def _title(answer: Mapping[str, Any]) -> str:
    return str(answer["dashboard"]["title"])


def _failing_rules(answer: Mapping[str, Any]) -> Iterator[str]:
    groups = answer["data"]["groups"]
    if not groups:
        yield "there are no rules"
    for group in groups:
        yield from (rule["name"] for rule in group["rules"] if rule["health"] == "err")


def _names(answer: Mapping[str, Any]) -> set[str]:
    return {rule["name"] for group in answer["data"]["groups"] for rule in group["rules"]}


def _refused(url: str) -> bool:
    try:
        get(url)
    except URLError as error:
        return getattr(error, "code", None) == 401
    return False


def _passes(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except (OSError, ValueError, LookupError, TypeError) as error:
        print(f"      {type(error).__name__}: {error}", file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(main())
