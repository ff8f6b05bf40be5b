"""Names of AWS regions: their one spelling, and what is none. Pure."""

import re
from typing import Annotated

from pydantic import AfterValidator

_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-[0-9]{1,2}")
"""The form of every region of every partition: eu-west-1, us-gov-west-1, cn-north-1, us-iso-east-1, eusc-de-east-1."""


def normal_region(text: str) -> str:
    """Return a region as it is compared and exposed: without surrounding blanks, in lower case."""
    return text.strip().lower()


def parse_region(text: str) -> str:
    """Return a region without surrounding blanks and in lower case.

    The form is checked, not the existence: AWS opens new regions more often than this exporter is released.

    Raises:
        ValueError: the text has not the form of a region; an availability zone, such as eu-west-1a, is named as one.
    """
    region = normal_region(text)
    if _REGION.fullmatch(region):
        return region
    if _REGION.fullmatch(region[:-1]):
        raise ValueError(f"{text!r} is an availability zone, not a region; write {region[:-1]}")
    raise ValueError(f"{text!r} is not a region; write one such as eu-west-1")


Region = Annotated[str, AfterValidator(parse_region)]
"""A region in a setting."""
