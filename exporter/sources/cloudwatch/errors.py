"""Translate errors of boto3 and botocore into SourceError; the one place that knows them."""

from collections.abc import Mapping

import botocore.exceptions as boto_errors
from botocore.parsers import ResponseParserError

from exporter.core.errors import RejectedQueryError, SourceError

# Foreign errors: translated here and nowhere else


class _DeadlinePassed(Exception):
    """The call's own deadline; not an error botocore retries."""


class _BudgetSpent(Exception):
    """The day's budget does not pay for the request; it was not sent."""


_FOREIGN = (boto_errors.BotoCoreError, boto_errors.ClientError, ResponseParserError, _DeadlinePassed, _BudgetSpent, OSError)
"""What a call may raise; an OSError comes from a credentials or token file."""

_DENIED = "{action} is not allowed ({message}); allow this action in the IAM policy of the exporter"
_EXPIRED = "the session token has expired; renew the AWS credentials, or let the exporter assume a role that renews itself"
_KEYS = (
    "AWS does not know or accept the access key; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, "
    "and that the account has region {region} enabled"
)
_CLOCK = "AWS refuses the signature for its time ({message}); set this machine's clock (NTP)"
_THROTTLED = (
    "AWS throttled {action} in all attempts; it is asked again at the next round, raise cloudwatch.interval or the account's "
    "quota if this goes on"
)
_REJECTED = "AWS refuses the content of {action} ({message}); check the instance ids of the workers in this call"
_THEIRS = (
    "AWS had an internal error ({code}); it is asked again at the next round, see https://health.aws.amazon.com if it goes on"
)
_NETWORK = (
    "{endpoint} cannot be reached; check that the region exists and is spelled correctly, cloudwatch.endpoint_url, DNS and "
    "the network"
)
_SLOW = "no answer in time; it is asked again at the next round, check the network and cloudwatch.endpoint_url if it goes on"
_CUT = (
    "the connection was closed before the answer was complete; it is asked again at the next round, check proxies if it goes on"
)
_NO_KEYS = (
    "no AWS credentials were found; give the exporter an instance profile or a service account's role, or set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_SOURCE = (
    "the AWS credentials cannot be read ({message}); check where they come from: environment, ~/.aws, instance profile, "
    "token file"
)
_REGION = "{region!r} is not a region; correct the region of the workers that name it"
_GARBLED = "the answer is not AWS's ({message}); check cloudwatch.endpoint_url and proxies"
_SPENT = "cloudwatch.max_usd_per_day does not pay for {action} any more; it goes on after 00:00 UTC, or raise it"
_OTHER = "{action} failed ({message}); it is asked again at the next round"

_BY_CODE: Mapping[str, str] = {
    code: sentence
    for sentence, codes in {
        _DENIED: "AccessDenied AccessDeniedException UnauthorizedOperation NotAuthorized AuthorizationError",
        _EXPIRED: "ExpiredToken ExpiredTokenException TokenRefreshRequired",
        _KEYS: "InvalidClientTokenId UnrecognizedClientException InvalidAccessKeyId AuthFailure SignatureDoesNotMatch "
        "OptInRequired InvalidSignatureException IncompleteSignature IncompleteSignatureException MissingAuthenticationToken "
        "MissingAuthenticationTokenException RegionDisabledException",
        _CLOCK: "RequestTimeTooSkewed RequestExpired RequestInTheFuture",
        _THROTTLED: "Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException "
        "RequestLimitExceeded TooManyRequestsException LimitExceededException SlowDown 429",
        _REJECTED: "ValidationError ValidationException InvalidParameterValue InvalidParameterValueException "
        "InvalidParameterCombination InvalidParameterCombinationException MissingParameter MissingRequiredParameter "
        "MissingRequiredParameterException SerializationException",
        _THEIRS: "InternalFailure InternalServiceFault InternalServiceError InternalServiceException InternalError "
        "ServiceUnavailable ServiceUnavailableException 500 502 503 504",
    }.items()
    for code in codes.split()
}
_BY_CLASS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    ((boto_errors.NoCredentialsError, boto_errors.NoAuthTokenError), _NO_KEYS),
    (
        (
            boto_errors.PartialCredentialsError,
            boto_errors.CredentialRetrievalError,
            boto_errors.MetadataRetrievalError,
            boto_errors.TokenRetrievalError,
            boto_errors.SSOError,
            boto_errors.LoginError,
            boto_errors.ProfileNotFound,
            boto_errors.ConfigNotFound,
            boto_errors.ConfigParseError,
            boto_errors.InvalidConfigError,
            boto_errors.RefreshWithMFAUnsupportedError,
        ),
        _SOURCE,
    ),
    (
        (
            boto_errors.InvalidRegionError,
            boto_errors.UnknownRegionError,
            boto_errors.NoRegionError,
            boto_errors.EndpointProviderError,
        ),
        _REGION,
    ),
    (_BudgetSpent, _SPENT),
    ((_DeadlinePassed, boto_errors.ReadTimeoutError, boto_errors.ConnectTimeoutError), _SLOW),
    (boto_errors.ConnectionError, _NETWORK),
    ((boto_errors.ConnectionClosedError, boto_errors.ResponseStreamingError, boto_errors.IncompleteReadError), _CUT),
    (ResponseParserError, _GARBLED),
    (boto_errors.BotoCoreError, _OTHER),
    (OSError, _SOURCE),
)
"""First match wins; the last but one catches what botocore may invent."""


def translate(error: Exception, region: str, operation: str) -> SourceError:
    """Turn an error of boto into ours: one sentence with the way out.

    Args:
        error: one of `_FOREIGN`.
        region: where.
        operation: what was being done; a ClientError knows better (AssumeRole on the way to GetMetricData).

    Returns:
        RejectedQueryError when CloudWatch refuses the content of GetMetricData, else SourceError.
    """
    message, code = " ".join(str(error).split()), type(error).__name__.lstrip("_")
    endpoint = getattr(error, "kwargs", {}).get("endpoint_url", "the endpoint")
    if isinstance(error, boto_errors.ClientError):
        details = error.response.get("Error", {})
        code, message, operation = details.get("Code", code), details.get("Message", message), error.operation_name
        sentence = _BY_CODE.get(code, _OTHER)
        # The same code is used for a wrong secret and for a wrong clock.
        if sentence is _KEYS and ("xpired" in message or "not yet current" in message):
            sentence = _CLOCK
    else:
        sentence = next(sentence for classes, sentence in _BY_CLASS if isinstance(error, classes))
    service = "sts" if operation in ("AssumeRole", "GetCallerIdentity") else "cloudwatch"
    text = sentence.format(
        action=f"{service}:{operation}", message=message.rstrip("."), code=code, region=region, endpoint=endpoint
    )
    raised = RejectedQueryError if sentence is _REJECTED and operation == "GetMetricData" else SourceError
    return raised("cloudwatch", code, f"CloudWatch in {region}: {text}", region=region)
