"""Every way in which AWS hands out credentials, over real HTTP: `check` is green, the gauges are there, keys are renewed."""

import asyncio
import contextlib
import hashlib
import json
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import botocore.credentials
import botocore.tokens
import pytest
from prometheus_client import CollectorRegistry

from exporter.commands.check.command import examine
from exporter.core.errors import SourceError
from exporter.core.model import MetricQuery
from exporter.core.periods import align
from exporter.core.settings import Settings
from exporter.metrics.telemetry import Telemetry
from exporter.sources.cloudwatch import sessions
from exporter.sources.cloudwatch.client import CloudWatch
from exporter.storage.mongo import Database
from tests.helpers.deadlines import scaled
from tests.helpers.expected_history import Member
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id
from tests.helpers.fake_credentials import CONTAINER_TOKEN, SSO_TOKEN, FakeCredentials
from tests.helpers.in_process_exporter import PERIOD, Clock, InProcessExporter, series
from tests.helpers.reliability import record

REGION = "eu-west-1"
WEB_ROLE, PROFILE_ROLE = "arn:aws:iam::123456789012:role/pod", "arn:aws:iam::123456789012:role/profile"


@dataclass(frozen=True)
class Place:
    """Where a test puts credentials: files below a folder, variables of the environment, and the servers."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    server: FakeCredentials

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(text))
        return path

    def env(self, **values: object) -> None:
        for name, value in values.items():
            self.monkeypatch.setenv(name, str(value))

    def config(self, text: str) -> None:
        self.env(AWS_CONFIG_FILE=self.file("config", text))


def irsa(place: Place) -> None:
    token = place.file("token", "web-token-1")
    place.env(AWS_ROLE_ARN=WEB_ROLE, AWS_WEB_IDENTITY_TOKEN_FILE=token)


def source_profile(place: Place) -> None:
    place.config(f"""\
        [profile base]
        aws_access_key_id = AKIABASE
        aws_secret_access_key = s
        [profile reader]
        role_arn = {PROFILE_ROLE}
        source_profile = base
        external_id = customer-7
    """)
    place.env(AWS_PROFILE="reader")


def chained_profiles(place: Place) -> None:
    place.config(f"""\
        [profile base]
        role_arn = {WEB_ROLE}
        web_identity_token_file = {place.file("token", "web-token-1")}
        [profile reader]
        role_arn = {PROFILE_ROLE}
        source_profile = base
    """)
    place.env(AWS_PROFILE="reader")


def credential_source_environment(place: Place) -> None:
    place.config(f"[profile reader]\nrole_arn = {PROFILE_ROLE}\ncredential_source = Environment\n")
    place.env(AWS_PROFILE="reader", AWS_ACCESS_KEY_ID="AKIAENV", AWS_SECRET_ACCESS_KEY="s")


def credential_source_container(place: Place) -> None:
    container(place)
    place.config(f"[profile reader]\nrole_arn = {PROFILE_ROLE}\ncredential_source = EcsContainer\n")
    place.env(AWS_PROFILE="reader")


def credential_source_instance(place: Place) -> None:
    imds(place)
    place.config(f"[profile reader]\nrole_arn = {PROFILE_ROLE}\ncredential_source = Ec2InstanceMetadata\n")
    place.env(AWS_PROFILE="reader")


def web_identity_profile(place: Place) -> None:
    token = place.file("token", "web-token-1")
    place.config(f"[profile reader]\nrole_arn = {WEB_ROLE}\nweb_identity_token_file = {token}\n")
    place.env(AWS_PROFILE="reader")


def _cached(place: Place, key: str, **more: str) -> None:
    cache = place.folder / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    token = {"accessToken": SSO_TOKEN, "expiresAt": "2099-01-01T00:00:00Z", **more}
    (cache / f"{hashlib.sha1(key.encode()).hexdigest()}.json").write_text(json.dumps(token))
    place.env(AWS_ENDPOINT_URL_SSO=place.server.url, AWS_PROFILE="reader")
    # botocore has looked up ~ when it was imported
    for provider in (botocore.credentials.SSOProvider, botocore.tokens.SSOTokenProvider):
        place.monkeypatch.setattr(provider, "_SSO_TOKEN_CACHE_DIR", str(cache))


def sso_legacy(place: Place) -> None:
    start = "https://example.awsapps.com/start"
    _cached(place, start, startUrl=start, region=REGION)
    place.config(f"""\
        [profile reader]
        sso_start_url = {start}
        sso_region = {REGION}
        sso_account_id = 123456789012
        sso_role_name = reader
    """)


def sso_session(place: Place) -> None:
    _cached(place, "corp")
    place.config("""\
        [sso-session corp]
        sso_start_url = https://example.awsapps.com/start
        sso_region = us-east-1
        [profile reader]
        sso_session = corp
        sso_account_id = 123456789012
        sso_role_name = reader
    """)


def container(place: Place) -> None:
    place.env(
        AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{place.server.url}/container",
        AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=place.file("container-token", CONTAINER_TOKEN),
    )


def imds(place: Place) -> None:
    place.env(AWS_EC2_METADATA_SERVICE_ENDPOINT=place.server.url, AWS_EC2_METADATA_DISABLED="false")


def credential_process(place: Place) -> None:
    keys = {"Version": 1, "AccessKeyId": "AKIAPROCESS", "SecretAccessKey": "s"}
    script = place.file("keys.py", f"print('''{json.dumps(keys)}''')\n")
    place.config(f"[profile reader]\ncredential_process = {sys.executable} {script}\n")
    place.env(AWS_PROFILE="reader")


def shared_file(place: Place) -> None:
    keys = "[default]\naws_access_key_id = AKIASHARED\naws_secret_access_key = s\n"
    place.env(AWS_SHARED_CREDENTIALS_FILE=place.file("credentials", keys))


WAYS: dict[str, tuple[Callable[[Place], None], list[str]]] = {
    "IRSA": (irsa, ["ASIA0"]),
    "source_profile": (source_profile, ["AKIABASE", "ASIA0"]),
    "chained profiles": (chained_profiles, ["ASIA0", "ASIA0"]),
    # boto3 prefers the keys of the environment to a profile that AWS_PROFILE names
    "credential_source Environment": (credential_source_environment, ["AKIAENV"]),
    "credential_source EcsContainer": (credential_source_container, ["ASIACONT", "ASIA0"]),
    "credential_source Ec2InstanceMetadata": (credential_source_instance, ["ASIAIMDS", "ASIA0"]),
    "web identity profile": (web_identity_profile, ["ASIA0"]),
    "SSO cache, legacy": (sso_legacy, ["ASIASSOX"]),
    "SSO cache, session": (sso_session, ["ASIASSOX"]),
    "container": (container, ["ASIACONT"]),
    "IMDS": (imds, ["ASIAIMDS"]),
    "credential_process": (credential_process, ["AKIAPROCESS"]),
    "shared credentials file": (shared_file, ["AKIASHARED"]),
}
"""Name → how it is set up, and the beginnings of the access keys that sign requests, in the order of their first use."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws_credentials: None) -> Iterator[Place]:
    """No credentials at all, and servers that hand them out."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")
    with FakeCredentials() as server:
        yield Place(tmp_path, monkeypatch, server)


@pytest.fixture
def no_keys_cloudwatch(place: Place) -> Iterator[FakeCloudWatch]:
    """A CloudWatch on the machine's clock; STS is found by AWS_ENDPOINT_URL_STS, which botocore's own clients follow too."""
    with FakeCloudWatch() as fake:
        place.env(AWS_ENDPOINT_URL_STS=fake.url)
        yield fake


def beginnings(keys: list[str], expected: list[str]) -> list[str]:
    """Return the keys cut to the length of what is expected, each once; requests with a web identity are not signed."""
    return [key[: len(start)] for key, start in zip(filter(None, dict.fromkeys(keys)), expected, strict=False)]


AT_NIGHT = pytest.mark.nightly("test_check_is_green_and_the_gauges_are_there")
LIKE_ANOTHER = (
    "source_profile",
    "credential_source EcsContainer",
    "credential_source Ec2InstanceMetadata",
    "web identity profile",
    "SSO cache, legacy",
    "container",
)
"""Ways that consist of others, or differ from one in where the file is."""


@pytest.mark.parametrize("way", [pytest.param(way, marks=AT_NIGHT if way in LIKE_ANOTHER else ()) for way in WAYS])
async def test_check_is_green_and_the_gauges_are_there(
    way: str, place: Place, no_keys_cloudwatch: FakeCloudWatch, database: Database, tmp_path: Path
) -> None:
    fake = no_keys_cloudwatch
    prepare, expected = WAYS[way]
    prepare(place)
    clock = Clock(int(fake.now()))  # not the start of the period: five minutes later the clocks would be apart
    member = Member("worker-1", instance_id(1), REGION, int(clock()) - 3600)
    fake.add(member.instance_id)
    await database["workers"].insert_one(member.aggregate())
    host, port = await database.client.address or ("", 0)

    settings = Settings.model_validate(
        {
            "mongodb": {"uri": f"mongodb://{host}:{port}/{database.name}?directConnection=true"},
            "cloudwatch": {"endpoint_url": fake.url},
            "data_dir": tmp_path / "check",
            "web": {"listen_address": ["127.0.0.1:0"]},
        }
    )
    rows = {row.check: row for row in await examine(settings)}
    for check in ("AWS identity", f"CloudWatch CPU, {REGION}", f"CloudWatch memory, {REGION}"):
        assert rows[check].status == "ok", rows
    assert beginnings(fake.counters()["keys"], expected) == expected

    fake.reset()
    exporter = InProcessExporter(tmp_path, database, fake, clock, aws={"sts_endpoint_url": None})
    try:
        await exporter.observe()
        await exporter.ask()
        text = await exporter.scrape()
    finally:
        await exporter.close()
    assert exporter.value("cml_exporter_source_up", source="cloudwatch", region=REGION) == 1
    for name in ("cpu", "memory"):
        assert list(series(text, f"cml_worker_{name}_utilization_ratio{{")) == [
            f'cml_worker_{name}_utilization_ratio{{region="{REGION}",worker_id="worker-1"}}'
        ]
    assert not exporter.errors
    assert beginnings(fake.counters()["keys"], expected) == expected


def query() -> MetricQuery:
    return MetricQuery("i-0a", "cpu", (("InstanceId", "i-0a"),))


async def ask(cloudwatch: CloudWatch, fake: FakeCloudWatch) -> None:
    end = align(int(fake.now()), PERIOD) - PERIOD
    assert (await cloudwatch.get_metric_data(REGION, [query()], end - 3600, end, PERIOD)).by_query[query()].complete


@pytest.fixture
async def cloudwatch(no_keys_cloudwatch: FakeCloudWatch) -> CloudWatch:
    fake = no_keys_cloudwatch
    fake.add("i-0a")
    settings = {"mongodb": {"uri": "mongodb://127.0.0.1:1/unused"}, "cloudwatch": {"endpoint_url": fake.url}}
    return CloudWatch(Settings.model_validate(settings), Telemetry(CollectorRegistry()))


@pytest.mark.parametrize("way", ["IRSA", "source_profile", "SSO cache, session", "container", "IMDS"])
async def test_keys_that_expire_are_renewed_where_they_came_from(
    way: str, place: Place, no_keys_cloudwatch: FakeCloudWatch, cloudwatch: CloudWatch
) -> None:
    fake = no_keys_cloudwatch
    WAYS[way][0](place)
    fake.role_seconds = place.server.seconds = 120  # botocore renews what has less than ten minutes to live

    for _ in range(3):
        await ask(cloudwatch, fake)
    await cloudwatch.close()

    renewed = {key for key in fake.counters()["keys"] if key.startswith("ASIA")}
    assert len(renewed) >= (1 if way == "IMDS" else 3), (
        "each call had new keys; those of IMDS live on while it hands out old ones"
    )
    record("credentials-of-aws", note=f"{len(WAYS)} ways")


async def test_a_token_file_that_is_rotated_is_read_at_every_renewal(
    place: Place, no_keys_cloudwatch: FakeCloudWatch, cloudwatch: CloudWatch
) -> None:
    fake = no_keys_cloudwatch
    irsa(place)
    fake.role_seconds = 120
    await ask(cloudwatch, fake)

    place.file("token", "web-token-2")
    await ask(cloudwatch, fake)
    await cloudwatch.close()

    tokens = fake.counters()["tokens"]
    assert (tokens[0], tokens[-1]) == ("web-token-1", "web-token-2")


async def test_a_token_file_that_is_missing_for_a_while_is_named_and_then_used(
    place: Place, no_keys_cloudwatch: FakeCloudWatch, cloudwatch: CloudWatch
) -> None:
    irsa(place)
    (place.folder / "token").unlink()
    with pytest.raises(SourceError, match=r"the AWS credentials cannot be read \(.*No such file or directory.*token") as caught:
        await ask(cloudwatch, no_keys_cloudwatch)
    assert caught.value.code == "FileNotFoundError"

    place.file("token", "web-token-1")

    await ask(cloudwatch, no_keys_cloudwatch)
    await cloudwatch.close()


async def test_a_process_that_prints_anything_else_is_an_error_of_credentials(
    place: Place, no_keys_cloudwatch: FakeCloudWatch, cloudwatch: CloudWatch
) -> None:
    script = place.file("keys.py", "print('please log in')\n")
    place.config(f"[profile reader]\ncredential_process = {sys.executable} {script}\n")
    place.env(AWS_PROFILE="reader")

    with pytest.raises(SourceError, match=r"the AWS credentials cannot be read \(JSONDecodeError"):
        await ask(cloudwatch, no_keys_cloudwatch)
    await cloudwatch.close()
    assert not no_keys_cloudwatch.calls


async def test_a_process_that_hangs_leaves_one_thread_and_its_keys_count_when_it_ends(
    place: Place, no_keys_cloudwatch: FakeCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = no_keys_cloudwatch
    fake.add("i-0a")
    keys = {"Version": 1, "AccessKeyId": "AKIAPROCESS", "SecretAccessKey": "s"}
    end, began = place.folder / "end", place.folder / "began"
    script = place.file(
        "keys.py",
        f"""import pathlib, time
pathlib.Path({str(began)!r}).open("a").write("x")
until = time.monotonic() + 120
while not pathlib.Path({str(end)!r}).exists() and time.monotonic() < until:
    time.sleep(0.02)
print('{json.dumps(keys)}')
""",
    )
    place.config(f"[profile reader]\ncredential_process = {sys.executable} {script}\n")
    place.env(AWS_PROFILE="reader")
    monkeypatch.setattr(sessions, "READ_TIMEOUT_SECONDS", 1)
    settings = {"mongodb": {"uri": "mongodb://127.0.0.1:1/unused"}, "cloudwatch": {"endpoint_url": fake.url}}
    cloudwatch = CloudWatch(Settings.model_validate(settings), Telemetry(CollectorRegistry()), deadline=0.3)
    before = set(threading.enumerate())

    def left() -> int:
        return len(set(threading.enumerate()) - before)

    try:
        for _ in range(5):
            with pytest.raises(SourceError, match="no answer in time"):
                await ask(cloudwatch, fake)
        await until(lambda: left() == 1)  # which waits for the process; those that waited for it have given up
        assert began.read_text() == "x"
        with pytest.raises(SourceError, match="no answer in time"):
            await ask(cloudwatch, fake)
    finally:
        end.touch()
    await until(lambda: left() == 0)
    for _ in range(100):  # 0.3 s may be short on a busy machine
        with contextlib.suppress(SourceError):
            await ask(cloudwatch, fake)
            break
    await cloudwatch.close()
    assert began.read_text() == "x", "its keys are kept"
    assert set(fake.counters()["keys"]) == {"AKIAPROCESS"}
    record("credential-process-hangs", note="6 calls, 1 thread")


async def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + scaled(30)
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.05)


async def test_the_requests_for_credentials_are_limited_in_time_and_counted(
    place: Place, no_keys_cloudwatch: FakeCloudWatch
) -> None:
    fake = no_keys_cloudwatch
    irsa(place)
    fake.add("i-0a")
    fake.fault("AssumeRoleWithWebIdentity", "hang")
    telemetry = Telemetry(CollectorRegistry())
    settings = {"mongodb": {"uri": "mongodb://127.0.0.1:1/unused"}, "cloudwatch": {"endpoint_url": fake.url}}
    cloudwatch = CloudWatch(
        Settings.model_validate(settings), telemetry, deadline=min(scaled(2), 10)
    )  # the client ends a request itself after 15 s
    with pytest.raises(SourceError, match="no answer in time"):
        await ask(cloudwatch, fake)
    await cloudwatch.close()
    labels = {"operation": "AssumeRoleWithWebIdentity", "region": REGION}
    assert telemetry.registry.get_sample_value("cml_exporter_cloudwatch_requests_total", labels) == 1
