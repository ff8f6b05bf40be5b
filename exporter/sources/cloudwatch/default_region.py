"""The region that boto3 would use by itself."""

import os

import botocore.session
from botocore.exceptions import BotoCoreError


def default_region() -> str | None:
    """Return the region of AWS_REGION, AWS_DEFAULT_REGION, or the profile; None without any, or without that profile."""
    if region := os.environ.get("AWS_REGION"):
        return region
    try:
        region = botocore.session.Session().get_config_variable("region")
    except BotoCoreError:
        return None
    return str(region) if region else None
