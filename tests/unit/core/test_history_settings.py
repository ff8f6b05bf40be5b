"""Targets of `history.forward`: what they are called, and that no password is shown."""

from pathlib import Path

import pytest

from exporter.core.errors import ConfigError
from exporter.core.history_settings import ForwardTarget
from exporter.core.settings_loader import load


@pytest.mark.parametrize(
    ("setting", "label", "address"),
    [
        (
            {"type": "victoriametrics", "url": "http://me:hunter2@host/vm/"},
            "victoriametrics://host:8428/vm",
            "victoriametrics+http://me:hunter2@host/vm/",
        ),
        (
            {"type": "influxdb", "url": "https://me:hunter2@Host:443/cml"},
            "influxdb://host:443/cml",
            "influxdb+https://me:hunter2@Host:443/cml",
        ),
        (
            {"type": "postgresql", "url": "postgresql://me:hunter2@[::1]/cml?password=hunter2"},
            "postgresql://[::1]:5432/cml",
            "postgresql://me:hunter2@[::1]/cml?password=hunter2",
        ),
        ({"type": "postgresql", "url": "postgresql:///cml"}, "postgresql://localhost:5432/cml", "postgresql:///cml"),
        ({"type": "postgresql", "url": "postgresql://h/cml", "name": "archive"}, "archive", "postgresql://h/cml"),
    ],
)
def test_a_target_is_called_by_its_name_or_by_its_address_without_secrets(
    setting: dict[str, str], label: str, address: str
) -> None:
    target = ForwardTarget.model_validate(setting)
    assert (target.label, target.address()) == (label, address)
    assert "hunter2" not in target.label
    assert "hunter2" not in repr(target)
    assert "hunter2" not in target.model_dump_json()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "history.forward a: url_file: cannot read {file}: No such file or directory"),
        ("\n", "history.forward a: url_file {file}: the URL is missing; write it as http://user:password@host:8086/database"),
        (
            "http://me:hunter2@host",
            "history.forward a: url_file {file}: the URL must end with the database; "
            "write it as http://user:password@host:8086/database",
        ),
    ],
)
def test_a_file_that_holds_no_url_is_named_without_what_it_holds(tmp_path: Path, content: str | None, problem: str) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_text(content)
    target = ForwardTarget.model_validate({"type": "influxdb", "url_file": str(file), "name": "a"})
    assert target.label == "a"
    with pytest.raises(ConfigError) as caught:
        target.address()
    assert str(caught.value) == problem.format(file=file)


def test_the_file_of_a_url_is_relative_to_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("http://me:hunter2@host/cml\n")
    config = tmp_path / "exporter.yml"
    config.write_text("mongodb: {uri: mongodb://localhost}\nhistory: {forward: [{type: influxdb, url_file: url, name: a}]}\n")
    (target,) = load(config, {}).history.forward
    assert target.address() == "influxdb+http://me:hunter2@host/cml"
