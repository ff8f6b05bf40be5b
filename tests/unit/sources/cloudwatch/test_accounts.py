"""Which account is asked for what, and what the answers of several accounts say together."""

import pytest

from exporter.core.aws_settings import AwsSettings
from exporter.core.errors import SourceError
from exporter.core.model import Listing, MetricQuery, MetricResult, MetricResults
from exporter.core.settings import CloudWatchSettings
from exporter.sources.cloudwatch.accounts import Access, accesses, combined, divided, merged, unlisted_results
from exporter.sources.cloudwatch.answers import Malformed
from exporter.sources.cloudwatch.queries import build_queries, cloudwatch_metrics, owners

A, B, C = "111111111111", "222222222222", "333333333333"
REGION = "eu-west-1"
METRICS = cloudwatch_metrics(CloudWatchSettings())


def settings(*roles: dict[str, object], linked: bool = False) -> AwsSettings:
    return AwsSettings.model_validate({"roles": roles, "linked_accounts": linked})


def role(account_id: str, **more: object) -> dict[str, object]:
    return {"role_arn": f"arn:aws:iam::{account_id}:role/reader", **more}


def query(instance: str, account: str | None = "") -> MetricQuery:
    return MetricQuery(instance, "cpu", (("InstanceId", instance),), account)


def listing(date: int, *instances: str, account: str, since: int = 0) -> Listing:
    return Listing(date, since, {each: ((("InstanceId", each),),) for each in instances}, dict.fromkeys(instances, account))


def test_the_accesses_of_a_region_are_its_roles_else_the_own_credentials() -> None:
    several = settings(role(A, account="production"), role(B, regions=[" US-East-1 "]), role(C))
    assert [(one.account_id, one.name) for one in accesses(several, "us-east-1")] == [(A, "production"), (B, B), (C, C)]
    assert [one.account_id for one in accesses(several, REGION)] == [A, C]
    assert accesses(settings(role(A, account="production")), REGION)[0].name == "", "errors need not name the only account"
    assert accesses(settings(role(B, regions=["us-east-1"])), REGION) == (Access(),)
    assert accesses(settings(linked=True), REGION) == (Access(linked=True),)


def test_one_account_in_two_roles_is_accepted_where_their_regions_differ() -> None:
    two = settings(role(A, regions=[REGION]), {"role_arn": f"arn:aws:iam::{A}:role/other", "regions": ["us-east-1"]})
    assert len(accesses(two, REGION)) == len(accesses(two, "us-east-1")) == 1


def test_listings_of_several_accounts_keep_each_its_own_window() -> None:
    one, two = accesses(settings(role(A), role(B)), REGION)
    found = {
        one: (listing(1000, "i-1", "i-2", account=A), listing(1000, "i-1", account=A, since=100)),
        two: (listing(400, "i-3", account=B), listing(400, "i-3", account=B, since=50)),
    }
    both = combined(found, (one, two))
    assert (dict(both.accounts), set(both.series)) == ({"i-1": A, "i-2": A, "i-3": B}, {"i-1", "i-3"})
    assert both.window_of("i-2") == (100, 1000), "its account has answered lately"
    assert both.window_of("i-3") == (50, 400)
    assert both.window_of("i-9") == (100, 400), "what is listed nowhere is as certain as the oldest answer"
    assert both.account_of("i-9") is None


def test_before_an_account_has_answered_nothing_is_certain_to_be_nowhere() -> None:
    one, two = accesses(settings(role(A), role(B)), REGION)
    part = combined({one: (listing(1000, "i-1", account=A), listing(1000, "i-1", account=A))}, (one, two))
    assert part.window_of("i-1") == (0, 1000)
    assert part.window_of("i-3") == (0, -1)


def test_an_instance_that_two_accounts_list_is_in_the_first() -> None:
    one, two = accesses(settings(role(A), role(B)), REGION)
    same = {each: (listing(10, "i-1", account=each.account_id),) * 2 for each in (one, two)}
    assert combined(same, (one, two)).account_of("i-1") == A


def test_each_query_goes_to_one_access_and_of_unlisted_instances_to_none() -> None:
    one, two = accesses(settings(role(A), role(B)), REGION)
    queries = [query("i-1", A), query("i-3", B), query("i-9", None), query("i-2", A)]
    parts, unlisted = divided(queries, (one, two), known=True)
    assert parts == [(one, [queries[0], queries[3]]), (two, [queries[1]])]
    assert unlisted == [queries[2]]

    parts, unlisted = divided(queries, (one, two), known=False)
    assert parts[0] == (one, [queries[0], queries[2], queries[3]]), "older than any listing: one is asked, the first"
    assert unlisted == []


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (0, 900, MetricResult("empty", 100, 900, {})),
        (300, 2000, MetricResult("empty", 300, 1000, {})),
        (0, 0, MetricResult("failed", 100, 1000, {})),
        (0, -1201, MetricResult("failed", 100, 1000, {})),
    ],
)
def test_what_no_account_lists_is_empty_as_far_as_the_listings_reach(since: int, until: int, expected: MetricResult) -> None:
    assert unlisted_results([query("i-9", None)], since, until, 100, 1000) == {query("i-9", None): expected}


def test_merged_results_keep_each_account_its_clock_and_its_failure() -> None:
    error = SourceError("cloudwatch", "AccessDenied", "no", region=REGION)
    good = MetricResult("ok", 0, 300, {0: 1.0})
    parts = [MetricResults(20, {query("i-1", A): good}), MetricResults(10, {query("i-3", B): good})]
    both = merged(parts, [([query("i-5", C)], error)], 0, 300)
    assert both.by_query[query("i-5", C)] == MetricResult("failed", 0, 300, {})
    assert (both.date, both.date_of(query("i-1", A)), both.date_of(query("i-3", B))) == (10, 20, 10)
    assert both.failures == (error,)
    assert merged(parts[:1], [], 0, 300) is parts[0]


def test_the_owners_of_listed_metrics_stand_beside_them() -> None:
    metrics = [{"Dimensions": [{"Name": "InstanceId", "Value": each}]} for each in ("i-1", "i-2", "i-3")]
    malformed = Malformed()
    assert owners([(metrics, [A, B])], METRICS["cpu"], malformed) == {"i-1": A, "i-2": B}, "too short: only what it lacks"
    assert malformed == {"listed_metric": 1}
    assert owners([(metrics, []), (metrics, [A, B, C, C])], METRICS["cpu"], malformed) == {"i-1": A, "i-2": B, "i-3": C}
    assert malformed == {"listed_metric": 1}, "a page without any is none of a monitoring account"


def test_a_malformed_owner_costs_only_itself() -> None:
    metrics = [{"Dimensions": [{"Name": "InstanceId", "Value": f"i-{number}"}]} for number in range(6)]
    malformed = Malformed()
    pages: list[tuple[list[object], list[object]]] = [
        ([*metrics[:5], "no metric"], [A, 5, None, {"id": B}, C, A]),
        ([*metrics[5:]], [B]),
    ]
    assert owners(pages, METRICS["cpu"], malformed) == {"i-0": A, "i-4": C, "i-5": B}
    assert malformed == {"listed_metric": 3}


def test_only_a_monitoring_account_is_told_the_account_of_a_metric() -> None:
    queries = [query("i-1", A), query("i-2", "unnamed"), query("i-3", None)]
    assert [each.get("AccountId") for each in build_queries(queries, 300, METRICS, linked=True)] == [A, None, None]
    assert [each.get("AccountId") for each in build_queries(queries, 300, METRICS)] == [None, None, None]
