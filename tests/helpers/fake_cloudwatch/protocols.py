"""Requests and answers in the three protocols: awsJson1_0 (botocore), Smithy RPC v2 CBOR (Go), query (older SDKs for Java).

STS and IAM speak the query protocol alone.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import parse_qsl

import cbor2
import orjson

STS = "https://sts.amazonaws.com/doc/2011-06-15/"
IAM = "https://iam.amazonaws.com/doc/2010-05-08/"
_SCOPE = re.compile(r"Credential=([^/,]+)/\d+/([^/]+)/")
_RPC_V2 = "/service/GraniteServiceVersion20100801/operation/"
_METRIC_OPERATIONS = ("GetMetricData", "ListMetrics")
CONTENT_TYPES = {"json": "application/x-amz-json-1.0", "cbor": "application/cbor", "query": "text/xml"}
EXTRA = {"json": "", "cbor": "smithy-protocol: rpc-v2-cbor\r\n", "query": ""}
"""Further lines of the head."""
_CLOUDWATCH = "http://monitoring.amazonaws.com/doc/2010-08-01/"

Result = tuple[str, str, Sequence[int], Sequence[float], bool]
"""One query of GetMetricData: id, label, starts and values of the page, whether it is complete."""


@dataclass(frozen=True)
class Request:
    region: str
    key: str
    operation: str
    protocol: Literal["json", "cbor", "query"]
    body: Mapping[str, Any]
    partial: bool = False
    """Whether a fault leaves out the newest datapoints."""

    @property
    def is_json(self) -> bool:
        return self.protocol == "json"

    @property
    def is_cloudwatch(self) -> bool:
        return self.protocol != "query" or self.operation in _METRIC_OPERATIONS


@dataclass
class Reply:
    status: int
    content_type: str
    body: bytes
    extra: str = ""


class RefusedError(Exception):
    """A request that AWS answers with an error: code, message."""


def parse(path: str, headers: Mapping[str, str], body: bytes) -> Request:
    scope = _SCOPE.search(headers.get("authorization", ""))
    key, region = scope.groups() if scope else ("", "")
    if "x-amz-target" in headers:
        return Request(region, key, headers["x-amz-target"].rpartition(".")[2], "json", orjson.loads(body))
    if path.startswith(_RPC_V2):
        fields = cbor2.loads(body) if body else {}
        for name in ("StartTime", "EndTime"):
            if name in fields:
                fields[name] = fields[name].timestamp()
        return Request(region, key, path.removeprefix(_RPC_V2), "cbor", fields)
    form = dict(parse_qsl(body.decode()))
    operation = form.get("Action", "?")
    return Request(region, key, operation, "query", _query_fields(form) if operation in _METRIC_OPERATIONS else form)


def failure(mode: str | None, request: Request) -> Reply | None:
    if mode == "500":
        return Reply(503, "text/html", b"<html>Service Unavailable</html>")
    if mode == "429":
        return Reply(429, "application/x-amz-json-1.0", b"{}")
    denied = f"User: arn:aws:iam::123456789012:user/exporter is not authorized to perform: {request.operation}"
    failures = {
        "throttle": (400, "Throttling", "Rate exceeded"),
        "internal": (500, "InternalFailure" if request.protocol == "query" else "InternalServiceFault", "The request failed."),
        "access_denied": (403 if request.protocol == "query" else 400, "AccessDenied", denied),
        "expired_token": (403, "ExpiredToken", "The security token included in the request is expired"),
        "bad_credentials": (
            403,
            "InvalidClientTokenId" if request.protocol == "query" else "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        "validation": (400, "ValidationError", "The request is not valid."),
    }
    return error(request, *failures[mode]) if mode in failures else None


def error(request: Request, status: int, code: str, message: str) -> Reply:
    extra = f"x-amzn-query-error: {code};Sender\r\n{EXTRA[request.protocol]}"
    fields = {"__type": f"com.amazonaws.cloudwatch#{code}", "message": message}
    if request.protocol == "json":
        return Reply(status, CONTENT_TYPES["json"], orjson.dumps(fields), extra)
    if request.protocol == "cbor":
        return Reply(status, CONTENT_TYPES["cbor"], cbor2.dumps(fields), extra)
    sender = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, "text/xml", f"<ErrorResponse>{sender}<RequestId>r</RequestId></ErrorResponse>".encode())


def xml(operation: str, result: str, namespace: str = STS) -> bytes:
    return (
        f'<{operation}Response xmlns="{namespace}"><{operation}Result>{result}</{operation}Result>'
        f"<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></{operation}Response>"
    ).encode()


def partial(results: list[Result]) -> list[Result]:
    """Every series without its newest datapoint, marked as PartialData."""
    cut: list[Result] = []
    for id, label, starts, values, _ in results:
        newest = max(starts, default=None)
        kept = [(at, value) for at, value in zip(starts, values, strict=True) if at != newest]
        cut.append((id, label, [at for at, _ in kept], [value for _, value in kept], False))
    return cut


# The protocols


def _fields(results: list[Result], token: str, times: Callable[[Sequence[int]], object]) -> dict[str, Any]:
    """Return the answer of GetMetricData; `times` writes timestamps, once for all series with the same ones."""
    written: dict[Sequence[int], object] = {}

    def stamps(starts: Sequence[int]) -> object:
        key = starts if isinstance(starts, range) else tuple(starts)
        if key not in written:
            written[key] = times(starts)
        return written[key]

    answer = {
        "MetricDataResults": [
            {
                "Id": id,
                "Label": label,
                "Timestamps": stamps(starts),
                "Values": values,
                "StatusCode": "Complete" if whole else "PartialData",
            }
            for id, label, starts, values, whole in results
        ],
        "Messages": [],
    }
    return {**answer, "NextToken": token} if token else answer


def _json_times(starts: Sequence[int]) -> orjson.Fragment:
    """Write timestamps as AWS does, such as 1.7672256E9."""
    return orjson.Fragment(f"[{','.join([f'{at / 1e9!r}E9' for at in starts])}]")


def _json_metric_data(results: list[Result], token: str) -> bytes:
    return orjson.dumps(_fields(results, token, _json_times))


def _cbor_metric_data(results: list[Result], token: str) -> bytes:
    return cbor2.dumps(_fields(results, token, lambda starts: [cbor2.CBORTag(1, at) for at in starts]))


def _xml_metric_data(results: list[Result], token: str) -> bytes:
    texts = []
    for id, label, starts, values, whole in results:
        times = "".join([f"<member>{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at))}</member>" for at in starts])
        numbers = "".join([f"<member>{value!r}</member>" for value in values])
        texts.append(
            f"<member><Id>{id}</Id><Label>{label}</Label><Timestamps>{times}</Timestamps><Values>{numbers}</Values>"
            f"<StatusCode>{'Complete' if whole else 'PartialData'}</StatusCode></member>"
        )
    more = f"<NextToken>{token}</NextToken>" if token else ""
    return xml("GetMetricData", f"<MetricDataResults>{''.join(texts)}</MetricDataResults><Messages/>{more}", _CLOUDWATCH)


def _xml_metrics(answer: Mapping[str, Any]) -> bytes:
    texts = []
    for metric in answer["Metrics"]:
        dimensions = "".join(
            [f"<member><Name>{each['Name']}</Name><Value>{each['Value']}</Value></member>" for each in metric["Dimensions"]]
        )
        texts.append(
            f"<member><Namespace>{metric['Namespace']}</Namespace><MetricName>{metric['MetricName']}</MetricName>"
            f"<Dimensions>{dimensions}</Dimensions></member>"
        )
    more = f"<NextToken>{answer['NextToken']}</NextToken>" if "NextToken" in answer else ""
    return xml("ListMetrics", f"<Metrics>{''.join(texts)}</Metrics>{more}", _CLOUDWATCH)


METRIC_DATA: Mapping[str, Callable[[list[Result], str], bytes]] = {
    "json": _json_metric_data,
    "cbor": _cbor_metric_data,
    "query": _xml_metric_data,
}
METRICS: Mapping[str, Callable[[Mapping[str, Any]], bytes]] = {
    "json": orjson.dumps,
    "cbor": cbor2.dumps,
    "query": _xml_metrics,
}


def _query_fields(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a CloudWatch request in the query protocol (`A.member.1.B=x`), as the other protocols have them."""
    tree: dict[str, Any] = {}
    for path, value in form.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = _QUERY_TYPES.get(name, str)(value)

    def lists(node: Any) -> Any:  # noqa: ANN401  # a tree of mappings
        if not isinstance(node, dict):
            return node
        if "member" in node:
            return [lists(each) for _, each in sorted(node["member"].items(), key=lambda item: int(item[0]))]
        return {name: lists(each) for name, each in node.items()}

    fields: dict[str, Any] = lists(tree)
    for query in fields.get("MetricDataQueries", ()):
        query["MetricStat"]["Metric"].setdefault("Dimensions", [])
    return fields


def _query_time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


_QUERY_TYPES: Mapping[str, Callable[[str], object]] = {
    "Period": int,
    "MaxDatapoints": int,
    "StartTime": _query_time,
    "EndTime": _query_time,
    "ReturnData": lambda text: text == "true",
    "IncludeLinkedAccounts": lambda text: text == "true",
}
