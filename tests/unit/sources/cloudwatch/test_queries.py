"""The pure part of exporter.sources.cloudwatch: queries, pages, limits, dimension sets, the translation of boto's errors."""

import inspect
import math
import string
from typing import Any

import botocore.exceptions as boto_errors
import pytest
from botocore.parsers import ResponseParserError

from exporter.core.clock import MAX_SKEW_SECONDS
from exporter.core.errors import RejectedQueryError, SourceError
from exporter.core.model import Dimensions, Listing, MetricQuery
from exporter.sources.cloudwatch.errors import translate
from exporter.sources.cloudwatch.memory_series import memory_series
from exporter.sources.cloudwatch.queries import build_queries, check_limits, merge_pages
from exporter.sources.cloudwatch.transport import TokenBucket

CPU = MetricQuery("i-0a", "cpu", (("InstanceId", "i-0a"),))
MEMORY = MetricQuery("i-0a", "memory", (("ImageId", "ami-1"), ("InstanceId", "i-0a")))


def result(id: str, status: str = "Complete", **points: float) -> dict[str, Any]:
    """t300=1.5 is the datapoint 1.5 at 300."""
    return {
        "Id": id,
        "StatusCode": status,
        "Timestamps": [float(at[1:]) for at in points],
        "Values": list(points.values()),
    }


def test_a_query_names_namespace_metric_dimensions_and_asks_the_average() -> None:
    cpu, memory = build_queries([CPU, MEMORY], 300)

    assert cpu == {
        "Id": "m0",
        "MetricStat": {
            "Metric": {
                "Namespace": "AWS/EC2",
                "MetricName": "CPUUtilization",
                "Dimensions": [{"Name": "InstanceId", "Value": "i-0a"}],
            },
            "Period": 300,
            "Stat": "Average",
        },
    }
    assert memory["MetricStat"]["Metric"] == {
        "Namespace": "CWAgent",
        "MetricName": "mem_used_percent",
        "Dimensions": [{"Name": "ImageId", "Value": "ami-1"}, {"Name": "InstanceId", "Value": "i-0a"}],
    }


def test_a_series_goes_on_over_pages_and_its_last_status_decides() -> None:
    pages = [[result("m0", "PartialData", t0=1.0)], [result("m0", t300=2.0)]]

    answer = merge_pages([CPU], pages, 0, 600)[CPU]

    assert (answer.outcome, answer.values, answer.start, answer.end) == ("ok", {0: 1.0, 300: 2.0}, 0, 600)


@pytest.mark.parametrize(
    ("results", "outcome", "values"),
    [
        pytest.param([result("m0")], "empty", {}, id="complete without values"),
        pytest.param([result("m0", "PartialData", t0=1.0)], "partial", {0: 1.0}, id="partial at the end"),
        pytest.param([result("m0", "InternalError", t0=1.0)], "failed", {0: 1.0}, id="internal error"),
        pytest.param([result("m0", "Forbidden")], "failed", {}, id="forbidden"),
        pytest.param([], "failed", {}, id="not mentioned at all"),
        pytest.param([result("m1", t0=1.0)], "failed", {}, id="only another id"),
    ],
)
def test_only_a_complete_result_decides_anything(results: list[Any], outcome: str, values: dict[int, float]) -> None:
    answer = merge_pages([CPU], [results], 0, 600)[CPU]

    assert (answer.outcome, answer.values) == (outcome, values)
    assert answer.complete == (outcome in ("ok", "empty"))


def test_values_that_are_not_finite_or_outside_the_window_are_dropped() -> None:
    page = [result("m0", t0=math.nan, t300=math.inf, t600=3.0, t900=4.0)]

    assert merge_pages([CPU], [page], 300, 900)[CPU].values == {600: 3.0}


def test_a_series_of_nothing_but_nan_is_empty() -> None:
    assert merge_pages([CPU], [[result("m0", t0=math.nan)]], 0, 300)[CPU].outcome == "empty"


@pytest.mark.parametrize(
    ("count", "start", "end", "period", "message"),
    [
        (0, 0, 300, 300, "0 queries"),
        (501, 0, 300, 300, "501 queries"),
        (500, 0, 202 * 300, 300, "101000 datapoints"),
        (1, 10, 310, 300, "not a window of whole periods"),
        (1, 300, 610, 300, "not a window of whole periods"),
        (1, 300, 300, 300, "not a window of whole periods"),
    ],
)
def test_what_one_call_cannot_answer_is_refused(count: int, start: int, end: int, period: int, message: str) -> None:
    queries = [MetricQuery(f"i-{k:x}", "cpu", (("InstanceId", f"i-{k:x}"),)) for k in range(count)]

    with pytest.raises(ValueError, match=message):
        check_limits(queries, start, end, period)


def test_the_greatest_call_cloudwatch_allows_is_allowed() -> None:
    queries = [MetricQuery(f"i-{k:x}", "cpu", (("InstanceId", f"i-{k:x}"),)) for k in range(480)]

    check_limits(queries, 0, 210 * 300, 300)  # 100,800 datapoints


def test_the_same_query_twice_in_a_call_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        check_limits([CPU, CPU], 0, 300, 300)


def dims(**names: str) -> Dimensions:
    return tuple(sorted({"InstanceId": "i-0a", **names}.items()))


PLAIN = dims()
USUAL = dims(ImageId="ami-1", InstanceType="m5.large")
STALE_TYPE = dims(InstanceType="t3.large")
OTHER_IMAGE = dims(ImageId="ami-2", InstanceType="m5.large")
PER_HOST = dims(host="worker-1")


@pytest.mark.parametrize(
    ("listed", "instance_type", "silent", "expected"),
    [
        pytest.param([], "m5.large", [], (), id="no agent"),
        pytest.param([USUAL, PLAIN], "m5.large", [], (PLAIN,), id="fewest dimensions"),
        pytest.param([PER_HOST, USUAL], "m5.large", [], (USUAL,), id="unknown dimension names last"),
        pytest.param([STALE_TYPE, USUAL], "m5.large", [], (USUAL,), id="another instance type last"),
        pytest.param([STALE_TYPE, PER_HOST], "m5.large", [], (PER_HOST,), id="a mismatch weighs more than unknown names"),
        pytest.param([STALE_TYPE, USUAL], None, [], (STALE_TYPE,), id="unknown instance type mismatches nothing"),
        pytest.param([OTHER_IMAGE, USUAL], "m5.large", [], (USUAL, OTHER_IMAGE), id="a tie is all of them, lexical"),
        pytest.param([PLAIN, USUAL], "m5.large", [PLAIN], (USUAL,), id="a silent one is passed over"),
        pytest.param([PLAIN], "m5.large", [PLAIN], (PLAIN,), id="unless there is no other"),
        pytest.param([STALE_TYPE], "m5.large", [], (STALE_TYPE,), id="a mismatch is better than nothing"),
    ],
)
def test_the_memory_series_most_likely_to_speak_is_chosen(
    listed: list[Dimensions], instance_type: str | None, silent: list[Dimensions], expected: tuple[Dimensions, ...]
) -> None:
    listing = Listing(1, 0, {"i-0a": tuple(listed), "i-0b": ((("InstanceId", "i-0b"),),)})

    assert memory_series(listing, "i-0a", instance_type, frozenset(silent)) == expected


def client_error(code: str, message: str = "AWS says so", operation: str = "GetMetricData") -> boto_errors.ClientError:
    return boto_errors.ClientError({"Error": {"Code": code, "Message": message}}, operation)


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (boto_errors.NoCredentialsError(), "no AWS credentials were found; give the exporter an instance profile"),
        (
            boto_errors.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
            "(Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY)",
        ),
        (client_error("ExpiredToken"), "the session token has expired; renew the AWS credentials"),
        (client_error("ExpiredTokenException"), "the session token has expired"),
        (client_error("UnrecognizedClientException"), "does not know or accept the access key; check AWS_ACCESS_KEY_ID"),
        (client_error("InvalidClientTokenId"), "the account has region eu-west-1 enabled"),
        (
            client_error("SignatureDoesNotMatch", "Signature expired: 20200101T000000Z is now earlier"),
            "set this machine's clock",
        ),
        (client_error("SignatureDoesNotMatch", "The request signature we calculated"), "check AWS_ACCESS_KEY_ID"),
        (client_error("AccessDenied"), "cloudwatch:GetMetricData is not allowed (AWS says so); allow this action"),
        (client_error("AccessDeniedException", operation="ListMetrics"), "cloudwatch:ListMetrics is not allowed"),
        (client_error("AccessDenied", operation="AssumeRole"), "sts:AssumeRole is not allowed"),
        (client_error("Throttling"), "AWS throttled cloudwatch:GetMetricData in all attempts"),
        (client_error("ThrottlingException"), "raise cloudwatch.interval or the account's quota"),
        (client_error("429", ""), "AWS throttled"),
        (client_error("InternalServiceFault"), "AWS had an internal error (InternalServiceFault)"),
        (client_error("503"), "AWS had an internal error (503)"),
        (boto_errors.InvalidRegionError(region_name="not a region"), "'eu-west-1' is not a region; correct the region of the"),
        (
            boto_errors.EndpointConnectionError(endpoint_url="https://monitoring.eu-west-1.amazonaws.com/"),
            "https://monitoring.eu-west-1.amazonaws.com/ cannot be reached; check that the region exists",
        ),
        (boto_errors.ConnectTimeoutError(endpoint_url="x"), "no answer in time"),
        (boto_errors.ReadTimeoutError(endpoint_url="x"), "no answer in time"),
        (boto_errors.ConnectionClosedError(endpoint_url="x"), "closed before the answer was complete"),
        (boto_errors.SSLError(endpoint_url="https://x", error=OSError("bad")), "https://x cannot be reached"),
        (ResponseParserError("no XML"), "the answer is not AWS's (no XML); check cloudwatch.endpoint_url"),
        (FileNotFoundError(2, "No such file", "/token"), "the AWS credentials cannot be read"),
        (client_error("SomethingNew"), "cloudwatch:GetMetricData failed (AWS says so)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_becomes_one_sentence_with_the_way_out(error: Exception, way_out: str) -> None:
    translated = translate(error, "eu-west-1", "GetMetricData")

    assert type(translated) is SourceError
    assert (translated.source, translated.region) == ("cloudwatch", "eu-west-1")
    assert str(translated).startswith("CloudWatch in eu-west-1: ")
    assert way_out in str(translated)
    assert "\n" not in str(translated)


@pytest.mark.parametrize(
    "code", ["ValidationError", "InvalidParameterValue", "InvalidParameterCombination", "InvalidParameterValueException"]
)
def test_content_that_cloudwatch_refuses_is_a_rejected_query_but_only_of_get_metric_data(code: str) -> None:
    assert isinstance(translate(client_error(code), "eu-west-1", "GetMetricData"), RejectedQueryError)
    assert type(translate(client_error(code, operation="AssumeRole"), "eu-west-1", "GetMetricData")) is SourceError


def _boto_classes() -> list[type[boto_errors.BotoCoreError]]:
    found = [each for _, each in inspect.getmembers(boto_errors, inspect.isclass)]
    return [each for each in found if issubclass(each, boto_errors.BotoCoreError)]


@pytest.mark.parametrize("kind", _boto_classes(), ids=lambda kind: kind.__name__)
def test_every_error_class_of_botocore_is_mapped(kind: type[boto_errors.BotoCoreError]) -> None:
    fields = {name for _, name, _, _ in string.Formatter().parse(kind.fmt) if name}
    error = kind(**dict.fromkeys({*fields, "last_response"}, "something"))

    translated = translate(error, "eu-west-1", "GetMetricData")

    assert translated.code == kind.__name__
    assert "; " in str(translated), "every sentence says the way out"


def test_an_error_botocore_has_yet_to_invent_becomes_a_source_error_too() -> None:
    class BrandNewError(boto_errors.BotoCoreError):
        fmt = "something nobody knew"

    translated = translate(BrandNewError(), "eu-west-1", "ListMetrics")

    assert translated.code == "BrandNewError"
    assert "cloudwatch:ListMetrics failed (something nobody knew)" in str(translated)


def test_a_bucket_lets_a_burst_pass_and_then_spaces_requests_at_its_rate() -> None:
    clock = [100.0]
    bucket = TokenBucket(4, lambda: clock[0])

    assert [bucket.take() for _ in range(6)] == [0, 0, 0, 0, 0.25, 0.5]
    clock[0] += 10
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, 0, 0.25], "it never saves up more than a second's worth"


def test_the_allowed_skew_is_five_minutes() -> None:
    assert MAX_SKEW_SECONDS == 300
