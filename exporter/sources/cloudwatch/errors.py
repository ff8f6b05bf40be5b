"""Translate errors of boto3 and botocore into SourceError: one table of sentences, by AWS error code and by class.

`transport` raises a few of botocore's own errors, because botocore retries only those. No other module knows them.
"""

import errno
from collections.abc import Mapping

import botocore.exceptions as boto_errors
from botocore.parsers import ResponseParserError

from exporter.core.errors import ExporterError, ReaderBudgetError, RejectedQueryError, SourceError
from exporter.core.model import Listing


class CallError(ExporterError):
    """A call that the exporter itself ended; passes through botocore without a retry and never leaves this package."""

    code: str


class DeadlinePassedError(CallError):
    """The deadline of the call has passed."""

    code = "DeadlinePassed"


class BodyTooLargeError(CallError):
    """The body of an answer is larger than any that CloudWatch sends; the rest of it was not read."""

    code = "BodyTooLarge"


class BudgetSpentError(CallError):
    """The day's budget does not cover the request; it was not sent."""

    code = "BudgetSpent"


class ReaderBudgetSpentError(CallError):
    """The readers' share of the day's budget does not cover the request; it was not sent."""

    code = "ReaderBudgetSpent"


class QueriesNotInsertedError(CallError):
    """This botocore writes requests in another form, so the queries must go through its serializer; nothing was sent."""

    code = "QueriesNotInserted"


class MissingCredentialsError(CallError):
    """boto3 finds no credentials; no request was sent."""

    code = "NoCredentialsError"


class UnreadableCredentialsError(CallError):
    """A source of credentials, such as a token file or the output of a process, cannot be read; no request was sent."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause) if isinstance(cause, OSError) else f"{type(cause).__name__}: {cause}")
        self.code = type(cause).__name__


class PartialListingError(SourceError):
    """ListMetrics failed in some accounts of a region; `listing` has the others, and what these answered before."""

    def __init__(self, listing: Listing, errors: Mapping[str, SourceError]) -> None:
        first = next(iter(errors.values()))
        super().__init__("cloudwatch", first.code, "; ".join(map(str, errors.values())), region=first.region)
        self.listing = listing
        self.errors = tuple(errors.values())
        self.accounts = frozenset(errors)
        """The ids of the accounts that failed."""


FOREIGN_ERRORS = (boto_errors.BotoCoreError, boto_errors.ClientError, ResponseParserError, CallError, OSError)
"""What a call may raise; an OSError is one of this machine, such as no free descriptor or a missing CA bundle."""

_DENIED = "{action} is not allowed ({message}); allow this action in the IAM policy of the exporter"
_EXPIRED = "the session token has expired; renew the AWS credentials, or let the exporter assume a role that renews itself"
_KEYS = (
    "AWS does not know or accept the access key; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, "
    "and that the account has region {region} enabled"
)
_CLOCK = "AWS refuses the signature because of its time ({message}); set this machine's clock (NTP)"
_SERVICES = {
    "AssumeRole": "sts",
    "AssumeRoleWithWebIdentity": "sts",
    "GetCallerIdentity": "sts",
    "GetRoleCredentials": "sso",
    "CreateToken": "sso-oidc",
}
"""Operation → its service, where that is not CloudWatch."""
THROTTLED = (
    "AWS throttled {action} in all attempts; the exporter tries again in the next cycle, raise cloudwatch.interval or the "
    "account's quota if this continues"
)
_REJECTED = "AWS refuses the content of {action} ({message}); check the instance ids of the workers in this call"
_INTERNAL = (
    "AWS had an internal error ({code}); the exporter tries again in the next cycle, see https://health.aws.amazon.com if this "
    "continues"
)
_NETWORK = (
    "{endpoint} cannot be reached; check that the region exists and is spelled correctly, cloudwatch.endpoint_url, "
    "aws.sts_endpoint_url, DNS and the network"
)
_TIMEOUT = (
    "no answer in time; the exporter tries again in the next cycle, check the network and cloudwatch.endpoint_url if this "
    "continues"
)
_CUT = (
    "the connection was closed before the answer was complete; the exporter tries again in the next cycle, check proxies if "
    "this continues"
)
_NO_KEYS = (
    "no AWS credentials were found; give the exporter an instance profile or a service account's role, or set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_CREDENTIALS = (
    "the AWS credentials cannot be read ({message}); check their source: environment, ~/.aws, instance profile, token file"
)
_MACHINE = (
    "{action} was not sent because of an error of this machine ({message}); check open files, memory, and the CA bundle "
    "(AWS_CA_BUNDLE)"
)
_REGION = "{region!r} is not a region; correct the region of the workers that name it"
_GARBLED = "the answer is not AWS's ({message}); check cloudwatch.endpoint_url and proxies"
_TOO_LARGE = (
    "the answer to {action} is larger than 32 MB, so it is not CloudWatch's and was not read; check cloudwatch.endpoint_url "
    "and proxies"
)
_SPENT = "cloudwatch.max_usd_per_day is spent, so {action} was not sent; polling resumes at 00:00 UTC, or raise the setting"
_READERS_SPENT = (
    "HTTP readers have spent their share of today's CloudWatch budget, so {action} was not sent; gauges and history go on, try "
    "again after 00:00 UTC, or raise cloudwatch.reader_budget_share or cloudwatch.max_usd_per_day"
)
_OTHER = "{action} failed ({message}); the exporter tries again in the next cycle"

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

SENTENCE_BY_CODE: Mapping[str, str] = {
    code: sentence
    for sentence, codes in {
        _DENIED: "AccessDenied AccessDeniedException UnauthorizedOperation NotAuthorized AuthorizationError",
        _EXPIRED: "ExpiredToken ExpiredTokenException TokenRefreshRequired",
        _KEYS: "InvalidClientTokenId UnrecognizedClientException InvalidAccessKeyId AuthFailure SignatureDoesNotMatch "
        "OptInRequired InvalidSignatureException IncompleteSignature IncompleteSignatureException MissingAuthenticationToken "
        "MissingAuthenticationTokenException RegionDisabledException",
        _CLOCK: "RequestTimeTooSkewed RequestExpired RequestInTheFuture",
        THROTTLED: "Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException "
        "RequestLimitExceeded TooManyRequestsException LimitExceededException SlowDown 429",
        _REJECTED: "ValidationError ValidationException InvalidParameterValue InvalidParameterValueException "
        "InvalidParameterCombination InvalidParameterCombinationException MissingParameter MissingRequiredParameter "
        "MissingRequiredParameterException SerializationException",
        _INTERNAL: "InternalFailure InternalServiceFault InternalServiceError InternalServiceException InternalError "
        "ServiceUnavailable ServiceUnavailableException 500 502 503 504",
    }.items()
    for code in codes.split()
}
"""The message for each AWS error code."""

_SENTENCE_BY_CLASS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    ((MissingCredentialsError, boto_errors.NoCredentialsError, boto_errors.NoAuthTokenError), _NO_KEYS),
    (
        (
            UnreadableCredentialsError,
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
        _CREDENTIALS,
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
    (BudgetSpentError, _SPENT),
    (BodyTooLargeError, _TOO_LARGE),
    (ReaderBudgetSpentError, _READERS_SPENT),
    ((DeadlinePassedError, boto_errors.ReadTimeoutError, boto_errors.ConnectTimeoutError), _TIMEOUT),
    (boto_errors.ConnectionError, _NETWORK),
    ((boto_errors.ConnectionClosedError, boto_errors.ResponseStreamingError, boto_errors.IncompleteReadError), _CUT),
    (ResponseParserError, _GARBLED),
    (boto_errors.BotoCoreError, _OTHER),
    (OSError, _MACHINE),
)
"""The message for each class of error. The first match wins; BotoCoreError catches classes that botocore adds later."""


def translate(error: Exception, region: str, operation: str, account: str = "") -> SourceError:
    """Return the SourceError for an error of boto: one sentence that says what to do.

    Args:
        error: one of FOREIGN_ERRORS.
        region: the region that was queried.
        operation: the AWS operation of the call. A ClientError names its own (AssumeRole on the way to GetMetricData).
        account: names the account in the sentence; empty where there is only one.

    Returns:
        RejectedQueryError when CloudWatch refuses the content of GetMetricData, ReaderBudgetError when the readers' share is
        spent, else SourceError.
    """
    message, code = " ".join(str(error).split()), error_code(error)
    endpoint = getattr(error, "kwargs", {}).get("endpoint_url", "the endpoint")
    if isinstance(error, boto_errors.ClientError):
        details = error.response.get("Error", {})
        code, message, operation = details.get("Code", code), details.get("Message", message), error.operation_name
        sentence = SENTENCE_BY_CODE.get(code, _OTHER)
        # The same code is used for a wrong secret and for a wrong clock.
        if sentence is _KEYS and ("xpired" in message or "not yet current" in message):
            sentence = _CLOCK
    elif exhausted := _exhausted(error):
        sentence, message = _MACHINE, str(exhausted)
    else:
        sentence = next(sentence for classes, sentence in _SENTENCE_BY_CLASS if isinstance(error, classes))
    service = _SERVICES.get(operation, "cloudwatch")
    text = sentence.format(
        action=f"{service}:{operation}", message=message.rstrip("."), code=code, region=region, endpoint=endpoint
    )
    raised = SourceError
    if sentence is _REJECTED and operation == "GetMetricData":
        raised = RejectedQueryError
    elif sentence is _READERS_SPENT:
        raised = ReaderBudgetError
    place = f"{region}, account {account}" if account else region
    return raised("cloudwatch", code, f"CloudWatch in {place}: {text}", region=region)


def _exhausted(error: Exception) -> OSError | None:
    """Return why a connection failed, if this machine has no descriptor, memory or port left for it."""
    cause = getattr(error, "kwargs", {}).get("error")
    while isinstance(cause, BaseException) and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause if isinstance(cause, OSError) and cause.errno in _EXHAUSTED else None


def error_code(error: Exception) -> str:
    """Return the `code` label of an error that has no code of AWS."""
    return error.code if isinstance(error, CallError) else type(error).__name__


def is_unparsable(error: Exception) -> bool:
    """Return whether botocore could not parse the answer: the only failed attempt for which it calls no hook."""
    return isinstance(error, ResponseParserError)


def are_credentials_stale(error: SourceError) -> bool:
    """Return whether the credentials must be read again before the next call: they expired or were refused."""
    return SENTENCE_BY_CODE.get(error.code) in (_EXPIRED, _KEYS)


def is_refused(error: SourceError) -> bool:
    """Return whether AWS refuses the request for what it asks: its content, or an action that is not allowed."""
    return SENTENCE_BY_CODE.get(error.code) in (_REJECTED, _DENIED)
