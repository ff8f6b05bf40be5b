"""Files as editors and shells of other systems write them: byte order mark, CRLF, CR, UTF-16, a NUL at the end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.core.errors import ConfigError
from exporter.core.settings_loader import load
from exporter.core.yaml_file import read_text

URI = "mongodb://manager:hunter2@db.example.com/cml"
BOM = b"\xef\xbb\xbf"
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda text: text,
    "bom": lambda text: BOM + text,
    "crlf": lambda text: text.replace(b"\n", b"\r\n"),
    "bom and crlf": lambda text: BOM + text.replace(b"\n", b"\r\n"),
    "cr": lambda text: text.replace(b"\n", b"\r"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_settings_and_the_connection_string_are_read_in_every_form(tmp_path: Path, form: Callable[[bytes], bytes]) -> None:
    secret, file = tmp_path / "uri", tmp_path / "exporter.yml"
    secret.write_bytes(form(f"{URI}\n".encode()))
    file.write_bytes(form(f"mongodb:\n  uri_file: {secret}\ncloudwatch:\n  interval: 10m\n".encode()))
    settings = load(file, {})
    assert settings.mongodb_uri == URI
    assert settings.cloudwatch.interval == 600


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{URI}\0".encode(), None),  # printf '%s\0', or a C program
        (URI.encode("utf-16"), "is not a text file in UTF-8"),
        (f'"{URI}"'.encode(), "it must begin with mongodb:// or mongodb+srv://"),
        (f"# the URI\n{URI}".encode(), "it must begin with mongodb:// or mongodb+srv://"),
        (b"bW9uZ29kYjovL2xvY2FsaG9zdA==", "it must begin with mongodb:// or mongodb+srv://"),
    ],
    ids=["nul", "utf-16", "quoted", "two lines", "base64"],
)
def test_a_connection_string_in_another_form_is_read_or_refused_in_a_sentence_without_it(
    tmp_path: Path, content: bytes, expected: str | None
) -> None:
    secret = tmp_path / "uri"
    secret.write_bytes(content)
    settings = load(None, {"CML_EXPORTER_MONGODB__URI_FILE": str(secret)})
    if expected is None:
        assert settings.mongodb_uri == URI
        return
    with pytest.raises(ConfigError) as caught:
        _ = settings.mongodb_uri
    assert str(caught.value).endswith(expected)
    assert "hunter2" not in str(caught.value)


def test_a_byte_order_mark_is_skipped_in_every_text_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(BOM + b"a\r\nb")
    assert read_text(file, "any") == "a\nb"


@pytest.mark.parametrize(
    "pasted",
    [
        URI,
        URI.replace("mongodb:", "mongodb+srv:"),
        f" {URI}",
        f'"{URI}"',
        "manager:hunter2@db.example.com",
        "MongoDB://manager:hunter2@db",
    ],
)
@pytest.mark.parametrize("place", ["file", "environment", "flag"])
def test_a_connection_string_pasted_in_place_of_its_file_is_never_printed(tmp_path: Path, pasted: str, place: str) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text(f"mongodb:\n  uri_file: '{pasted}'\n" if place == "file" else "")
    environment = {"CML_EXPORTER_MONGODB__URI_FILE": pasted} if place == "environment" else {}
    flags = {"mongodb.uri_file": pasted} if place == "flag" else {}
    with pytest.raises(ConfigError) as caught:
        load(file, environment, flags)
    assert "uri_file holds a connection string instead of the path of a file" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_paths_with_colons_and_at_signs_stay_valid(tmp_path: Path) -> None:
    for name in ("/run/secrets/mongodb", "/etc/mongodb:prod/uri", "/srv/user@host/uri", "mongodb.uri"):
        assert str(load(None, {"CML_EXPORTER_MONGODB__URI_FILE": name}).mongodb.uri_file) == name
