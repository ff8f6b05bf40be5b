"""A fast fake CloudWatch and STS over HTTP, for load and fault tests, with a ledger of the final values.

GetMetricData and ListMetrics are answered in the protocol of the request: awsJson1_0 (botocore), Smithy RPC v2 CBOR (the SDK
for Go), or the query protocol (older SDKs for Java). STS and IAM speak the query protocol. The fake stores no datapoints: a
value is a pure function of (seed, instance, metric, start of its native period), and when it becomes visible follows from the
instance's settings, so `ledger` returns the final values of any window.

In a test:

    with FakeCloudWatch(now=clock) as aws:
        aws.add("i-0a", runs=[(start, end)])
        aws.fault("GetMetricData", "throttle", 2)

For load: python -m tests.helpers.fake_cloudwatch --port 5602 --workers 2000 --latency 0.1 --regions eu-west-1,us-east-1
`instance_id(k)` names its instances; `fleet` describes them. GET /ctl returns the counters; POST /ctl, too, as they were before
a reset, with "brief" without `queried`, and takes any of
{"fault": {"operation": "GetMetricData", "mode": "throttle", "count": 3, "region": "*"}, "clear": true, "reset": true,
"set": {"latency": 0.2, "offset": 60, "skew": 0, ...},
"add": [{"id": "i-0a", "region": "eu-west-1", "runs": [[0, null]], "late": [["cpu", 0, 60]]}]}.
`FakeCloudWatchProcess` is such a process for tests, which computes the ledger itself.

Accounts: an instance is in one account, `home` unless given. The keys of the environment are those of `home`, keys from
AssumeRole those of the role's account; each sees its own instances alone. An account in `links` is a monitoring account (AWS
calls it that): with IncludeLinkedAccounts its ListMetrics lists its source accounts too, and a query with an AccountId is
answered from that account. Without the link AWS refuses the whole call, and so does this. `denied` accounts refuse everything.

Billed, as the exporter counts it: all queries of every GetMetricData request that was sent a 200, so each page counts, and so
do bodies cut short; refused, cut or hanging ones do not. `calls` counts every request that arrived.
"""

from tests.helpers.fake_cloudwatch.api import MAX_QUERIES
from tests.helpers.fake_cloudwatch.instances import (
    ALWAYS,
    HOME,
    Instance,
    Instances,
    OtherSeries,
    Run,
    Series,
    fleet,
    instance_id,
)
from tests.helpers.fake_cloudwatch.process import FakeCloudWatchProcess
from tests.helpers.fake_cloudwatch.server import FakeCloudWatch

__all__ = [
    "ALWAYS",
    "HOME",
    "MAX_QUERIES",
    "FakeCloudWatch",
    "FakeCloudWatchProcess",
    "Instance",
    "Instances",
    "OtherSeries",
    "Run",
    "Series",
    "fleet",
    "instance_id",
]
