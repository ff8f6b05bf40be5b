"""Which endpoint each call goes to: that of the partition, the environment, or the settings; CloudWatch and STS apart."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from exporter.commands.check.command import examine
from exporter.core.errors import SourceError
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.storage.mongo import Database
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.in_process_exporter import Clock, InProcessExporter, series

ROLE = "arn:aws:iam::123456789012:role/reader"
IRELAND, VIRGINIA = "eu-west-1", "us-east-1"


def settings_of(**sections: Any) -> Settings:  # noqa: ANN401  # values of sections
    return Settings.model_validate({"mongodb": {"uri": "mongodb://127.0.0.1:1/unused"}, **sections})


def endpoints(region: str, **sections: Any) -> tuple[str, str]:  # noqa: ANN401  # values of sections
    """The endpoints of the clients that a region's calls are made with; sends nothing."""
    cloudwatch = CloudWatch(settings_of(**sections), Telemetry(CollectorRegistry()))
    (access,) = cloudwatch.accesses(region)
    found = []
    for service in ("cloudwatch", "sts"):
        state = cloudwatch._api._state(region, access)
        found.append(cloudwatch._api._clients.client(state, service).meta.endpoint_url)
    return found[0], found[1]


@pytest.mark.parametrize(
    ("region", "domain"),
    [
        ("eu-west-1", "amazonaws.com"),
        ("mx-central-1", "amazonaws.com"),
        ("us-gov-west-1", "amazonaws.com"),
        ("cn-north-1", "amazonaws.com.cn"),
        ("us-iso-east-1", "c2s.ic.gov"),
        ("eusc-de-east-1", "amazonaws.eu"),
    ],
)
def test_each_partition_has_its_own_endpoints(aws_credentials: None, region: str, domain: str) -> None:
    assert endpoints(region) == (f"https://monitoring.{region}.{domain}", f"https://sts.{region}.{domain}")


def test_an_endpoint_of_the_settings_is_for_its_service_and_region_alone(
    aws_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vpce = "https://vpce-1.monitoring.eu-west-1.vpce.amazonaws.com"
    assert endpoints(IRELAND, cloudwatch={"endpoint_url": vpce}) == (vpce, "https://sts.eu-west-1.amazonaws.com")
    mapping = {
        "cloudwatch": {"endpoint_url": {" EU-West-1": vpce}},
        "aws": {"sts_endpoint_url": {IRELAND: "https://sts.example"}},
    }
    assert endpoints(IRELAND, **mapping) == (vpce, "https://sts.example")
    assert endpoints(VIRGINIA, **mapping) == (
        "https://monitoring.us-east-1.amazonaws.com",
        "https://sts.us-east-1.amazonaws.com",
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "https://sts.environment")
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH", "https://monitoring.environment")
    assert endpoints(VIRGINIA, **mapping) == ("https://monitoring.environment", "https://sts.environment")
    assert endpoints(IRELAND, **mapping) == (vpce, "https://sts.example")


class Monitoring(FakeCloudWatch):
    """An interface endpoint of CloudWatch, which knows no STS, as AWS has them."""

    def _reply(self, request: Any) -> Any:  # noqa: ANN401  # types of the fake's module
        if request.operation in ("AssumeRole", "GetCallerIdentity"):
            raise AssertionError(f"{request.operation} was sent to the endpoint of CloudWatch")
        return super()._reply(request)


@pytest.fixture
def servers(clock: Clock, aws_credentials: None) -> Iterator[tuple[FakeCloudWatch, FakeCloudWatch]]:
    """CloudWatch alone and STS alone."""
    with Monitoring(now=clock) as monitoring, FakeCloudWatch() as sts:
        monitoring._roles_of_keys = sts._roles_of_keys  # the same AWS
        yield monitoring, sts


@pytest.mark.parametrize("by", ["aws.sts_endpoint_url", "a mapping", "AWS_ENDPOINT_URL_STS", "only the environment"])
async def test_a_vpc_endpoint_with_a_role_is_green_and_its_gauges_are_there(
    servers: tuple[FakeCloudWatch, FakeCloudWatch],
    database: Database,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    monitoring, sts = servers
    member = Member("worker-1", instance_id(1), IRELAND, int(clock()) - 3600)
    monitoring.add(member.instance_id)
    await database["workers"].insert_one(member.aggregate())
    cloudwatch: dict[str, Any] = {"endpoint_url": monitoring.url}
    aws: dict[str, Any] = {"roles": [{"role_arn": ROLE}]}
    if by == "aws.sts_endpoint_url":
        aws["sts_endpoint_url"] = sts.url
    elif by == "a mapping":
        cloudwatch, aws["sts_endpoint_url"] = {"endpoint_url": {IRELAND: monitoring.url}}, {IRELAND: sts.url}
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        aws["sts_endpoint_url"] = None
    if by == "only the environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH", monitoring.url)
        cloudwatch["endpoint_url"] = None
    host, port = await database.client.address or ("", 0)
    uri = f"mongodb://{host}:{port}/{database.name}?directConnection=true"
    web = {"listen_address": ["127.0.0.1:0"]}
    checked = settings_of(mongodb={"uri": uri}, cloudwatch=cloudwatch, aws=aws, web=web, data_dir=tmp_path / "check")

    rows = {row.check: row.status for row in await examine(checked, clock)}
    assert {rows[name] for name in ("AWS identity", f"CloudWatch CPU, {IRELAND}", f"CloudWatch memory, {IRELAND}")} == {"ok"}

    exporter = InProcessExporter(tmp_path, database, monitoring, clock, aws=aws, cloudwatch=cloudwatch)
    try:
        await exporter.observe()
        await exporter.ask()
        text = await exporter.scrape()
    finally:
        await exporter.close()
    for name in ("cpu", "memory"):
        assert len(series(text, f"cml_worker_{name}_utilization_ratio{{")) == 1
    assert sts.counters()["assumed"] == [(ROLE, None)] * 2
    assert set(sts.calls) == {"AssumeRole", "GetCallerIdentity"}
    assert set(monitoring.calls) == {"GetMetricData", "ListMetrics"}


async def test_an_sts_that_cannot_be_reached_is_named_with_its_setting(
    servers: tuple[FakeCloudWatch, FakeCloudWatch],
) -> None:
    monitoring, _ = servers
    aws = {"roles": [{"role_arn": ROLE}], "sts_endpoint_url": "http://127.0.0.1:1"}
    cloudwatch = CloudWatch(settings_of(cloudwatch={"endpoint_url": monitoring.url}, aws=aws), Telemetry(CollectorRegistry()))
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:1/ cannot be reached; .*aws\.sts_endpoint_url"):
        await cloudwatch.list_memory(IRELAND, recent=True)
    await cloudwatch.close()
