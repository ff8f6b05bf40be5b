"""What the fake's operations answer: pages of GetMetricData and ListMetrics with AWS's limits and refusals, and STS."""

import base64
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from exporter.core.model import Dimensions
from tests.helpers.fake_cloudwatch.instances import ALWAYS, DAY, NAMES, Instance, Instances, Run, overlaps, up
from tests.helpers.fake_cloudwatch.protocols import RefusedError, Result, xml

MAX_QUERIES, MAX_DATAPOINTS, LISTED = 500, 100_800, 500
_INSTANCE = re.compile(r"i-[0-9a-f]+")
_ID = re.compile(r"[a-z][a-zA-Z0-9_]*")


class Api(Instances):
    """The operations, without HTTP.

    Attributes that may change at any time: page_datapoints, page_series (of a ListMetrics page), list_lag (seconds until
    ListMetrics lists a new series), role_seconds (how long a role's keys live), links (monitoring account → its source
    accounts).
    """

    def __init__(self, now: Callable[[], float], seed: int, period: int, list_lag: int) -> None:
        super().__init__(now, seed, period)
        self.page_datapoints = MAX_DATAPOINTS
        self.page_series = LISTED
        self.list_lag = list_lag
        self.role_seconds = 3600
        self.links: dict[str, tuple[str, ...]] = {}
        self.assumed: list[tuple[str, str | None]] = []
        """(role, external id) of every AssumeRole."""
        self.tokens: list[str] = []
        """The token of every AssumeRoleWithWebIdentity."""
        self._roles_of_keys: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._listings: dict[int, list[tuple[dict[str, Any], str | None]]] = {}

    # GetMetricData

    def get_metric_data(self, region: str, account: str, body: Mapping[str, Any]) -> tuple[list[Result], str]:
        """Return the results of one page, and the token of the next one or ""."""
        queries = body["MetricDataQueries"]
        for query in queries:
            if query.get("AccountId", account) not in (account, *self.links.get(account, ())):
                raise RefusedError("ValidationError", f"The account {query['AccountId']} is not linked to this account.")
        limit = min(self.page_datapoints, body.get("MaxDatapoints") or MAX_DATAPOINTS)
        self._check(queries, body, limit)
        token = (
            base64.b64decode(body["NextToken"]).decode().split(",")
            if body.get("NextToken")
            else ["0", "0", str(int(self.now()))]
        )
        number, skip, now = map(int, token)  # all pages show one moment
        start, end = int(body["StartTime"]), int(body["EndTime"])
        results: list[Result] = []
        descending = body.get("ScanBy") != "TimestampAscending"
        while number < len(queries) and limit > 0:
            query = queries[number]
            starts, values = self.points(region, query.get("AccountId", account), query["MetricStat"], start, end, now)
            if descending:
                starts, values = starts[::-1], values[::-1]
            if skip or len(starts) > limit:
                page, whole = slice(skip, skip + limit), skip + limit >= len(starts)
                starts, values = starts[page], values[page]
            else:
                whole = True
            limit -= len(starts)
            label = query.get("Label") or query["MetricStat"]["Metric"]["MetricName"]
            results.append((query["Id"], label, starts, values, whole))
            number, skip = (number + 1, 0) if whole else (number, skip + len(starts))
        more = number < len(queries)
        return results, base64.b64encode(f"{number},{skip},{now}".encode()).decode() if more else ""

    def _check(self, queries: Sequence[Mapping[str, Any]], body: Mapping[str, Any], limit: int) -> None:
        if not 0 < len(queries) <= MAX_QUERIES:
            raise RefusedError("ValidationError", "The collection MetricDataQueries must not have a size greater than 500.")
        if len({query["Id"] for query in queries}) < len(queries):
            raise RefusedError("ValidationError", "The values for parameter id in MetricDataQueries are not unique.")
        if not 0 < limit <= MAX_DATAPOINTS:
            raise RefusedError("ValidationError", "MaxDatapoints must be between 1 and 100800.")
        if body["StartTime"] >= body["EndTime"]:
            raise RefusedError("ValidationError", "The parameter StartTime must be less than the parameter EndTime.")
        for query in queries:
            period = query["MetricStat"]["Period"]
            if not _ID.fullmatch(query["Id"]) or period <= 0 or (period % 60 and period not in (1, 5, 10, 20, 30)):
                raise RefusedError("ValidationError", f"Id or Period of {query['Id']} is not valid.")
            for dimension in query["MetricStat"]["Metric"]["Dimensions"]:
                if dimension["Name"] == "InstanceId" and not _INSTANCE.fullmatch(dimension["Value"]):
                    raise RefusedError(
                        "ValidationError", f"The value {dimension['Value']!r} for dimension InstanceId is not valid."
                    )

    # ListMetrics

    def list_metrics(self, region: str, account: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("RecentlyActive") not in (None, "PT3H"):
            raise RefusedError("InvalidParameterValue", "RecentlyActive must be PT3H.")
        if body.get("NextToken"):
            listing, offset = map(int, body["NextToken"].split(":"))
        else:
            listing, offset = time.monotonic_ns(), 0
            window = 3 * 3600 if body.get("RecentlyActive") else 14 * DAY
            linked = bool(body.get("IncludeLinkedAccounts"))
            seen = {account, *(self.links.get(account, ()) if linked else ())}
            if body.get("OwningAccount") and linked:
                seen &= {body["OwningAccount"]}
            self._listings[listing] = [
                (
                    {
                        "Namespace": namespace,
                        "MetricName": name,
                        "Dimensions": [{"Name": n, "Value": v} for n, v in dimensions],
                    },
                    owner if linked else None,
                )
                for owner, (namespace, name), dimensions in self._listed(region, window)
                if owner in seen
                and body.get("Namespace") in (None, namespace)
                and body.get("MetricName") in (None, name)
                and all(_has_dimension(dimensions, each) for each in body.get("Dimensions", ()))
            ]
        metrics = self._listings[listing]
        page = metrics[offset : offset + self.page_series]
        answer: dict[str, Any] = {"Metrics": [metric for metric, _ in page]}
        if any(owner for _, owner in page):
            answer["OwningAccounts"] = [owner for _, owner in page]
        if offset + self.page_series < len(metrics):
            answer["NextToken"] = f"{listing}:{offset + self.page_series}"
        else:
            del self._listings[listing]
        return answer

    def _listed(self, region: str, window: int) -> Iterator[tuple[str, tuple[str, str], Dimensions]]:
        cpu, memory = next(iter(NAMES)), self.memory_metric
        for instance in list(self.instances.values()):
            if instance.region != region:
                continue
            if self._is_active(instance, ALWAYS, window):
                yield instance.account or self.home, cpu, (("InstanceId", instance.id),)
            for series in instance.memory:
                if self._is_active(instance, series.runs, window):
                    yield instance.account or self.home, memory, series.dimensions
            for other in instance.others:
                if self._is_active(instance, other.runs, window):
                    yield instance.account or self.home, (other.namespace, other.name), other.dimensions

    def _is_active(self, instance: Instance, runs: tuple[Run, ...], window: int) -> bool:
        """Whether a datapoint became visible within the window, and the first one so long ago that it got listed."""
        now = int(self.now())
        newest = now - instance.lag - self.period
        return any(
            up(low, self.period) <= newest - self.list_lag and min(newest, high - 1) - newest > -window
            for low, high in overlaps(instance.runs, runs, 0, newest + 1)
        )

    # STS

    def get_caller_identity(self, key: str) -> bytes:
        arn = f"arn:aws:iam::{self.home}:user/exporter"
        if key in self._roles_of_keys:
            arn = f"{self._roles_of_keys[key].replace(':iam:', ':sts:').replace(':role/', ':assumed-role/')}/session"
        account = arn.split(":")[4]
        return xml("GetCallerIdentity", f"<Arn>{arn}</Arn><UserId>AIDA</UserId><Account>{account}</Account>")

    def assume_role(self, operation: str, body: Mapping[str, str]) -> bytes:
        self.assumed.append((body["RoleArn"], body.get("ExternalId")))
        if operation == "AssumeRoleWithWebIdentity":
            self.tokens.append(body["WebIdentityToken"])
        key = f"ASIA{next(self._numbers):016d}"
        self._roles_of_keys[key] = body["RoleArn"]
        # botocore compares it with the machine's clock, so the fake's own plays no part
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.role_seconds))
        return xml(
            operation,
            f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{expires}</Expiration></Credentials>"
            f"<AssumedRoleUser><AssumedRoleId>AROA:s</AssumedRoleId><Arn>{body['RoleArn']}</Arn></AssumedRoleUser>",
        )

    def account_of(self, key: str) -> str:
        """The account of an access key."""
        return self._roles_of_keys[key].split(":")[4] if key in self._roles_of_keys else self.home


def _has_dimension(dimensions: Dimensions, wanted: Mapping[str, str]) -> bool:
    """Whether a series has a dimension of ListMetrics: by name, and by value where one is given."""
    return any(name == wanted["Name"] and wanted.get("Value") in (None, value) for name, value in dimensions)
