"""Service discovery: running workers with an address, and no target that Prometheus would reject."""

import pytest

from exporter.core.errors import RequestError
from exporter.core.model import Worker, WorkerGauges
from exporter.web.discovery import targets
from exporter.web.parameters import discovery_port


def gauges(worker_id: str, status: str = "running", address: str | None = "10.0.0.1", show: bool = True) -> WorkerGauges:
    return WorkerGauges(Worker(worker_id, "eu-west-1", "i-1", status, name="lab", address=address), 0, show)


def test_running_workers_with_an_address_are_targets_with_their_worker_id() -> None:
    fleet = [
        gauges("w1"),
        gauges("stopped", status="stopped"),
        gauges("unaddressed", address=None),
        gauges("stale", show=False),
        gauges("six", address="fd00::1"),
        gauges("named", address="ip-10-0-0-9.ec2.internal"),
    ]
    found = {group.labels["worker_id"]: list(group.targets) for group in targets(fleet, 9100)}
    assert found == {"w1": ["10.0.0.1:9100"], "six": ["[fd00::1]:9100"], "named": ["ip-10-0-0-9.ec2.internal:9100"]}


def test_a_target_has_the_known_values_of_the_worker_as_labels() -> None:
    (group,) = targets([gauges("w1")], 9101)
    assert group.model_dump(mode="json") == {
        "targets": ["10.0.0.1:9101"],
        "labels": {
            "worker_id": "w1",
            "region": "eu-west-1",
            "__meta_cml_name": "lab",
            "__meta_cml_instance_id": "i-1",
            "__meta_cml_instance_type": "",
            "__meta_cml_version": "",
        },
    }


@pytest.mark.parametrize("address", ["10.0.0.1:22", "10.0.0", "not an address", "http://10.0.0.1", "10.0.0.1/24", "-x"])
def test_a_worker_whose_address_is_invalid_is_not_a_target(address: str) -> None:
    assert targets([gauges("w1", address=address)], 9100) == ()


def test_the_port_defaults_to_that_of_node_exporter_and_must_be_valid() -> None:
    assert discovery_port([]) == 9100
    assert discovery_port([("port", "9182")]) == 9182
    for wrong in ("0", "65536", "http", "-1"):
        with pytest.raises(RequestError, match="port must be a whole number from 1 to 65535"):
            discovery_port([("port", wrong)])
