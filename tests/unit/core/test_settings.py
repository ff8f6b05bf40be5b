"""Settings: file < environment < flags; each mistake is one sentence, without secrets."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr

from exporter.core.aws_settings import Role
from exporter.core.errors import ConfigError
from exporter.core.settings import Settings
from exporter.core.settings_loader import Setting, load, table
from exporter.core.workers_settings import ExtraMetric

CASES = sorted((Path(__file__).parent / "settings_cases").glob("*.yaml"))
URI = "mongodb://manager:hunter2@db.example.com/cml"
MINIMAL = {"CML_EXPORTER_MONGODB__URI": URI}


def from_text(tmp_path: Path, text: str, environment: Mapping[str, str] = MINIMAL) -> Settings:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load(file, environment)


def message(environment: Mapping[str, str], file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, environment)
    return str(caught.value)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_a_bad_file_is_refused_with_exactly_the_sentence_at_its_top(file: Path) -> None:
    expected = [line.removeprefix("# ") for line in file.read_text().splitlines() if line.startswith("# ")]
    assert message({}, file).replace(str(file), "<file>").splitlines() == expected


def test_no_message_repeats_a_password() -> None:
    assert any("hunter2" in file.read_text() for file in CASES)
    for file in CASES:
        assert "hunter2" not in message({}, file), file.stem


def test_the_connection_string_alone_is_enough() -> None:
    settings = load(None, MINIMAL)
    assert settings.mongodb_uri == URI
    assert (settings.period, settings.settle_delay, settings.absence_timeout, settings.gap_fill_window) == (
        300,
        300,
        3600,
        86400,
    )
    assert (settings.max_age, settings.terminated_grace, settings.cloudwatch.interval) == (900, 3600, 300)
    assert settings.mongodb.retention == 2_592_000
    assert settings.web.listen_address == [":9877"]


def test_environment_beats_file_and_flags_beat_both(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"mongodb: {{uri: '{URI}', workers: from_file}}\nlog: {{level: debug, format: json}}\nsettle_delay: 10m\n")
    environment = {"CML_EXPORTER_MONGODB__WORKERS": "from_env", "CML_EXPORTER_LOG__LEVEL": "warn"}
    settings = load(file, environment, {"log.level": "error"})
    assert (settings.mongodb.workers, settings.log.level, settings.log.format, settings.settle_delay) == (
        "from_env",
        "error",
        "json",
        600,
    )
    assert settings.mongodb_uri == URI


def test_a_retention_that_was_not_set_can_be_told_from_one_that_was() -> None:
    assert "retention" not in load(None, MINIMAL).mongodb.model_fields_set
    assert "retention" in load(None, MINIMAL | {"CML_EXPORTER_MONGODB__RETENTION": "30d"}).mongodb.model_fields_set


def test_an_unknown_variable_is_refused_and_the_closest_named() -> None:
    error = message(MINIMAL | {"CML_EXPORTER_MONGODB_URI": URI})
    assert error == "environment: CML_EXPORTER_MONGODB_URI is not a setting; did you mean CML_EXPORTER_MONGODB__URI?"


def test_all_mistakes_are_reported_at_once() -> None:
    error = message({"CML_EXPORTER_PERIOD": "5", "CML_EXPORTER_FOO": "x", "CML_EXPORTER_LOG__LEVEL": "loud"} | MINIMAL)
    assert [line.split(":")[0] for line in error.splitlines()] == ["environment", "period", "log.level"]


def test_all_mistakes_of_a_file_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text(
        f"mongodb:\n  uri: {URI}\n  retension: 60d\nperiod: 5\nperiod: 7\nlog: {{level: loud}}\naws:\n  region: eu-west-1\n"
    )
    places = [line.removeprefix(f"{tmp_path}/").split(" ")[0] for line in message({}, file).splitlines()]
    assert places == ["exporter.yml:3:", "exporter.yml:5:", "exporter.yml:5:", "exporter.yml:6:", "exporter.yml:8:"]
    file.write_text(f"mongodb: {{uri: '{URI}'}}\nperiod: 7m\nmax_age: 1m\nabsence_timeout: 1m\n")
    found = [line.removeprefix(f"{file}:").lstrip(" 0123456789:").partition(":")[0] for line in message({}, file).splitlines()]
    assert found == ["period", "max_age", "absence_timeout", "cloudwatch.interval"]  # that one is not in the file


def test_a_mistake_in_the_environment_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text("period: 5m\n")
    assert message(MINIMAL | {"CML_EXPORTER_PERIOD": "5"}, file).startswith("period: ")


@pytest.mark.parametrize("path", ["data_dir", "mongodb.uri_file", "web.config_file"])
def test_a_path_in_a_file_is_relative_to_that_file(tmp_path: Path, path: str) -> None:
    section, _, leaf = path.rpartition(".")
    text = f"{leaf}: ../here" if not section else f"{section}: {{{leaf}: ../here}}"
    settings = from_text(tmp_path, text, {} if path == "mongodb.uri_file" else MINIMAL)
    found = getattr(getattr(settings, section) if section else settings, leaf)
    assert found == tmp_path / "../here"
    assert from_text(tmp_path, text.replace("../here", "/here"), {} if path == "mongodb.uri_file" else MINIMAL) is not None
    assert load(None, MINIMAL | {"CML_EXPORTER_DATA_DIR": "here"}).data_dir == Path("here")
    assert load(tmp_path / "config.yaml", MINIMAL if section != "mongodb" else {}, {"data_dir": "x"}).data_dir == Path("x")


@pytest.mark.parametrize("key", ["region", "profile", "access_key_id", "secret_access_key"])
def test_what_boto3_reads_from_the_environment_is_explained(tmp_path: Path, key: str) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text(f"aws: {{{key}: x}}\n")
    assert f"set AWS_{key.upper()} in the environment" in message(MINIMAL, file)
    assert f"set AWS_{key.upper()} in the environment" in message(MINIMAL | {f"CML_EXPORTER_AWS__{key.upper()}": "x"})


@pytest.mark.parametrize("given", ["9877", "'9877'", "':9877'", "['9877']", "[9877]"])
def test_an_address_may_be_a_port_alone_as_number_or_text(tmp_path: Path, given: str) -> None:
    assert from_text(tmp_path, f"web: {{listen_address: {given}}}\n").web.listen_address == [":9877"]
    assert load(None, MINIMAL | {"CML_EXPORTER_WEB__LISTEN_ADDRESS": "9877"}).web.listen_address == [":9877"]


@pytest.mark.parametrize("given", ["warn", "warning", "WARNING"])
def test_a_level_may_have_the_name_that_other_programs_give_it(tmp_path: Path, given: str) -> None:
    assert from_text(tmp_path, f"log: {{level: {given}}}\n").log.level == "warn"


def test_service_variables_of_kubernetes_are_ignored() -> None:
    service = {
        "CML_EXPORTER_SERVICE_HOST": "10.0.0.1",
        "CML_EXPORTER_SERVICE_PORT": "9877",
        "CML_EXPORTER_SERVICE_PORT_HTTP": "9877",
        "CML_EXPORTER_PORT": "tcp://10.0.0.1:9877",
        "CML_EXPORTER_PORT_9877_TCP": "tcp://10.0.0.1:9877",
        "CML_EXPORTER_PORT_9877_TCP_ADDR": "10.0.0.1",
    }
    assert load(None, MINIMAL | service) == load(None, MINIMAL)


def test_an_invented_port_variable_is_still_refused() -> None:
    assert message(MINIMAL | {"CML_EXPORTER_WEB__PORT": "9877"}).startswith(
        "environment: CML_EXPORTER_WEB__PORT is not a setting"
    )


def test_an_empty_variable_is_not_set_and_null_unsets(tmp_path: Path) -> None:
    text = "mongodb: {history: metrics}"
    assert from_text(tmp_path, text, MINIMAL | {"CML_EXPORTER_MONGODB__HISTORY": ""}).mongodb.history == "metrics"
    assert from_text(tmp_path, text, MINIMAL | {"CML_EXPORTER_MONGODB__HISTORY": "null"}).mongodb.history is None


def test_a_section_with_all_keys_commented_out_is_empty(tmp_path: Path) -> None:
    assert from_text(tmp_path, "mongodb:\nweb:\n  # listen_address: [':1']\ncloudwatch:\n") == load(None, MINIMAL)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert from_text(tmp_path, "# nothing\n") == load(None, MINIMAL)


def test_lists_and_mappings_come_as_yaml_or_separated_by_commas() -> None:
    settings = load(
        None,
        MINIMAL
        | {
            "CML_EXPORTER_WEB__LISTEN_ADDRESS": ":9877, [::1]:9878",
            "CML_EXPORTER_WORKERS__FIELDS": "{cpu: [cpu_pct, metrics.cpu], memory: mem_pct}",
            "CML_EXPORTER_WORKERS__HOURLY_PRICE": "{m5zn.metal: 3.96, c5.4xlarge: '0.68'}",
            "CML_EXPORTER_WORKERS__EXTRA": "[{metric: cml_worker_disk_bytes, field: disk, help: Disk in use.}]",
            "CML_EXPORTER_AWS__ROLES": "[{role_arn: 'arn:aws:iam::123456789012:role/r', external_id: hunter2}]",
        },
    )
    assert settings.web.listen_address == [":9877", "[::1]:9878"]
    assert settings.workers.fields == {"cpu": ["cpu_pct", "metrics.cpu"], "memory": ["mem_pct"]}
    assert settings.workers.hourly_price == {"m5zn.metal": 3.96, "c5.4xlarge": 0.68}
    assert settings.workers.extra == [ExtraMetric(metric="cml_worker_disk_bytes", field="disk", help="Disk in use.")]
    assert settings.aws.roles == [Role(role_arn="arn:aws:iam::123456789012:role/r", external_id=SecretStr("hunter2"))]


def test_broken_yaml_in_a_variable_is_named_without_its_text() -> None:
    error = message(MINIMAL | {"CML_EXPORTER_AWS__ROLES": "[{external_id: hunter2"})
    assert error == ("CML_EXPORTER_AWS__ROLES:1:23: this is not valid YAML: expected ',' or '}', but got '<stream end>'")


def test_broken_yaml_in_a_flag_is_named_by_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^--workers\.fields:1"):
        load(None, MINIMAL, {"workers.fields": "{cpu: ["})


def test_secrets_print_as_stars() -> None:
    role = "[{role_arn: 'arn:aws:iam::123456789012:role/r', external_id: hunter2}]"
    settings = load(None, MINIMAL | {"CML_EXPORTER_AWS__ROLES": role})
    for shown in (
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        f"{settings.mongodb!r}",
        str(settings.model_dump()),
    ):
        assert "hunter2" not in shown
        assert "**********" in shown


def test_settings_cannot_be_changed_and_survive_a_process_boundary() -> None:
    settings = load(None, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        settings.period = 60  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_the_connection_string_can_live_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "uri"
    secret.write_text(f"{URI}\n")
    assert load(None, {"CML_EXPORTER_MONGODB__URI_FILE": str(secret)}).mongodb_uri == URI


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "mongodb.uri_file: cannot read {file}: No such file or directory"),
        (b"\n", "mongodb.uri_file: {file} is empty; it must hold the connection string"),
        (b"hunter2", "mongodb.uri_file: {file}: it must begin with mongodb:// or mongodb+srv://"),
        (b"\xff\xfe", "mongodb.uri_file: {file} is not a text file in UTF-8"),
    ],
)
def test_an_unusable_file_with_the_connection_string_is_named(tmp_path: Path, content: bytes | None, expected: str) -> None:
    secret = tmp_path / "uri"
    if content is not None:
        secret.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        _ = load(None, {"CML_EXPORTER_MONGODB__URI_FILE": str(secret)}).mongodb_uri
    assert str(caught.value) == expected.format(file=secret)


def test_a_connection_string_without_its_scheme_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError) as caught:
        _ = load(None, {"CML_EXPORTER_MONGODB__URI": "manager:hunter2@db"}).mongodb_uri
    assert str(caught.value) == "mongodb.uri: it must begin with mongodb:// or mongodb+srv://"


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda file: None, "--config.file: cannot read {file}: No such file or directory"),
        (lambda file: file.mkdir(), "--config.file: cannot read {file}: Is a directory"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), "--config.file: {file} is not a text file in UTF-8"),
    ],
    ids=["missing", "folder", "binary"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, write: Callable[[Path], object], expected: str) -> None:
    file = tmp_path / "config.yaml"
    write(file)
    assert message(MINIMAL, file) == expected.format(file=file)


def test_every_setting_has_a_flag_a_variable_and_a_description() -> None:
    rows = list(table())
    assert len({row.flag for row in rows}) == len({row.env for row in rows}) == len(rows)
    assert all(row.description for row in rows)
    names = {row.key: (row.flag, row.env) for row in rows}
    assert names["web.config_file"] == ("--web.config.file", "CML_EXPORTER_WEB__CONFIG_FILE")
    assert names["web.listen_address"] == ("--web.listen-address", "CML_EXPORTER_WEB__LISTEN_ADDRESS")


@pytest.mark.parametrize("row", [row for row in table() if row.key != "mongodb.uri"], ids=lambda row: row.key)
def test_a_default_written_down_changes_nothing(row: Setting) -> None:
    text = "null" if row.default is None else str(row.default)
    assert load(None, MINIMAL | {row.env: text}) == load(None, MINIMAL)
