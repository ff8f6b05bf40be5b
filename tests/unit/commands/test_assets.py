"""`assets` lists and writes the files for other programs, and never replaces another content unasked."""

import json
import re
from io import StringIO
from pathlib import Path

import pytest
import yaml

from exporter.commands import assets as command
from exporter.core import assets
from exporter.core.errors import ConfigError

ROOT = Path(__file__).parents[3]
OWN = {assets.EXPORTER: "10.0.0.7:1234", assets.ALERTMANAGER: "10.0.0.8:9093"}


def write(folder: Path, *, force: bool = False, addresses: dict[str, str] = OWN) -> str:
    out = StringIO()
    assert command.run(folder, addresses, out, force=force, as_json=False) == 0
    return out.getvalue()


def test_the_files_are_those_of_the_repository() -> None:
    sources = {
        "grafana/dashboards": "grafana/dashboards/*.json",
        "prometheus/rules": "prometheus/rules/*.yml",
        "systemd": "deploy/systemd/*",
    }
    expected = {f"{folder}/{file.name}": file for folder, glob in sources.items() for file in ROOT.glob(glob)}
    names = ("prometheus.yml", "alertmanager.yml", "runbook.md", "local/README.md")
    expected |= {f"prometheus/{name}": ROOT / "prometheus" / name for name in names}
    assert {path: file.read_bytes() for path, file in assets.files().items()} == {
        path: file.read_bytes() for path, file in expected.items()
    }


def test_the_list_names_every_file_below_its_folders_purpose() -> None:
    out = StringIO()
    command.run(None, {}, out, force=False, as_json=False)
    assert {line.strip() for line in out.getvalue().splitlines() if line.startswith("  ")} == set(assets.files())


def test_json_has_the_paths(tmp_path: Path) -> None:
    out = StringIO()
    command.run(None, {}, out, force=False, as_json=True)
    assert json.loads(out.getvalue()) == list(assets.files())
    out = StringIO()
    command.run(tmp_path, {}, out, force=False, as_json=True)
    assert all(Path(path).is_file() for path in json.loads(out.getvalue()))


def test_there_is_a_folder_for_ones_own_rules_and_targets(tmp_path: Path) -> None:
    """Prometheus logs an error for targets in a folder that is missing."""
    write(tmp_path)
    patterns = re.findall(r"local/[a-z]+(?=/\*)", (tmp_path / "prometheus" / "prometheus.yml").read_text())
    assert sorted(patterns) == ["local/rules", "local/targets"]
    assert all((tmp_path / "prometheus" / pattern).is_dir() for pattern in patterns)


def test_the_configuration_gets_the_addresses_and_all_else_is_as_shipped(tmp_path: Path) -> None:
    assert write(tmp_path / "new" / "folder") == f"{len(assets.files())} files are in {tmp_path / 'new' / 'folder'}\n"
    for path, file in assets.files().items():
        same = (tmp_path / "new" / "folder" / path).read_bytes() == file.read_bytes()
        assert same == (path != "prometheus/prometheus.yml"), path
    text = (tmp_path / "new" / "folder" / "prometheus" / "prometheus.yml").read_text()
    assert not {name for name in OWN if name in text}
    content = yaml.safe_load(text)
    assert content["scrape_configs"][0]["static_configs"] == [{"targets": ["10.0.0.7:1234"]}]
    assert content["remote_read"][0]["url"] == "http://10.0.0.7:1234/api/v1/read"
    assert content["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["10.0.0.8:9093"]}]}]


def test_a_file_with_another_content_stops_all_unless_forced(tmp_path: Path) -> None:
    write(tmp_path)
    mine, gone = tmp_path / "prometheus" / "alertmanager.yml", tmp_path / "prometheus" / "runbook.md"
    mine.write_text("mine")
    gone.unlink()
    with pytest.raises(ConfigError, match=r"has other versions of prometheus/alertmanager\.yml; nothing was written"):
        write(tmp_path)
    assert mine.read_text() == "mine"
    assert not gone.exists()
    write(tmp_path, force=True)
    assert mine.read_bytes() == assets.files()["prometheus/alertmanager.yml"].read_bytes()
    assert gone.exists()


def test_what_is_written_already_is_no_conflict(tmp_path: Path) -> None:
    write(tmp_path)
    before = (tmp_path / "prometheus" / "prometheus.yml").stat().st_mtime_ns
    write(tmp_path)
    assert (tmp_path / "prometheus" / "prometheus.yml").stat().st_mtime_ns == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write(tmp_path / "file")
