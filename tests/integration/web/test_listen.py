"""Every way to name an address listens where it says: real sockets, and the command line, environment and file."""

import json
import socket
from collections.abc import Sequence

import pytest

from exporter.core import settings_loader
from exporter.core.errors import ConfigError
from exporter.web.listen import bind, shown
from tests.fixtures.process import RunCommand
from tests.helpers.deadlines import scaled
from tests.helpers.ports import free_port

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=scaled(10)).close()
    except OSError:
        return False
    return True


@needs_ipv6
@pytest.mark.parametrize(
    ("address", "reachable"),
    [
        (":{}", ("127.0.0.1", "::1")),
        ("[::]:{}", ("127.0.0.1", "::1")),
        ("[::1]:{}", ("::1",)),
        ("127.0.0.1:{}", ("127.0.0.1",)),
        ("0.0.0.0:{}", ("127.0.0.1",)),
        ("localhost:{}", ("127.0.0.1",)),
    ],
)
def test_each_form_listens_where_it_says(address: str, reachable: Sequence[str]) -> None:
    port = free_port()
    sockets = bind([address.format(port)])
    try:
        assert all(answers(host, port) for host in reachable)
        if len(reachable) == 1 and "localhost" not in address:
            assert not answers("::1" if reachable == ("127.0.0.1",) else "127.0.0.1", port)
    finally:
        for each in sockets:
            each.close()


@needs_ipv6
def test_several_addresses_and_the_port_that_the_kernel_chooses() -> None:
    sockets = bind(["127.0.0.1:0", "[::1]:0", "localhost:0"])
    try:
        assert [shown(each).rpartition(":")[0] for each in sockets[:2]] == ["127.0.0.1", "[::1]"]
        assert len({each.getsockname()[1] for each in sockets[2:]}) == 1
    finally:
        for each in sockets:
            each.close()


@pytest.mark.parametrize("host", ["nosuchhost.invalid", "a" * 64 + ".example"])
def test_a_name_that_cannot_be_resolved_is_called_that(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"^web\.listen_address: cannot resolve '{host}' of {host}:9877 \(") as caught:
        bind([f"{host}:9877"])
    assert str(caught.value).endswith("; write an address of this machine, or a name that has one")


def test_an_address_in_use_closes_those_bound_before() -> None:
    first = free_port()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"cannot listen on .* \(Address already in use\)"),
    ):
        bind([f"127.0.0.1:{first}", f"127.0.0.1:{taken.getsockname()[1]}"])
    socket.create_server(("127.0.0.1", first)).close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:9877 \(Cannot assign requested address\)"):
        bind(["192.0.2.1:9877"])


# -- the three places of a setting

FORMS = {
    "[::1]:9877": ["[::1]:9877"],
    "[::]:9877": ["[::]:9877"],
    "[::1]:9877,127.0.0.1:9878": ["[::1]:9877", "127.0.0.1:9878"],
    '["[::1]:9877"]': ["[::1]:9877"],
    '["[::1]:9877", ":9878"]': ["[::1]:9877", ":9878"],
    "[127.0.0.1:9877, 127.0.0.1:9878]": ["127.0.0.1:9877", "127.0.0.1:9878"],
    "[fe80::1%eth0]:9877": ["[fe80::1%eth0]:9877"],
    "exporter.example.org:9877": ["exporter.example.org:9877"],
}
URI = {"CML_EXPORTER_MONGODB__URI": "mongodb://localhost"}


@pytest.mark.parametrize("text", FORMS)
def test_flag_and_environment_take_what_the_file_takes(text: str) -> None:
    by_flag = settings_loader.load(environment=URI, flags={"web.listen_address": text})
    by_environment = settings_loader.load(environment={**URI, "CML_EXPORTER_WEB__LISTEN_ADDRESS": text})
    assert by_flag.web.listen_address == by_environment.web.listen_address == FORMS[text]


def test_a_repeated_flag_adds_up() -> None:
    given = {"web.listen_address": ["[::1]:9877", "127.0.0.1:9878,127.0.0.1:9879", '["[::]:9880"]']}
    found = settings_loader.load(environment=URI, flags=given)
    assert found.web.listen_address == ["[::1]:9877", "127.0.0.1:9878", "127.0.0.1:9879", "[::]:9880"]


def test_check_shows_every_address_of_repeated_flags(run_command: RunCommand) -> None:
    first, second = free_port(), free_port()
    done = run_command(
        *("check", "--mongodb.uri", "mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=100", "--cloudwatch.enabled", "false"),
        *("--web.listen-address", f"127.0.0.1:{first}", f"--web.listen-address=127.0.0.1:{second}"),
    )
    assert f"127.0.0.1:{first}, 127.0.0.1:{second} is free" in done.stdout, json.dumps([done.stdout, done.stderr])
