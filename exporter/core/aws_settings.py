"""Settings of AWS: endpoints, the roles to assume, and accounts. Credentials come from boto3's default chain."""

import re
from collections.abc import Mapping
from itertools import combinations
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from exporter.core.regions import Region, parse_region
from exporter.core.setting_types import Section, checked_url

ANY_REGION = "*"
"""The key of a URL that counts in every region."""
_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/\S+")


def _endpoints(value: object) -> dict[str, str]:
    if isinstance(value, str):
        return {ANY_REGION: checked_url(value)}
    if not isinstance(value, Mapping) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise ValueError("it must be a URL, or one for each region, such as {eu-west-1: https://host}")
    found: dict[str, str] = {}
    for name, url in value.items():
        region = name if name == ANY_REGION else parse_region(name)
        if region in found:
            raise ValueError(f"{region} is in it twice; keep one of them")
        try:
            found[region] = checked_url(url)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


Endpoints = Annotated[dict[str, str], BeforeValidator(_endpoints)]
"""Region → URL, written as a mapping, or as one URL for all regions."""


def endpoint(endpoints: Mapping[str, str] | None, region: str) -> str | None:
    """Return the URL that is configured for a region; None: botocore chooses the region's own."""
    return endpoints.get(region, endpoints.get(ANY_REGION)) if endpoints else None


class Role(Section):
    """One IAM role to assume: the way into one account."""

    role_arn: str = Field(description="ARN of the role, such as arn:aws:iam::123456789012:role/name.")
    external_id: SecretStr | None = Field(None, description="External id that the role's trust policy requires.")
    regions: list[Region] = Field(default=[], description="Regions in which the role is used; empty: all.")
    account: str | None = Field(
        None,
        description="Name of the role's account in metrics, logs and errors; unset: its id, which is in the ARN.",
        min_length=1,
    )

    @property
    def account_id(self) -> str:
        """The twelve digits of the role's account."""
        match = _ROLE_ARN.fullmatch(self.role_arn)
        assert match is not None, "validated"
        return match[1]

    @model_validator(mode="after")
    def _arn(self) -> Self:
        if not _ROLE_ARN.fullmatch(self.role_arn):
            raise ValueError(f"role_arn {self.role_arn!r} is not the ARN of a role; write arn:aws:iam::123456789012:role/name")
        return self


class AwsSettings(Section):
    """The AWS accounts; credentials come from boto3's default chain."""

    roles: list[Role] = Field(
        default=[],
        description="IAM roles to assume, one for each account: [{role_arn, external_id, regions, account}]. Where no role is "
        "for a region, the exporter's own credentials are used.",
    )
    linked_accounts: bool = Field(
        False,
        description="Whether the credentials are those of a monitoring account of CloudWatch cross-account observability; the "
        "instances of its linked source accounts are then found without a role for each.",
    )
    sts_endpoint_url: Endpoints | None = Field(
        None,
        description="URL of another STS endpoint, such as a VPC endpoint, or a mapping of them by region; unset: "
        "AWS_ENDPOINT_URL_STS, else the region's.",
    )

    def roles_in(self, region: str) -> list[Role]:
        """Return the roles that are used in a region, in the order of the settings; none: the own credentials are used."""
        return [role for role in self.roles if not role.regions or region in role.regions]

    @model_validator(mode="after")
    def _one_way_into_each_account(self) -> Self:
        for one, other in combinations(self.roles, 2):
            both = not one.regions or not other.regions or {*one.regions} & {*other.regions}
            if one.account_id == other.account_id and both:
                raise ValueError(
                    f"roles: {one.role_arn} and {other.role_arn} are in the same account, so its metrics would be billed "
                    "twice; keep one of them, or give each its own regions"
                )
            if self.linked_accounts and both:
                raise ValueError(
                    "linked_accounts: it is for one monitoring account a region; keep one role, that of the monitoring "
                    "account, or set it to false"
                )
        return self
