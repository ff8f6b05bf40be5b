"""Targets of `history.forward`: what they are called, and that no password is shown."""

import pytest

from exporter.core.history_settings import ForwardTarget


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
    assert (target.label, target.address) == (label, address)
    assert "hunter2" not in target.label
    assert "hunter2" not in repr(target)
    assert "hunter2" not in target.model_dump_json()
