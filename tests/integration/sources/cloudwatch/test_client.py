"""exporter.sources.cloudwatch against the fake CloudWatch, over real HTTP and the real botocore."""

import asyncio
import json
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from exporter.core.budget import DOLLARS_PER_METRIC
from exporter.core.errors import SourceError
from exporter.core.model import MetricQuery, MetricResults
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch import transport
from exporter.sources.cloudwatch.client import CloudWatch
from tests.fixtures.cloudwatch import aws_settings
from tests.helpers.deadlines import scaled
from tests.helpers.fake_cloudwatch import ALWAYS, FakeCloudWatch, Series, fleet, instance_id

REGION, OTHER = "eu-west-1", "us-east-1"
PERIOD = 300

Build = Callable[..., CloudWatch]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(CollectorRegistry())


@pytest.fixture
async def build(fake_cloudwatch: FakeCloudWatch, telemetry: Telemetry) -> AsyncIterator[Build]:
    """CloudWatch(…) with the fake's endpoint; closed at the end."""
    async with AsyncExitStack() as stack:

        def construct(endpoint: str = fake_cloudwatch.url, aws: Any = None, **options: Any) -> CloudWatch:  # noqa: ANN401
            cloudwatch = CloudWatch(aws_settings(endpoint, aws=aws or {}), telemetry, **options)
            stack.push_async_callback(cloudwatch.close)
            return cloudwatch

        yield construct


def cpu(instance: str) -> MetricQuery:
    return MetricQuery(instance, "cpu", (("InstanceId", instance),))


def memory(instance: str) -> MetricQuery:
    usual = (("ImageId", "ami-0c"), ("InstanceId", instance), ("InstanceType", "m5.2xlarge"))
    return MetricQuery(instance, "memory", usual)


def hour() -> tuple[int, int]:
    """The last full hour, ending a quarter of an hour ago: final in the fake."""
    end = int(time.time()) // PERIOD * PERIOD - 900
    return end - 3600, end


def values_of(answers: MetricResults) -> dict[tuple[str, str, int], float]:
    return {
        (q.instance_id, q.metric, at): value for q, answer in answers.by_query.items() for at, value in answer.values.items()
    }


async def identity(cloudwatch: CloudWatch, region: str) -> str:
    (access,) = cloudwatch.accesses(region)
    return await cloudwatch.identity(region, access)


def counted(telemetry: Telemetry, name: str, **labels: str) -> float:
    return telemetry.registry.get_sample_value(f"cml_exporter_cloudwatch_{name}_total", labels) or 0


def failures(telemetry: Telemetry, operation: str = "GetMetricData", region: str = REGION) -> dict[str, float]:
    return {
        sample.labels["code"]: sample.value
        for metric in telemetry.request_failures.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and (sample.labels["operation"], sample.labels["region"]) == (operation, region)
    }


async def in_flight(fake: FakeCloudWatch, count: int) -> None:
    """Wait until that many requests are at the server."""
    async with asyncio.timeout(scaled(20)):
        while fake.counters()["concurrent"] < count:  # noqa: ASYNC110  # the server is another thread, it cannot set our Event
            await asyncio.sleep(0.02)


async def test_values_are_those_of_the_ledger_and_the_date_is_the_servers(
    fake_cloudwatch: FakeCloudWatch, build: Build
) -> None:
    start, end = hour()
    fake_cloudwatch.add("i-0a", runs=[(None, start + 1800)])
    fake_cloudwatch.add("i-0b", agent=False)

    answers = await build().get_metric_data(
        REGION, [cpu("i-0a"), memory("i-0a"), cpu("i-0b"), memory("i-0b")], start, end, PERIOD
    )

    assert values_of(answers) == fake_cloudwatch.ledger(start, end)
    assert [answer.outcome for answer in answers.by_query.values()] == ["ok", "ok", "ok", "empty"]
    assert answers.by_query[cpu("i-0a")].values.keys() == set(range(start, start + 1800, PERIOD))
    assert abs(answers.date - time.time()) < 5


async def test_all_pages_are_followed_and_merged(fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry) -> None:
    fake_cloudwatch.page_datapoints = 7
    fleet(fake_cloudwatch, 3, [REGION])
    start, end = hour()

    answers = await build().get_metric_data(REGION, [cpu(instance_id(k)) for k in range(3)], start, end, PERIOD)

    assert {answer.outcome for answer in answers.by_query.values()} == {"ok"}
    assert values_of(answers) == {key: value for key, value in fake_cloudwatch.ledger(start, end).items() if key[1] == "cpu"}
    assert fake_cloudwatch.calls["GetMetricData"] == 6, "36 datapoints by 7"
    assert counted(telemetry, "metrics_requested", region=REGION) == fake_cloudwatch.metrics_billed == 18


async def test_requests_are_those_that_botocore_would_write_and_it_writes_them_where_its_form_is_another(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cloudwatch.page_datapoints = 7
    fleet(fake_cloudwatch, 3, [REGION])
    requests: list[Any] = []

    def noted(operation: str, request: Any, answer: Any) -> Any:  # noqa: ANN401
        requests.append(request)
        return answer

    fake_cloudwatch.lie = noted
    queries = [query for k in range(3) for query in (cpu(instance_id(k)), memory(instance_id(k)))]
    cloudwatch = build()

    ours = await cloudwatch.get_metric_data(REGION, queries, *hour(), PERIOD)
    inserted, requests[:] = [*requests], []
    monkeypatch.setattr(transport, "NO_QUERIES", b'"MetricDataQueries":[]')  # as another botocore may write it
    botocores = await cloudwatch.get_metric_data(REGION, queries, *hour(), PERIOD)

    assert len(inserted) > 2
    assert inserted == [
        {**each, "NextToken": one["NextToken"]} if "NextToken" in one else each
        for each, one in zip(requests, inserted, strict=True)
    ]
    assert ours.by_query == botocores.by_query
    assert failures(telemetry) == {}
    assert counted(telemetry, "metrics_requested", region=REGION) == fake_cloudwatch.metrics_billed == 6 * 2 * len(inserted)
    assert counted(telemetry, "requests", operation="GetMetricData", region=REGION) == 2 * len(inserted)


async def test_no_request_without_queries_is_sent_by_a_botocore_without_the_event(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cloudwatch.add("i-0a")
    monkeypatch.setattr(transport.RequestHooks, "insert_queries", lambda self, **_: None)
    start, end = hour()

    answers = await build().get_metric_data(REGION, [cpu("i-0a")], start, end, PERIOD)

    assert len(values_of(answers)) == 12
    assert (fake_cloudwatch.calls["GetMetricData"], failures(telemetry)) == (1, {})


async def test_the_counters_of_a_region_are_there_before_its_first_answer(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry
) -> None:
    fleet(fake_cloudwatch, 1, [REGION])
    fake_cloudwatch.fault("GetMetricData", "access_denied")
    with pytest.raises(SourceError):
        await build().get_metric_data(REGION, [cpu(instance_id(0))], *hour(), PERIOD)
    shown = telemetry.registry.get_sample_value  # which creates no series
    assert shown("cml_exporter_cloudwatch_metrics_requested_total", {"region": REGION}) == 0
    assert shown("cml_exporter_cloudwatch_requests_total", {"operation": "ListMetrics", "region": REGION}) == 0


async def test_the_estimate_is_the_metric_is_what_the_server_billed_through_all_faults(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry
) -> None:
    fleet(fake_cloudwatch, 4, [REGION, OTHER])
    cloudwatch = build()
    start, end = hour()
    for mode in ("500", "trunc", "cut", "empty", "partial"):
        fake_cloudwatch.fault("GetMetricData", mode)
        for region, k in ((REGION, 0), (OTHER, 1)):
            await cloudwatch.get_metric_data(region, [cpu(instance_id(k)), cpu(instance_id(k + 2))], start, end, PERIOD)
    fake_cloudwatch.fault("GetMetricData", "access_denied")
    with pytest.raises(SourceError):
        await cloudwatch.get_metric_data(REGION, [cpu("i-0")], start, end, PERIOD)

    billed = fake_cloudwatch.counters()["metrics_billed"]
    assert billed == {region: counted(telemetry, "metrics_requested", region=region) for region in (REGION, OTHER)}
    assert sum(billed.values()) == 24, "10 calls and 2 bodies that arrived cut, of 2 metrics each"
    assert counted(telemetry, "estimated_cost_dollars") == pytest.approx(24 * DOLLARS_PER_METRIC)
    assert counted(telemetry, "requests", operation="GetMetricData", region=REGION) == 10
    assert fake_cloudwatch.counters()["by_region"][REGION]["GetMetricData"] == 10


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("throttle", "Throttling"),
        ("429", "429"),
        ("internal", "InternalServiceFault"),
        ("500", "503"),
        ("cut", "ConnectionClosedError"),
        ("trunc", "IncompleteBody"),
        ("empty", "IncompleteBody"),
    ],
)
@pytest.mark.parametrize("operation", ["GetMetricData", "ListMetrics"])
async def test_a_passing_fault_is_retried_and_counted(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry, operation: str, mode: str, code: str
) -> None:
    fake_cloudwatch.add("i-0a")
    fake_cloudwatch.fault(operation, mode)
    start, end = hour()

    if operation == "GetMetricData":
        answers = await build().get_metric_data(REGION, [cpu("i-0a")], start, end, PERIOD)
        assert len(answers.by_query[cpu("i-0a")].values) == 12
    else:
        assert set((await build().list_memory(REGION, recent=True)).series) == {"i-0a"}

    assert failures(telemetry, operation) == {code: 1}
    assert counted(telemetry, "requests", operation=operation, region=REGION) == 2


@pytest.mark.parametrize(
    ("mode", "code", "attempts"),
    [
        ("throttle", "Throttling", 4),
        ("internal", "InternalServiceFault", 4),
        ("cut", "ConnectionClosedError", 4),
        ("trunc", "IncompleteBody", 4),
        ("empty", "IncompleteBody", 4),
        ("access_denied", "AccessDenied", 1),
        ("expired_token", "ExpiredToken", 1),
        ("bad_credentials", "UnrecognizedClientException", 1),
    ],
)
async def test_a_lasting_fault_is_a_source_error_after_its_attempts(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry, mode: str, code: str, attempts: int
) -> None:
    fake_cloudwatch.fault("GetMetricData", mode, 4)

    with pytest.raises(SourceError) as caught:
        await build().get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    assert type(caught.value) is SourceError
    assert (caught.value.code, caught.value.region) == (code, REGION)
    assert failures(telemetry) == {code: attempts}
    assert fake_cloudwatch.calls["GetMetricData"] == attempts


async def test_partial_data_is_handed_on_as_partial(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.add("i-0a")
    fake_cloudwatch.fault("GetMetricData", "partial")

    answers = await build().get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    assert answers.by_query[cpu("i-0a")].outcome == "partial"
    assert len(answers.by_query[cpu("i-0a")].values) == 11


async def test_a_malformed_instance_id_costs_no_other_its_result_and_is_sent_once(
    fake_cloudwatch: FakeCloudWatch, build: Build
) -> None:
    fake_cloudwatch.add("i-0a")
    cloudwatch = build()
    queries = [cpu("i-0a"), cpu("i-nothex"), cpu("vm 7")]

    for _ in range(2):
        results = await cloudwatch.get_metric_data(REGION, queries, *hour(), PERIOD)
        assert results.by_query[cpu("i-0a")].outcome == "ok"
        assert {results.by_query[query].outcome for query in queries[1:]} == {"empty"}

    assert cloudwatch.malformed == {"i-nothex", "vm 7"}
    assert fake_cloudwatch.metrics_billed == 2
    calls = fake_cloudwatch.calls["GetMetricData"]
    await cloudwatch.get_metric_data(REGION, queries[1:], *hour(), PERIOD)
    assert fake_cloudwatch.calls["GetMetricData"] == calls


async def test_a_slow_answer_and_its_thread_end_at_the_deadline_and_the_next_call_works(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry
) -> None:
    fake_cloudwatch.add("i-0a")
    fake_cloudwatch.drip = 0.2
    cloudwatch = build(deadline=scaled(3))
    await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)
    fake_cloudwatch.fault("GetMetricData", "slow-drip", 16)
    began = time.monotonic()

    calls = [cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD) for _ in range(16)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert time.monotonic() - began < scaled(15), "the whole body would take a minute"
    assert [getattr(outcome, "code", outcome) for outcome in outcomes] == ["DeadlinePassed"] * 16
    assert (await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)).by_query[cpu("i-0a")].outcome == "ok"
    while any(thread.name == f"cloudwatch-{REGION}" for thread in threading.enumerate()):
        assert time.monotonic() - began < scaled(40), "an abandoned thread never ends"
        await asyncio.sleep(0.05)
    assert counted(telemetry, "metrics_requested", region=REGION) == fake_cloudwatch.metrics_billed == 18


async def test_a_hanging_server_is_a_source_error_at_the_deadline(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.fault("GetMetricData", "hang")

    with pytest.raises(SourceError, match="no answer in time") as caught:
        await build(deadline=0.5).get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    assert caught.value.code == "DeadlinePassed"


async def test_a_region_that_hangs_delays_no_other(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.add("i-0b", OTHER)
    fake_cloudwatch.fault("GetMetricData", "hang", 20, region=REGION)
    cloudwatch = build()
    stuck = [asyncio.create_task(cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)) for _ in range(20)]
    await in_flight(fake_cloudwatch, 16)

    answers = await cloudwatch.get_metric_data(OTHER, [cpu("i-0b")], *hour(), PERIOD)

    assert answers.by_query[cpu("i-0b")].outcome == "ok"
    assert not any(task.done() for task in stuck)
    assert fake_cloudwatch.counters()["by_region"][REGION] == {"GetMetricData": 16}, "no more than 16 at once"
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_canceled_call_frees_its_place(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.add("i-0a")
    fake_cloudwatch.fault("GetMetricData", "hang", 16)
    cloudwatch = build()
    tasks = [asyncio.create_task(cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)) for _ in range(16)]
    await in_flight(fake_cloudwatch, 16)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    async with asyncio.timeout(scaled(10)):
        assert (await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)).by_query[cpu("i-0a")].complete


async def test_two_regions_have_their_own_instances_clients_and_counters(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry
) -> None:
    fake_cloudwatch.add("i-0a", REGION)
    fake_cloudwatch.add("i-0b", OTHER)
    cloudwatch = build()
    queries = [cpu("i-0a"), cpu("i-0b")]

    here, there = await asyncio.gather(
        *(cloudwatch.get_metric_data(region, queries, *hour(), PERIOD) for region in (REGION, OTHER))
    )

    assert [answer.outcome for answer in here.by_query.values()] == ["ok", "empty"]
    assert [answer.outcome for answer in there.by_query.values()] == ["empty", "ok"]
    assert set((await cloudwatch.list_memory(OTHER, recent=False)).series) == {"i-0b"}
    for region in (REGION, OTHER):
        assert counted(telemetry, "requests", operation="GetMetricData", region=region) == 1


async def test_connections_are_kept_for_the_next_call(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.add("i-0a")
    cloudwatch = build()

    for _ in range(5):
        await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    assert fake_cloudwatch.counters()["connections"] == 1


async def test_two_thousand_workers_are_queried_concurrently(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fleet(fake_cloudwatch, 2000, [REGION])
    fake_cloudwatch.latency = 0.1
    cloudwatch = build()
    end = hour()[1]
    queries = [query for k in range(2000) for query in (cpu(instance_id(k)), memory(instance_id(k)))]

    listing = await cloudwatch.list_memory(REGION, recent=True)
    calls = [cloudwatch.get_metric_data(REGION, queries[o : o + 500], end - 900, end, PERIOD) for o in range(0, 4000, 500)]
    answers = await asyncio.gather(*calls)

    assert len(listing.series) == 1960
    assert sum(len(values_of(each)) for each in answers) == 3 * (2000 + 1960 - 200), "every tenth lists another dimension set"
    assert 2 <= fake_cloudwatch.counters()["max_concurrent"] <= 16


async def test_requests_are_paced_retries_and_pages_included(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.add("i-0a")
    fake_cloudwatch.page_datapoints = 1
    cloudwatch = build(rate=4)
    began = time.monotonic()

    await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    assert fake_cloudwatch.calls["GetMetricData"] == 12
    assert time.monotonic() - began >= 1.9, "4 at once, 8 more at 4 a second"


async def test_a_server_with_a_skewed_clock_has_failed_and_both_times_are_named(
    fake_cloudwatch: FakeCloudWatch, build: Build
) -> None:
    fake_cloudwatch.add("i-0a")
    local = 1_700_000_000.0
    fake_cloudwatch.offset = local - time.time()
    cloudwatch = build(wall=lambda: local)
    window = (1_699_990_200, 1_699_993_800)
    assert (await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *window, PERIOD)).by_query[cpu("i-0a")].outcome == "ok"

    for skew in (400, -400):
        fake_cloudwatch.skew = skew
        for call in (
            cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *window, PERIOD),
            cloudwatch.list_memory(REGION, recent=True),
        ):
            with pytest.raises(
                SourceError, match=r"this machine says 2023-11-14T22:13:20Z; set this machine's clock"
            ) as caught:
                await call
            assert caught.value.code == "ClockSkew"
            assert "says it is 2023-11-14T22:" in str(caught.value)


async def test_the_date_is_that_of_the_first_page(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.add("i-0a")
    fake_cloudwatch.page_datapoints = 4
    ticks = iter(range(100))
    fake_cloudwatch._now = lambda: 1_700_000_000 + next(ticks)

    answers = await build(wall=lambda: 1_700_000_000.0).get_metric_data(
        REGION, [cpu("i-0a")], 1_699_990_200, 1_699_993_800, PERIOD
    )

    assert answers.date == 1_700_000_001, "the first page read the clock for its datapoints and then for its Date"


async def test_a_listing_follows_all_pages_and_knows_its_window(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fleet(fake_cloudwatch, 7, [REGION])
    fake_cloudwatch.page_series = 3
    now = int(time.time())
    fake_cloudwatch.add("i-0dead", runs=[(now - 20 * 3600, now - 10 * 3600)])
    cloudwatch = build()

    recent, all_of_them = await cloudwatch.list_memory(REGION, recent=True), await cloudwatch.list_memory(REGION, recent=False)

    assert set(recent.series) == {instance_id(k) for k in range(7)}
    assert set(all_of_them.series) == {*recent.series, "i-0dead"}
    assert recent.since == recent.date - 3 * 3600
    assert all_of_them.since == all_of_them.date - 14 * 86400
    assert recent.series[instance_id(1)] == (memory(instance_id(1)).dimensions,)
    assert fake_cloudwatch.calls["ListMetrics"] == 3 + 3


async def test_a_listing_holds_every_dimension_set_of_an_instance(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    one, other = (("ImageId", "ami-1"), ("InstanceId", "i-0a")), (("ImageId", "ami-2"), ("InstanceId", "i-0a"))
    fake_cloudwatch.add("i-0a", memory=[Series(one), Series(other)])

    assert (await build().list_memory(REGION, recent=True)).series == {"i-0a": (one, other)}


ROLE = "arn:aws:iam::123456789012:role/cml-reader"


async def test_a_role_is_assumed_once_and_its_keys_sign_the_requests(
    fake_cloudwatch: FakeCloudWatch, build: Build, telemetry: Telemetry
) -> None:
    fake_cloudwatch.add("i-0a")
    cloudwatch = build(aws={"roles": [{"role_arn": ROLE, "external_id": "customer-7"}]})

    for _ in range(3):
        await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)
    arn = await identity(cloudwatch, REGION)

    counters = fake_cloudwatch.counters()
    assert counters["assumed"] == [(ROLE, "customer-7")]
    assert [key[:4] for key in counters["keys"]] == ["AKIA", "ASIA"]
    assert arn == "arn:aws:sts::123456789012:assumed-role/cml-reader/session"
    assert counted(telemetry, "requests", operation="AssumeRole", region=REGION) == 1


async def test_the_keys_of_a_role_are_renewed_before_they_expire(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.add("i-0a")
    fake_cloudwatch.role_seconds = 120  # botocore renews what has less than ten minutes to live
    cloudwatch = build(aws={"roles": [{"role_arn": ROLE}]})

    for _ in range(2):
        await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    assert len(fake_cloudwatch.counters()["assumed"]) >= 2
    assert len({key for key in fake_cloudwatch.counters()["keys"] if key.startswith("ASIA")}) >= 2


async def test_a_role_is_used_in_its_regions_only(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    cloudwatch = build(aws={"roles": [{"role_arn": ROLE, "regions": [OTHER]}]})

    assert await identity(cloudwatch, REGION) == "arn:aws:iam::123456789012:user/exporter"
    assert "assumed-role/cml-reader" in await identity(cloudwatch, OTHER)


async def test_a_role_that_may_not_be_assumed_names_the_action(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.fault("AssumeRole", "access_denied")

    with pytest.raises(SourceError, match="sts:AssumeRole is not allowed") as caught:
        await build(aws={"roles": [{"role_arn": ROLE}]}).get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    assert type(caught.value) is SourceError


async def test_wrong_keys_are_reported_by_the_identity_call(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    fake_cloudwatch.fault("GetCallerIdentity", "bad_credentials")

    with pytest.raises(SourceError, match="check AWS_ACCESS_KEY_ID") as caught:
        await identity(build(), REGION)

    assert caught.value.code == "InvalidClientTokenId"


@pytest.mark.parametrize("absent", ["both", "secret"])
async def test_missing_credentials_are_reported_without_any_request(
    fake_cloudwatch: FakeCloudWatch, build: Build, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    if absent == "both":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")

    with pytest.raises(SourceError) as caught:
        await build().get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    assert caught.value.code == {"both": "NoCredentialsError", "secret": "PartialCredentialsError"}[absent]
    assert not fake_cloudwatch.calls


async def test_credentials_that_come_later_are_found_without_a_restart(
    fake_cloudwatch: FakeCloudWatch, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cloudwatch.add("i-0a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    cloudwatch = build()
    with pytest.raises(SourceError):
        await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIALATE")

    assert (await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)).by_query[cpu("i-0a")].complete


async def test_expired_keys_are_replaced_by_those_the_file_has_now(
    fake_cloudwatch: FakeCloudWatch, build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_cloudwatch.add("i-0a")
    file = tmp_path / "credentials"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    file.write_text("[default]\naws_access_key_id = AKIAOLD\naws_secret_access_key = s\n")
    fake_cloudwatch.fault("GetMetricData", "expired_token")
    cloudwatch = build()
    with pytest.raises(SourceError, match="the session token has expired"):
        await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)

    file.write_text("[default]\naws_access_key_id = AKIANEW\naws_secret_access_key = s\n")

    assert (await cloudwatch.get_metric_data(REGION, [cpu("i-0a")], *hour(), PERIOD)).by_query[cpu("i-0a")].complete
    assert fake_cloudwatch.counters()["keys"] == ["AKIAOLD", "AKIANEW"]


async def test_a_malformed_region_is_named(build: Build) -> None:
    with pytest.raises(SourceError, match="'not a region!' is not a region; correct the region of the workers") as caught:
        await build().get_metric_data("not a region!", [cpu("i-0a")], *hour(), PERIOD)

    assert caught.value.region == "not a region!"


async def test_an_endpoint_that_does_not_resolve_points_to_the_region(build: Build) -> None:
    cloudwatch = build("http://monitoring.eu-nowhere-1.invalid")

    with pytest.raises(SourceError, match="check that the region exists and is spelled correctly") as caught:
        await cloudwatch.get_metric_data("eu-nowhere-1", [cpu("i-0a")], *hour(), PERIOD)

    assert caught.value.code == "EndpointConnectionError"


async def test_an_endpoint_that_is_no_address_points_to_the_setting(build: Build) -> None:
    with pytest.raises(SourceError, match=r"http://a\.\.b is not an address; correct cloudwatch\.endpoint_url"):
        await build("http://a..b").list_memory(REGION, recent=True)
    with pytest.raises(SourceError, match=r"http://a\.\.b is not an address; correct aws\.sts_endpoint_url"):
        await identity(build("http://a..b"), REGION)


async def test_a_call_beyond_the_limits_is_refused_before_it_is_sent(fake_cloudwatch: FakeCloudWatch, build: Build) -> None:
    queries = [cpu(instance_id(k)) for k in range(501)]

    with pytest.raises(ValueError, match="501 queries"):
        await build().get_metric_data(REGION, queries, *hour(), PERIOD)

    assert not fake_cloudwatch.calls


# The fake itself, which the other tests rely on


async def test_a_datapoint_appears_after_its_lag_is_revised_and_ends_as_in_the_ledger(
    aws_credentials: None, telemetry: Telemetry
) -> None:
    clock = [1_700_000_100]  # a multiple of 300
    start = clock[0]
    with FakeCloudWatch(now=lambda: clock[0]) as fake:
        fake.add("i-0a", lag=60, revise=240, late={("memory", start): 600}, lost=[("cpu", start + 300)])
        cloudwatch = CloudWatch(aws_settings(fake.url), telemetry, wall=lambda: clock[0])

        async def seen(at: int) -> dict[tuple[str, str, int], float]:
            clock[0] = start + at
            return values_of(
                await cloudwatch.get_metric_data(REGION, [cpu("i-0a"), memory("i-0a")], start, start + 600, PERIOD)
            )

        final = fake.ledger(start, start + 600)
        first = ("i-0a", "cpu", start)
        assert await seen(359) == {}
        assert await seen(360) == {first: final["i-0a", "cpu", start] / 2}
        assert await seen(540) == {first: final["i-0a", "cpu", start]}
        assert set(await seen(959)) == {first, ("i-0a", "memory", start + 300)}
        assert await seen(960) == final
        assert ("i-0a", "cpu", start + 300) not in final
        await cloudwatch.close()


async def test_longer_periods_average_the_native_ones_as_the_ledger_does(aws_credentials: None, telemetry: Telemetry) -> None:
    start, end = hour()
    with FakeCloudWatch(period=60, seed=7) as fake:
        fake.add("i-0a", runs=[(start + 120, None)])
        cloudwatch = CloudWatch(aws_settings(fake.url), telemetry)
        answers = await cloudwatch.get_metric_data(REGION, [cpu("i-0a"), memory("i-0a")], start, end, PERIOD)
        await cloudwatch.close()

        assert values_of(answers) == fake.ledger(start, end, PERIOD)
        natives = [fake.value("i-0a", "cpu", start + offset) for offset in (120, 180, 240)]
        assert answers.by_query[cpu("i-0a")].values[start] == pytest.approx(sum(natives) / 3)


async def test_a_new_series_is_listed_after_the_lag_of_list_metrics(aws_credentials: None, telemetry: Telemetry) -> None:
    clock = [1_700_000_100]
    start = clock[0]
    with FakeCloudWatch(now=lambda: clock[0], list_lag=900) as fake:
        fake.add("i-0a", runs=[(start, None)])
        cloudwatch = CloudWatch(aws_settings(fake.url), telemetry, wall=lambda: clock[0])
        listed = {}
        for at in (360, 1259, 1260):
            clock[0] = start + at
            listed[at] = bool((await cloudwatch.list_memory(REGION, recent=True)).series)
        fake.change("i-0a", runs=((start, start + 300),))
        for at in (3 * 3600, 3 * 3600 + 660):
            clock[0] = start + at
            listed[at] = bool((await cloudwatch.list_memory(REGION, recent=True)).series)
        await cloudwatch.close()

    assert listed == {360: False, 1259: False, 1260: True, 10800: True, 11460: False}


async def test_the_fake_runs_as_a_program_of_its_own(aws_credentials: None, telemetry: Telemetry) -> None:
    command = [sys.executable, "-m", "tests.helpers.fake_cloudwatch", "--workers", "3", "--regions", f"{REGION},{OTHER}"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    async with asyncio.timeout(scaled(20)):
        url = (await process.stdout.readline()).decode().strip()
        cloudwatch = CloudWatch(aws_settings(url), telemetry)
        listing = await cloudwatch.list_memory(REGION, recent=True)
        await cloudwatch.close()
        process.terminate()
        assert await process.wait() == 0

    assert set(listing.series) == {instance_id(0), instance_id(2)}


def test_the_fake_is_controlled_over_http(fake_cloudwatch: FakeCloudWatch) -> None:
    def control(order: dict[str, Any] | None = None) -> dict[str, Any]:
        data = json.dumps(order).encode() if order else None
        with urllib.request.urlopen(f"{fake_cloudwatch.url}/ctl", data, timeout=scaled(5)) as answer:
            counters: dict[str, Any] = json.load(answer)
            return counters

    control({"add": [{"id": "i-0a", "region": REGION, "runs": [[0, None]]}], "set": {"latency": 0.01}})
    control({"fault": {"operation": "GetMetricData", "mode": "hang", "count": 1}})
    control({"clear": True})

    assert fake_cloudwatch.latency == 0.01
    assert fake_cloudwatch.instances[REGION, "i-0a"].runs == ((0, None),)
    assert control()["calls"] == {}
    assert fake_cloudwatch.add("i-0b").runs == ALWAYS
