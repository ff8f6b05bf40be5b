"""The demo's Prometheus runs with the package's own configuration, at the demo's addresses."""

from pathlib import Path

import pytest
import yaml

from exporter.core.errors import ConfigError
from exporter.demo import prometheus


def test_the_configuration_is_the_repositorys_with_the_demos_exporter() -> None:
    original = yaml.safe_load((prometheus.SOURCE / "prometheus.yml").read_text())
    adapted = prometheus.configuration(prometheus.SOURCE, "127.0.0.1:1234")
    assert "exporter:9877" not in str(adapted)
    assert adapted["remote_read"][0].pop("url") == "http://127.0.0.1:1234/api/v1/read"
    original["remote_read"][0].pop("url")
    assert adapted["remote_read"] == original["remote_read"]
    assert adapted["global"] == original["global"]
    assert adapted["rule_files"] == [str(prometheus.SOURCE / pattern) for pattern in original["rule_files"]]


def test_nothing_but_the_exporter_is_scraped() -> None:
    adapted = prometheus.configuration(prometheus.SOURCE, "127.0.0.1:1234")
    assert [job["job_name"] for job in adapted["scrape_configs"]] == ["cml-worker-exporter"]
    assert "alerting" not in adapted


def test_a_package_without_its_configuration_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a part of the package"):
        prometheus.configuration(tmp_path, "127.0.0.1:1234")
