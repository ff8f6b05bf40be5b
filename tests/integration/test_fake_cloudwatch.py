"""The fake CloudWatch answers alike in each protocol that the compared exporters speak: JSON, Smithy RPC v2 CBOR, query."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.helpers.fake_cloudwatch import FakeCloudWatch, FakeCloudWatchProcess, fleet, instance_id

NOW = 1_767_225_600
PROTOCOLS = ("json", "smithy-rpc-v2-cbor", "query")


@pytest.fixture
def aws() -> Iterator[FakeCloudWatch]:
    with FakeCloudWatch(now=lambda: NOW, period=60) as fake:
        fleet(fake, 60, ["eu-west-1"])
        yield fake


def client(aws: FakeCloudWatch | FakeCloudWatchProcess, protocol: str, service: str = "cloudwatch") -> Any:  # noqa: ANN401  # a generated class
    """A client of botocore that is made to speak `protocol`."""
    session = botocore.session.Session()
    session.set_credentials("AKIAHOME", "s")
    if service == "cloudwatch":
        loader = session.get_component("data_loader")
        loader.load_service_model(service, "service-2")["metadata"]["protocols"] = [protocol]
    config = Config(retries={"total_max_attempts": 1})
    made = session.create_client(service, "eu-west-1", endpoint_url=aws.url, config=config)
    assert service != "cloudwatch" or made.meta.service_model.resolved_protocol == protocol
    return made


def request(count: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # fields of GetMetricData
    def query(k: int) -> dict[str, Any]:
        dimensions = [{"Name": "InstanceId", "Value": instance_id(k)}]
        metric = {"Namespace": "AWS/EC2", "MetricName": "CPUUtilization", "Dimensions": dimensions}
        return {"Id": f"q{k}", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Average"}, "ReturnData": True}

    return {"MetricDataQueries": [query(k) for k in range(count)], "StartTime": NOW - 600, "EndTime": NOW, **more}


def data(client: Any, asked: dict[str, Any]) -> list[dict[str, Any]]:  # noqa: ANN401  # a generated class
    """The results of all pages."""
    pages = client.get_paginator("get_metric_data").paginate(**asked)
    return [result for page in pages for result in page["MetricDataResults"]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_values_and_pages_are_those_of_the_ledger(aws: FakeCloudWatch, protocol: str) -> None:
    asked = request(5, MaxDatapoints=7, ScanBy="TimestampAscending")
    found: dict[tuple[str, int], float] = {}
    for result in data(client(aws, protocol), asked):
        instance = instance_id(int(result["Id"][1:]))
        stamps = [int(each.timestamp()) for each in result["Timestamps"]]
        found |= {(instance, at): value for at, value in zip(stamps, result["Values"], strict=True)}
    expected = {(id, at): value for (id, metric, at), value in aws.ledger(NOW - 600, NOW - 60).items() if metric == "cpu"}
    assert found == {key: value for key, value in expected.items() if key[0] in {instance_id(k) for k in range(5)}}
    assert aws.calls["GetMetricData"] == 7
    assert aws.metrics_billed == 35


def test_every_protocol_has_the_same_answer(aws: FakeCloudWatch) -> None:
    wanted = {"Namespace": "CWAgent", "MetricName": "mem_used_percent", "RecentlyActive": "PT3H"}
    answers = []
    for protocol in PROTOCOLS:
        spoken = client(aws, protocol)
        listed = [metric for page in spoken.get_paginator("list_metrics").paginate(**wanted) for metric in page["Metrics"]]
        answers.append((data(spoken, request(20)), listed))
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0][1]) == 59
    assert all(len(result["Values"]) == 9 for result in answers[0][0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("mode", "code", "status"),
    [("throttle", "Throttling", 400), ("validation", "ValidationError", 400), ("expired_token", "ExpiredToken", 403)],
)
def test_errors_have_their_code_in_each_protocol(aws: FakeCloudWatch, protocol: str, mode: str, code: str, status: int) -> None:
    aws.fault("GetMetricData", mode)
    with pytest.raises(ClientError) as failed:
        client(aws, protocol).get_metric_data(**request(1))
    assert failed.value.response["Error"]["Code"] == code
    assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_refused_request_and_partial_data_look_alike(aws: FakeCloudWatch, protocol: str) -> None:
    with pytest.raises(ClientError, match="size greater than 500"):
        client(aws, protocol).get_metric_data(**request(501))
    aws.fault("GetMetricData", "partial")
    (result,) = client(aws, protocol).get_metric_data(**request(1))["MetricDataResults"]
    assert (result["StatusCode"], len(result["Values"])) == ("PartialData", 8)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_label_is_that_of_the_query_and_a_dimension_may_be_asked_for_by_name(aws: FakeCloudWatch, protocol: str) -> None:
    asked = request(1)
    asked["MetricDataQueries"][0]["Label"] = "Average/one"
    spoken = client(aws, protocol)
    assert [result["Label"] for result in data(spoken, asked)] == ["Average/one"]
    wanted = {"Namespace": "CWAgent", "MetricName": "mem_used_percent"}
    assert len(spoken.list_metrics(**wanted, Dimensions=[{"Name": "InstanceId"}])["Metrics"]) == 59
    assert len(spoken.list_metrics(**wanted, Dimensions=[{"Name": "InstanceType"}])["Metrics"]) == 53


def test_account_and_aliases_are_answered_over_the_query_protocol(aws: FakeCloudWatch) -> None:
    assert client(aws, "query", "sts").get_caller_identity()["Account"] == aws.home
    assert client(aws, "query", "iam").list_account_aliases()["AccountAliases"] == []


def test_late_and_revised_values_are_those_of_a_moment_and_the_ledger_has_the_final_ones() -> None:
    clock = [NOW]
    with FakeCloudWatch(now=lambda: clock[0], period=60) as fake:
        one = fake.add(instance_id(0), revise=120, late={("cpu", NOW - 300): 600}, lost=[("cpu", NOW - 360)])
        final = fake.final(one, "cpu", NOW - 600, NOW)
        assert NOW - 300 in final
        assert NOW - 360 not in final
        asked = request(1, ScanBy="TimestampAscending")

        def seen() -> dict[int, float]:
            (result,) = data(client(fake, "json"), asked)
            return {int(at.timestamp()): value for at, value in zip(result["Timestamps"], result["Values"], strict=True)}

        expected = {at: value for at, value in final.items() if at <= NOW - 120 and at != NOW - 300}
        assert seen() == {**expected, NOW - 120: final[NOW - 120] / 2}
        clock[0] += 600
        assert seen() == final


def test_a_process_of_its_own_answers_as_the_ledger_here_says(tmp_path: Path) -> None:
    with FakeCloudWatchProcess(tmp_path, 0, period=60, seed=7) as fake:
        now = int(time.time()) // 60 * 60
        late = [["cpu", now - 600, 3600]]
        fake.add([{"id": instance_id(k), "runs": [[now - 1200, now - 300]], "late": late} for k in range(3)])
        asked = {**request(3), "StartTime": now - 3600, "EndTime": now}
        found = [len(result["Values"]) for result in data(client(fake, "json"), asked)]
        values = [result["Values"][-1] for result in data(client(fake, "json"), asked)]
        assert found == [14, 14, 14]
        assert values == [fake.instances.value(instance_id(k), "cpu", now - 1200) for k in range(3)]
        assert len(fake.instances.final(fake.instances.instances["eu-west-1", instance_id(0)], "cpu", now - 3600, now)) == 15
        counters = fake.control({"brief": True, "reset": True})
        assert (counters["calls"], counters["metrics_billed"]) == ({"GetMetricData": 2}, {"eu-west-1": 6})
        pid = fake.pid
    assert not Path(f"/proc/{pid}").exists()
