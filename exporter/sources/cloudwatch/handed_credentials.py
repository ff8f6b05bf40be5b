"""Credentials that one botocore session hands to another, and what goes wrong when they are read."""

from collections.abc import Callable
from typing import TypeVar

import botocore.exceptions as boto_errors
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.parsers import ResponseParserError

from exporter.sources.cloudwatch.errors import CallError, UnreadableCredentialsError

T = TypeVar("T")


class HandedCredentials(Credentials):
    """Credentials of another session, read there whenever a request is signed; so they are renewed there, too.

    Args:
        source: the other session's credentials, static or refreshable.
    """

    def __init__(self, source: Credentials) -> None:
        super().__init__("", "", method=source.method)
        self._source = source

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the keys that count now.

        Raises:
            UnreadableCredentialsError: their source cannot be read or holds something else.
        """
        return readable(self._source.get_frozen_credentials)


def readable(read: Callable[[], T]) -> T:
    """Return what `read` returns; name every error that is not AWS's, such as a missing token file, as one of credentials.

    Raises:
        UnreadableCredentialsError: the source of the credentials cannot be read or holds something else.
        BotoCoreError, ClientError, ResponseParserError, CallError: as `read` raised them.
    """
    try:
        return read()
    except (boto_errors.BotoCoreError, boto_errors.ClientError, ResponseParserError, CallError):
        raise
    except Exception as error:
        # botocore's providers let through what files and processes that hold anything else lead to (ValueError, KeyError, …).
        raise UnreadableCredentialsError(error) from error
