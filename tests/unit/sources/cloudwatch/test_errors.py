"""Every error of boto becomes one sentence that says what to do."""

import inspect
import string

import botocore.exceptions as boto_errors
import pytest
from botocore.parsers import ResponseParserError

from exporter.core.errors import RejectedQueryError, SourceError
from exporter.sources.cloudwatch.errors import UnreadableCredentialsError, translate


def client_error(code: str, message: str = "AWS says so", operation: str = "GetMetricData") -> boto_errors.ClientError:
    return boto_errors.ClientError({"Error": {"Code": code, "Message": message}}, operation)


def caused(cause: OSError) -> Exception:
    """Return an error of urllib3 as it is raised from one of the socket."""
    error = Exception("Failed to establish a new connection")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "remedy"),
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
        (
            boto_errors.EndpointConnectionError(endpoint_url="https://x", error=caused(OSError(24, "Too many open files"))),
            "was not sent because of an error of this machine ([Errno 24] Too many open files)",
        ),
        (
            boto_errors.EndpointConnectionError(endpoint_url="https://x", error=caused(OSError(111, "Connection refused"))),
            "https://x cannot be reached",
        ),
        (boto_errors.ConnectTimeoutError(endpoint_url="x"), "no answer in time"),
        (boto_errors.ReadTimeoutError(endpoint_url="x"), "no answer in time"),
        (boto_errors.ConnectionClosedError(endpoint_url="x"), "closed before the answer was complete"),
        (boto_errors.SSLError(endpoint_url="https://x", error=OSError("bad")), "https://x cannot be reached"),
        (ResponseParserError("no XML"), "the answer is not AWS's (no XML); check cloudwatch.endpoint_url"),
        (
            OSError(24, "Too many open files"),
            "was not sent because of an error of this machine ([Errno 24] Too many open files)",
        ),
        (UnreadableCredentialsError(FileNotFoundError(2, "No such file", "/token")), "the AWS credentials cannot be read"),
        (client_error("SomethingNew"), "cloudwatch:GetMetricData failed (AWS says so)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_becomes_one_sentence_with_the_remedy(error: Exception, remedy: str) -> None:
    translated = translate(error, "eu-west-1", "GetMetricData")

    assert type(translated) is SourceError
    assert (translated.source, translated.region) == ("cloudwatch", "eu-west-1")
    assert str(translated).startswith("CloudWatch in eu-west-1: ")
    assert remedy in str(translated)
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
    assert "; " in str(translated), "every sentence says what to do"


def test_an_unknown_class_of_botocore_becomes_a_source_error_too() -> None:
    class BrandNewError(boto_errors.BotoCoreError):
        fmt = "something new"

    translated = translate(BrandNewError(), "eu-west-1", "ListMetrics")

    assert translated.code == "BrandNewError"
    assert "cloudwatch:ListMetrics failed (something new)" in str(translated)
