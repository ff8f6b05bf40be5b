"""boto3 sessions and clients by region and role: credentials, endpoints, and the hooks of every client."""

import logging
from collections.abc import Callable
from datetime import datetime
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, Credentials, DeferredRefreshableCredentials
from botocore.loaders import Loader

from exporter import __version__
from exporter.core.aws_settings import Role, endpoint
from exporter.core.errors import SourceError
from exporter.core.settings import Settings
from exporter.sources.cloudwatch.errors import FOREIGN_ERRORS, DeadlinePassedError, MissingCredentialsError
from exporter.sources.cloudwatch.handed_credentials import HandedCredentials, readable
from exporter.sources.cloudwatch.transport import ATTEMPTS, THREADS, RegionState, timestamp_seconds

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_sts import STSClient

CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS = 3, 15
_SETTING = {"cloudwatch": "cloudwatch.endpoint_url", "sts": "aws.sts_endpoint_url"}
"""The setting of each service's endpoint."""


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


# It logs every failed renewal with a traceback. The error itself is raised, translated, and logged as that of the source.
logging.getLogger("botocore.credentials").addFilter(_without_traceback)

Attach = Callable[["CloudWatchClient | STSClient | BaseClient", RegionState], object]


class _CredentialSession(botocore.session.Session):
    """The session in which credentials are found, by boto3's default chain, and in which roles are assumed.

    Its timestamps are datetimes, since botocore computes with the expiry of credentials. The clients that botocore makes here
    on its own (STS for a web identity or for the role of a profile, SSO) get this exporter's endpoint, timeouts and hooks.
    """

    def __init__(
        self, prepare: "Callable[[str, Config | None], tuple[str | None, Config]]", attach: "Callable[[BaseClient], object]"
    ) -> None:
        super().__init__()
        self._prepare = prepare
        self._attach = attach

    def create_client(self, service_name: str, *args: Any, **options: Any) -> "BaseClient":  # noqa: ANN401  # as botocore's
        """Return a client with this exporter's endpoint, timeouts and hooks."""
        url, options["config"] = self._prepare(service_name, options.get("config"))
        if options.get("endpoint_url") is None:
            options["endpoint_url"] = url
        client: BaseClient = super().create_client(service_name, *args, **options)
        self._attach(client)
        return client


class _AssumedRole:
    """The keys of a role; botocore has them fetched when they are first needed, and before they expire."""

    def __init__(self, session: _CredentialSession, role: Role) -> None:
        self._session = session
        self._role = role

    @cached_property
    def _sts(self) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
        _found(self._session)
        return self._session.create_client("sts")

    def fetch(self) -> dict[str, str]:
        """Assume the role and return its keys as botocore's refreshable credentials take them."""
        request: dict[str, Any] = {"RoleArn": self._role.role_arn, "RoleSessionName": "cml-worker-exporter"}
        if self._role.external_id:
            request["ExternalId"] = self._role.external_id.get_secret_value()
        keys = self._sts.assume_role(**request)["Credentials"]
        expires: datetime = keys["Expiration"]
        return {
            "access_key": keys["AccessKeyId"],
            "secret_key": keys["SecretAccessKey"],
            "token": keys["SessionToken"],
            "expiry_time": expires.isoformat(),
        }


class _HandedProvider(CredentialProvider):
    """Hands credentials that were found in another session to this one."""

    METHOD = "cml-handed"

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> Credentials:
        """Return the credentials."""
        return self._credentials


class ClientFactory:
    """Makes the boto3 clients of every region and role; safe for threads.

    Args:
        settings: endpoints.
        attach: registers the request hooks of a new client.
    """

    def __init__(self, settings: Settings, attach: Attach) -> None:
        self._endpoints = {"cloudwatch": settings.cloudwatch.endpoint_url, "sts": settings.aws.sts_endpoint_url}
        self._attach = attach

    def client(self, state: RegionState, service: str) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
        """Return the client of a service ("cloudwatch" or "sts") in a region, made at first use.

        Raises:
            Any of FOREIGN_ERRORS: the credentials are missing or cannot be read, or the region is malformed.
            SourceError: the endpoint is not a URL.
            DeadlinePassedError: another call still waits for the credentials.
        """
        # A credential_process that hangs keeps the lock: without a limit each call of each cycle would leave a thread here.
        if not state.lock.acquire(timeout=READ_TIMEOUT_SECONDS):
            raise DeadlinePassedError
        try:
            client = state.clients.get(service)
            if client is None:  # another thread may call `forget` at any point, so nothing is read twice
                session = state.session or self._session(state)
                client = self._connect(state, session, service)
                state.session, state.clients[service] = session, client
            return client
        finally:
            state.lock.release()

    def _session(self, state: RegionState) -> boto3.Session:
        """Return the session of CloudWatch: its timestamps are numbers, its credentials come from a session of their own."""
        session = botocore.session.Session()
        session.register_component("data_loader", _loader())
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp_seconds)
        provider = _HandedProvider(HandedCredentials(self._credentials(state)))
        session.register_component("credential_provider", CredentialResolver([provider]))
        return boto3.Session(botocore_session=session)

    def _credentials(self, state: RegionState) -> Credentials:
        """Return credentials that renew themselves: those of the role, else those that the default chain finds."""
        session = _CredentialSession(partial(self._prepare, state), lambda client: self._attach(client, state))
        session.register_component("data_loader", _loader())
        # Else botocore would take the region of ~/.aws for STS, or none.
        session.set_config_variable("region", state.region)
        if state.role is None:
            return _found(session)
        fetch = _AssumedRole(session, state.role).fetch
        return DeferredRefreshableCredentials(refresh_using=fetch, method="cml-assume-role")

    def _prepare(self, state: RegionState, service: str, config: Config | None = None) -> tuple[str | None, Config]:
        """Return the endpoint, None for botocore's choice, and the configuration of a client; `config` wins."""
        ours = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            max_pool_connections=THREADS,
            # CloudWatch checks 500 queries anyway; here it takes a third of a call's time.
            parameter_validation=service != "cloudwatch",
            tcp_keepalive=True,
            user_agent_extra=f"cml-worker-exporter/{__version__}",
        )
        return endpoint(self._endpoints.get(service), state.region), ours.merge(config) if config else ours

    def _connect(self, state: RegionState, session: boto3.Session, service: str) -> Any:  # noqa: ANN401  # as `client`
        url, config = self._prepare(state, service)
        try:
            client = session.client(service, region_name=state.region, endpoint_url=url, config=config)  # type: ignore[call-overload]  # the service is a variable
        except FOREIGN_ERRORS:
            raise
        except ValueError as error:
            raise SourceError(
                "cloudwatch",
                "InvalidEndpoint",
                f"CloudWatch in {state.region}: {url or error} is not an address; correct {_SETTING[service]}",
                region=state.region,
            ) from error
        self._attach(client, state)
        return client


@cache
def _loader() -> Loader:
    """Return what loads botocore's data files: 50 ms for CloudWatch's and STS's, the same for every session of the process."""
    loader: Loader = botocore.session.Session().get_component("data_loader")
    return loader


def _found(session: botocore.session.Session) -> Credentials:
    """Return the credentials of the default chain; refuse a session without any: it would never look for them again."""
    credentials = readable(session.get_credentials)
    if credentials is None:
        raise MissingCredentialsError
    return credentials
