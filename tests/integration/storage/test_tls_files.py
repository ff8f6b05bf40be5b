"""TLS of the MongoDB connection string, with a real mongod: each mistake is one sentence with the option and the file."""

import os
import stat
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from exporter.core.errors import ConfigError, StoreError
from exporter.core.settings import Settings
from exporter.demo.mongod import Mongod
from exporter.sources.aggregates import Aggregates
from exporter.storage.lease import Lease
from exporter.storage.mongo import connect_uri
from tests.fixtures.mongo import need_mongod
from tests.fixtures.process import RunCommand
from tests.helpers.certificates import write_certificate
from tests.helpers.mongod import NO_TTL
from tests.helpers.ports import free_port

# The driver forgets the socket of a TLS handshake that failed; Python closes it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BOM = b"\xef\xbb\xbf"


def write_identity(folder: Path, name: str, *, key: str | None = None, password: bytes | None = None) -> None:
    """Write <name>.crt, <name>.key and both in <name>.pem; `key` names another certificate whose key is used."""
    write_certificate(folder, name, password=password)
    both = (folder / f"{name}.crt").read_bytes() + (folder / f"{key or name}.key").read_bytes()
    (folder / f"{name}.pem").write_bytes(both)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    write_identity(folder, "server")
    write_identity(folder, "other")
    write_identity(folder, "locked", password=b"secret")
    write_identity(folder, "mixed", key="other")
    (folder / "garbage.pem").write_text("nothing\n")
    (folder / "binary.pem").write_bytes(b"\xff\xfe\x00")
    (folder / "folder.pem").mkdir()
    (folder / "bom.crt").write_bytes(BOM + (folder / "server.crt").read_bytes().replace(b"\n", b"\r\n"))
    (folder / "bom.pem").write_bytes(BOM + (folder / "server.pem").read_bytes().replace(b"\n", b"\r\n"))
    return folder


@pytest.fixture(scope="module")
def tls_mongod(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    need_mongod()
    server = Mongod(tmp_path_factory.mktemp("mongod_tls"), free_port(), parameters=NO_TTL)
    server._options += ["--tlsMode", "preferTLS", "--tlsCertificateKeyFile", str(folder / "server.pem")]
    server._options += ["--tlsCAFile", str(folder / "server.crt"), "--tlsAllowConnectionsWithoutCertificates"]
    with server:
        yield server


CASES = [
    ("tlsCAFile=%/nowhere.pem", "tlsCAFile %/nowhere.pem cannot be read: No such file or directory"),
    ("tlsCAFile=%/folder.pem", "tlsCAFile %/folder.pem cannot be read: Is a directory"),
    ("tlsCAFile=%/garbage.pem", "tlsCAFile %/garbage.pem contains no certificate in PEM format"),
    ("tlsCAFile=%/binary.pem", "tlsCAFile %/binary.pem contains no certificate in PEM format"),
    ("tlsCAFile=%/server.key", "tlsCAFile %/server.key contains no certificate in PEM format"),
    ("tlsCRLFile=%/garbage.pem", "tlsCRLFile %/garbage.pem contains no certificate in PEM format"),
    ("tlsCertificateKeyFile=%/nowhere.pem", "tlsCertificateKeyFile %/nowhere.pem cannot be read: No such file or directory"),
    (
        "tlsCertificateKeyFile=%/garbage.pem",
        "tlsCertificateKeyFile %/garbage.pem contains no certificate in PEM format; it must hold",
    ),
    (
        "tlsCertificateKeyFile=%/server.crt",
        "tlsCertificateKeyFile %/server.crt contains no private key in PEM format; it must hold",
    ),
    (
        "tlsCertificateKeyFile=%/mixed.pem",
        "tlsCertificateKeyFile %/mixed.pem holds a private key that does not belong to its certificate",
    ),
    (
        "tlsCertificateKeyFile=%/locked.pem",
        "tlsCertificateKeyFile %/locked.pem is encrypted; add tlsCertificateKeyFilePassword",
    ),
    (
        "tlsCertificateKeyFile=%/locked.pem&tlsCertificateKeyFilePassword=hunter2",
        "tlsCertificateKeyFile %/locked.pem cannot be decrypted with tlsCertificateKeyFilePassword",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), CASES, ids=[case[0].partition("&")[0].replace("%/", "") for case in CASES])
def test_a_file_that_cannot_be_used_is_named_with_its_option(folder: Path, options: str, sentence: str) -> None:
    uri = f"mongodb://exporter:hunter2@127.0.0.1:1/cml?tls=true&{options.replace('%', str(folder))}"
    with pytest.raises(ConfigError) as caught:
        connect_uri(uri, "mongodb.uri")
    assert str(caught.value).startswith("mongodb.uri: " + sentence.replace("%", str(folder)))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_named(folder: Path) -> None:
    file = folder / "secret.pem"
    file.write_bytes((folder / "server.pem").read_bytes())
    file.chmod(stat.S_IWUSR)
    with pytest.raises(ConfigError, match=r"secret\.pem cannot be read: Permission denied"):
        connect_uri(f"mongodb://127.0.0.1:1/?tls=true&tlsCertificateKeyFile={file}")


async def failure(uri: str) -> StoreError:
    client, database = connect_uri(f"{uri}&serverSelectionTimeoutMS=20000")
    async with client:
        with pytest.raises(StoreError) as caught:
            await Lease(database, owner="one").acquire_or_renew()
    return caught.value


async def test_a_server_for_another_host_is_named_with_the_file_that_verified_it(tls_mongod: Mongod, folder: Path) -> None:
    error = await failure(f"mongodb://localhost:{tls_mongod.port}/cml?tls=true&tlsCAFile={folder}/server.crt")
    assert error.reason == "tls"
    assert str(error) == (
        f"no MongoDB for `update` on cml.cml_exporter_state: the certificate of localhost:{tls_mongod.port} is valid by "
        f"tlsCAFile {folder}/server.crt, but for another host (hostname mismatch, certificate is not valid for 'localhost'); "
        "write a host name of the certificate into mongodb.uri, or issue one for this name"
    )


@pytest.mark.parametrize(
    ("option", "trust"),
    [("&tlsCAFile=%/other.crt", "tlsCAFile %/other.crt"), ("", "the CAs of the system (tlsCAFile is not set)")],
)
async def test_an_unknown_ca_is_named_with_the_file_that_lacks_it(
    tls_mongod: Mongod, folder: Path, option: str, trust: str
) -> None:
    error = await failure(f"mongodb://127.0.0.1:{tls_mongod.port}/cml?tls=true{option.replace('%', str(folder))}")
    assert error.reason == "tls"
    assert f"is refused by {trust.replace('%', str(folder))} (" in str(error)
    assert str(error).endswith("set tlsCAFile to the file of the CA that issued it")


async def test_the_read_of_the_worker_documents_names_the_file_too(tls_mongod: Mongod, folder: Path) -> None:
    client, database = connect_uri(f"mongodb://localhost:{tls_mongod.port}/cml?tls=true&tlsCAFile={folder}/server.crt")
    async with client:
        settings = Settings.model_validate({"mongodb": {"uri": "mongodb://127.0.0.1:1"}})
        with pytest.raises(Exception, match=r"is valid by tlsCAFile .*/server\.crt, but for another host"):
            await Aggregates(database, ["workers"], settings.workers).read()


@pytest.mark.parametrize(
    "options",
    [
        "tlsCAFile=%/server.crt",
        "tlsCAFile=%/bom.crt",
        "tlsCAFile=%/server.crt&tlsCertificateKeyFile=%/server.pem",
        "tlsCAFile=%/bom.crt&tlsCertificateKeyFile=%/bom.pem",
        "tlsCAFile=%/server.crt&tlsCertificateKeyFile=%/locked.pem&tlsCertificateKeyFilePassword=secret",
    ],
    ids=["ca", "ca of windows", "identity", "identity of windows", "encrypted identity"],
)
async def test_valid_files_connect(tls_mongod: Mongod, folder: Path, options: str) -> None:
    client, database = connect_uri(f"mongodb://127.0.0.1:{tls_mongod.port}/cml?tls=true&{options.replace('%', str(folder))}")
    if "locked" in options:  # the server does not know its CA; reading the files is what counts here
        await client.close()
        return
    async with client:
        assert await Lease(database, owner="one", name=f"tls {options}").acquire_or_renew()


def test_check_prints_the_sentence_and_never_asks_at_the_terminal(folder: Path, run_command: RunCommand) -> None:
    uri = f"mongodb://127.0.0.1:1/cml?tls=true&tlsCertificateKeyFile={folder}/locked.pem"
    done = run_command("check", env={"CML_EXPORTER_MONGODB__URI": uri, "CML_EXPORTER_CLOUDWATCH__ENABLED": "false"})
    assert done.returncode == 1
    assert f"mongodb.uri: tlsCertificateKeyFile {folder}/locked.pem is encrypted" in done.stdout
    assert "pass phrase" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


# -- MONGODB-AWS


def test_without_its_package_mongodb_aws_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr("exporter.storage.mongo.find_spec", absent)
    with pytest.raises(ConfigError) as caught:
        connect_uri("mongodb://127.0.0.1:1/?authMechanism=MONGODB-AWS&authSource=$external", "mongodb.uri")
    assert str(caught.value) == (
        "mongodb.uri: MONGODB-AWS needs a further package; install it with: pip install 'cml-worker-exporter[aws]'"
    )


@pytest.mark.skipif(find_spec("pymongo_auth_aws") is None, reason="needs the extra: pip install 'cml-worker-exporter[aws]'")
async def test_with_its_package_mongodb_aws_is_spoken_to_the_server(own_mongod: Mongod, aws_credentials: None) -> None:
    # MongoDB's community edition lacks the mechanism: its refusal shows that the driver found credentials and spoke it.
    client, database = connect_uri(f"{own_mongod.uri}&authMechanism=MONGODB-AWS&authSource=%24external")
    async with client:
        with pytest.raises(StoreError) as caught:
            await Lease(database, owner="one").acquire_or_renew()
    assert "MONGODB-AWS" in str(caught.value)
    assert "install" not in str(caught.value)
