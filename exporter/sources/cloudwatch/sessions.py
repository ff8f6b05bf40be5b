"""boto3 sessions and clients by region: credentials, the role, the endpoint, and the hooks of every client."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, DeferredRefreshableCredentials
from botocore.loaders import Loader

from exporter import __version__
from exporter.core.errors import SourceError
from exporter.core.settings import Role, Settings
from exporter.sources.cloudwatch.errors import FOREIGN_ERRORS, MissingCredentialsError
from exporter.sources.cloudwatch.transport import ATTEMPTS, THREADS, RegionState, timestamp_seconds

if TYPE_CHECKING:
    from types_boto3_cloudwatch import CloudWatchClient
    from types_boto3_sts import STSClient

CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS = 3, 15


class _AssumedRole(CredentialProvider):
    """Credentials of a role, renewed by botocore before they expire."""

    METHOD = "cml-assume-role"

    def __init__(self, sts: "Callable[[], STSClient]", role: Role) -> None:
        super().__init__()
        self._sts = sts
        self._role = role

    def load(self) -> DeferredRefreshableCredentials:
        """Return credentials that are fetched when first needed."""
        return DeferredRefreshableCredentials(refresh_using=self._fetch, method=self.METHOD)

    def _fetch(self) -> dict[str, str]:
        request: dict[str, Any] = {"RoleArn": self._role.role_arn, "RoleSessionName": "cml-worker-exporter"}
        if self._role.external_id:
            request["ExternalId"] = self._role.external_id.get_secret_value()
        keys = self._sts().assume_role(**request)["Credentials"]
        expires: datetime = keys["Expiration"]
        return {
            "access_key": keys["AccessKeyId"],
            "secret_key": keys["SecretAccessKey"],
            "token": keys["SessionToken"],
            "expiry_time": expires.isoformat(),
        }


class ClientFactory:
    """Makes the boto3 clients of every region; safe for threads.

    Args:
        settings: endpoint and role.
        attach: registers the request hooks of a new client.
    """

    def __init__(self, settings: Settings, attach: "Callable[[CloudWatchClient | STSClient, RegionState], object]") -> None:
        self._endpoint = settings.cloudwatch.endpoint_url
        self._roles = settings.aws.roles
        self._attach = attach
        # Each region has a session; what sessions load from botocore's data files is the same for all.
        self._loader: Loader = botocore.session.Session().get_component("data_loader")

    def client(self, state: RegionState, service: str) -> Any:  # noqa: ANN401  # boto3 makes its clients at run time
        """Return the client of a service ("cloudwatch" or "sts") in a region, made at first use.

        Raises:
            Any of FOREIGN_ERRORS: the credentials are missing or cannot be read, or the region is malformed.
            SourceError: the endpoint is not a URL.
        """
        with state.lock:
            client = state.clients.get(service)
            if client is None:  # another thread may call `forget` at any point, so nothing is read twice
                session = state.session or self._session(state)
                client = self._connect(state, session, service)
                state.session, state.clients[service] = session, client
            return client

    def _session(self, state: RegionState) -> boto3.Session:
        session = botocore.session.Session()
        session.register_component("data_loader", self._loader)
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp_seconds)
        role = next((role for role in self._roles if not role.regions or state.region in role.regions), None)
        if role:
            provider = _AssumedRole(lambda: self._role_client(state), role)
            session.get_component("credential_provider").insert_before("env", provider)
        return _with_credentials(session)

    def _role_client(self, state: RegionState) -> "STSClient":
        """STS with the credentials of the machine, in a session whose timestamps are datetimes: botocore needs an expiry."""
        with state.lock:
            if "assume-role" not in state.clients:
                session = botocore.session.Session()
                session.register_component("data_loader", self._loader)
                state.clients["assume-role"] = self._connect(state, _with_credentials(session), "sts")
            client: STSClient = state.clients["assume-role"]
            return client

    def _connect(self, state: RegionState, session: boto3.Session, service: str) -> Any:  # noqa: ANN401  # as `client`
        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            max_pool_connections=THREADS,
            # CloudWatch checks 500 queries anyway; here it takes a third of a call's time.
            parameter_validation=service != "cloudwatch",
            tcp_keepalive=True,
            user_agent_extra=f"cml-worker-exporter/{__version__}",
        )
        try:
            client = session.client(service, region_name=state.region, endpoint_url=self._endpoint, config=config)  # type: ignore[call-overload]  # the service is a variable
        except FOREIGN_ERRORS:
            raise
        except ValueError as error:
            raise SourceError(
                "cloudwatch",
                "InvalidEndpoint",
                f"CloudWatch in {state.region}: {self._endpoint} is not an address; correct cloudwatch.endpoint_url",
                region=state.region,
            ) from error
        self._attach(client, state)
        return client


def _with_credentials(session: botocore.session.Session) -> boto3.Session:
    """Refuse a session without credentials: it would never look for them again."""
    if session.get_credentials() is None:
        raise MissingCredentialsError
    return boto3.Session(botocore_session=session)
