"""The demo's Prometheus runs with the repository's own configuration, at the demo's addresses."""

from pathlib import Path

import pytest
import yaml

from exporter.core.errors import ConfigError
from exporter.demo import prometheus


def test_the_configuration_is_the_repositorys_with_the_demos_exporter() -> None:
    theirs = yaml.safe_load((prometheus.SOURCE / "prometheus.yml").read_text())
    ours = prometheus.configuration(prometheus.SOURCE, "127.0.0.1:1234")
    assert "exporter:9877" not in str(ours)
    assert ours["remote_read"][0].pop("url") == "http://127.0.0.1:1234/api/v1/read"
    theirs["remote_read"][0].pop("url")
    assert ours["remote_read"] == theirs["remote_read"]
    assert ours["global"] == theirs["global"]
    assert ours["rule_files"] == [str(prometheus.SOURCE / "rules/*.yml")]


def test_nothing_is_sent_to_addresses_that_only_the_simulation_knows() -> None:
    ours = prometheus.configuration(prometheus.SOURCE, "127.0.0.1:1234")
    assert [job["job_name"] for job in ours["scrape_configs"]] == ["cml-worker-exporter"]
    assert "alerting" not in ours


def test_an_installed_package_without_the_checkout_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a checkout"):
        prometheus.configuration(tmp_path, "127.0.0.1:1234")
