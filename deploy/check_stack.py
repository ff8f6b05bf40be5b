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
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

ROOT = Path(__file__).parents[1]
DASHBOARDS = {"cml-fleet", "cml-worker", "cml-trends", "cml-exporter", "cml-on-call"}
HOME = "cml-fleet"
DATA_SOURCE = "cml-prometheus"

CONTACT_POINTS = ROOT / "grafana" / "provisioning" / "contact-points"
MOUNTED = ("prometheus", "grafana/dashboards", "grafana/provisioning", "deploy", "secrets/alertmanager")
"""What the services read from the checkout, as users of their own; `deploy/new-env` checks the same."""


class Check(NamedTuple):
    """One line of the result."""

    what: str
    holds: Callable[[], bool]
    """Raises OSError, ValueError, LookupError or TypeError if it cannot be told, which counts as not."""
    cure: str = ""
    """What to do if it does not hold."""


def main() -> int:
    """Repeat the checks until all pass or the time limit ends, and return the exit status."""
    parser = argparse.ArgumentParser(description="Check every service of a running stack.")
    parser.add_argument(
        "--env-file", type=Path, default=ROOT / ".env", help="file with ports and passwords (default: .env of the checkout)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=300,
        metavar="SECONDS",
        help="time limit for repeated checks, 0: check once (default: 300)",
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="minimum number of workers expected (default: 0)")
    options = parser.parse_args()
    environment = read_env(options.env_file) | dict(os.environ)
    deadline = time.monotonic() + options.patience
    while True:
        results = [(check, _reason(check)) for check in checks(environment, options.workers)]
        failed = [check.what for check, reason in results if reason is not None]
        if not failed or time.monotonic() > deadline:
            break
        if sys.stderr.isatty():
            left = deadline - time.monotonic()
            print(f"\r\x1b[Kwaiting {left:.0f} s for: {failed[0][:60]}", end="", file=sys.stderr, flush=True)
        time.sleep(2)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    for check, reason in results:
        print(f"{'ok  ' if reason is None else 'FAIL'}  {check.what}")
        for line in (reason, check.cure) if reason is not None else ():
            if line:
                print(f"      {line}")
    return 1 if failed else 0


def read_env(file: Path) -> dict[str, str]:
    """Return the variables of a .env file; none if there is no such file."""
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def rule_names() -> set[str]:
    """Return the names of all alerts and recorded series in prometheus/rules and prometheus/local/rules."""
    files = [*(ROOT / "prometheus" / "rules").glob("*.yml"), *(ROOT / "prometheus" / "local" / "rules").glob("*.yml")]
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

    folder = environment.get("GRAFANA_CONTACT_POINT") or "none"
    known = ", ".join(sorted(each.name for each in CONTACT_POINTS.iterdir()))
    yield Check(
        "files: the services, which run as other users, can read them",
        lambda: not unreadable(),
        f"chmod -R go+rX {' '.join(MOUNTED)} && docker compose up --detach --wait",
    )
    yield Check(
        "files: GRAFANA_CONTACT_POINT exists",
        lambda: folder in known.split(", "),
        f"set it in .env to one of {known}; it is {folder!r}. Then: docker compose up --detach --wait grafana",
    )
    yield Check(
        "exporter: ready, all sources can be read",
        lambda: _sources(get(exporter + "/-/ready")),
        "docker compose logs exporter; docker compose exec exporter cml-worker-exporter check tells what to do",
    )
    yield Check(
        f"exporter: at least {workers} workers", lambda: len(get(exporter + "/api/workers?limit=1000")["data"]) >= workers
    )
    yield Check("prometheus: the exporter is scraped", lambda: count("sum(up%7Bjob%3D%22cml-worker-exporter%22%7D)") >= 1)
    yield Check("prometheus: every rule evaluates", lambda: not list(_failing_rules(get(prometheus + "/api/v1/rules"))))
    yield Check(
        "prometheus: has loaded prometheus/rules",
        lambda: _names(get(prometheus + "/api/v1/rules")) == rule_names(),
        "docker compose kill --signal HUP prometheus",
    )
    yield Check("prometheus: alertmanager is known", lambda: bool(_notified(get(prometheus + "/api/v1/alertmanagers"))))
    yield Check("alertmanager: configured", lambda: bool(get(alertmanager + "/api/v2/status")["config"]["original"]))
    yield Check("grafana: refuses requests without a password", lambda: _refused(grafana + "/api/search"))
    yield Check(
        "grafana: the data source answers",
        lambda: grafana_json(f"/api/datasources/uid/{DATA_SOURCE}/health")["status"] == "OK",
    )
    yield Check(
        "grafana: five dashboards", lambda: {each["uid"] for each in grafana_json("/api/search?type=dash-db")} >= DASHBOARDS
    )
    for uid in sorted(DASHBOARDS):
        yield Check(f"grafana: {uid} is provisioned", partial(_provisioned, grafana_json, uid))
    yield Check(
        f"grafana: the home is {HOME}",
        lambda: _title(grafana_json("/api/dashboards/home")) == _title(grafana_json(f"/api/dashboards/uid/{HOME}")),
    )


def unreadable() -> list[Path]:
    """Return the mounted files that other users cannot read, as after a clone with umask 077."""
    found = [path for name in MOUNTED for path in (ROOT / name, *(ROOT / name).rglob("*")) if path.exists()]
    return [path for path in found if (0o5 if path.is_dir() else 0o4) & ~path.stat().st_mode]


def get(url: str, password: str = "") -> Any:  # noqa: ANN401  # any JSON
    """GET a JSON document, as Grafana's admin if there is a password; also that of a 503, which /-/ready has.

    Raises URLError, its HTTPError, or ValueError.
    """
    request = Request(url)
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=10) as response:
            return json.load(response)
    except HTTPError as error:
        if error.code != 503 or "json" not in error.headers.get("Content-Type", ""):
            raise
        return json.load(error)


def _sources(answer: Mapping[str, Any]) -> bool:
    failing = [f"{name}: {source.get('error')}" for name, source in answer["sources"].items() if not source["ok"]]
    if failing:
        raise ValueError("; ".join(failing))
    return bool(answer["ready"])


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


def _reason(check: Check) -> str | None:
    """Return None if the check holds, else why not as far as that is known."""
    try:
        return None if check.holds() else ""
    except ValueError as error:
        return str(error)
    except (OSError, LookupError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
