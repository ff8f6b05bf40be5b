"""The demo's Prometheus: the package's configuration, with the demo's addresses in place of the stack's."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from exporter.core.assets import EXPORTER, folder
from exporter.core.errors import ConfigError

SOURCE = Path(str(folder() / "prometheus" / "prometheus.yml")).resolve().parent
"""Folder of the configuration: that of the checkout, or of the installed package."""
INSTALL = "apt-get install prometheus, or https://prometheus.io/download/"

QUERIES: Mapping[str, str] = {
    "the three busiest workers now": "topk(3, cml_worker_cpu_utilization_ratio)",
    "who runs without a lab": (
        "cml_worker_active_labs * on (worker_id) group_left (worker) cml_worker_info\n"
        '  == 0 and on (worker_id) cml_worker_status{status="running"} == 1'
    ),
    "each worker's daily average from the history, also before this Prometheus ran and of deleted workers": (
        'avg_over_time(cml_worker_cpu_utilization_ratio{store="history"}[1d])'
    ),
}


def find() -> Path | None:
    """Return the path of the program, None if it is not installed."""
    found = shutil.which("prometheus")
    return Path(found) if found else None


def command(program: Path, directory: Path, exporter: str, listen: str) -> list[str]:
    """Write the configuration into `directory` and return the command line that starts Prometheus with it.

    Args:
        program: path of Prometheus.
        directory: folder for the configuration and the data.
        exporter: host:port of the exporter.
        listen: host:port of Prometheus.

    Raises:
        ConfigError: the package's configuration is missing or cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "prometheus.yml"
    file.write_text(
        "# Written by `cml-worker-exporter demo` at every start from prometheus/prometheus.yml; changes are overwritten.\n"
        + yaml.safe_dump(configuration(SOURCE, exporter), sort_keys=False)
    )
    return [
        str(program),
        f"--config.file={file}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={listen}",
        "--log.level=warn",
    ]


def configuration(source: Path, exporter: str) -> dict[str, Any]:
    """Return the configuration in `source` for an exporter at another address, without Alertmanager and other targets.

    Raises:
        ConfigError: it is missing or cannot be read.
    """
    try:
        content: dict[str, Any] = yaml.safe_load((source / "prometheus.yml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{source / 'prometheus.yml'} cannot be read ({error}); it is a part of the package: install that again"
        ) from error
    # Only the exporter: the demo has no node_exporters, and targets of your own belong to the stack.
    content["scrape_configs"] = [job for job in content["scrape_configs"] if "static_configs" in job]
    content.pop("alerting", None)  # there is no Alertmanager; Prometheus's own page shows the alerts
    content["rule_files"] = [str(source / pattern) for pattern in content.get("rule_files", ())]
    replaced: dict[str, Any] = _replaced(content, exporter)
    return replaced


def _replaced(value: Any, exporter: str) -> Any:  # noqa: ANN401  # any part of a YAML document
    if isinstance(value, dict):
        return {key: _replaced(each, exporter) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, exporter) for each in value]
    return value.replace(EXPORTER, exporter) if isinstance(value, str) else value
