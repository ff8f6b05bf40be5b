"""`cml-worker-exporter assets`: list or write the package's files for Prometheus, Alertmanager, Grafana, and systemd."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from exporter.commands.terminal import say
from exporter.core import assets
from exporter.core.errors import ConfigError

PURPOSES: Mapping[str, str] = {
    "grafana/dashboards": "dashboards for Grafana 9.1 and later",
    "prometheus": "configuration of Prometheus and Alertmanager, and the runbook of the alerts",
    "prometheus/local": "where your own rules, targets, and receivers go",
    "prometheus/rules": "recording rules, alerts, and their thresholds",
    "systemd": "hardened unit, and a socket that survives restarts",
}
"""What each folder is for."""
_CONFIGURATION = "prometheus/prometheus.yml"
_OWN = ("prometheus/local/rules", "prometheus/local/targets")
"""Folders of the user; Prometheus logs an error for targets in a folder that is missing."""


def run(output: Path | None, addresses: Mapping[str, str], out: TextIO, *, force: bool, as_json: bool) -> int:
    """Write the files into `output`, or without it list them, and return the exit status 0.

    Files that are there with the same content stay as they are. If one has another content, none is written.

    Args:
        output: folder to write into; created if it is missing.
        addresses: by address in the shipped prometheus.yml, the host:port that is written in its place.
        out: receives the list of files.
        force: replace files whose content differs.
        as_json: print the paths as a JSON array.

    Raises:
        ConfigError: a file with another content is there, or the folder cannot be written.
    """
    contents = {path: file.read_bytes() for path, file in assets.files().items()}
    contents[_CONFIGURATION] = _with_addresses(contents[_CONFIGURATION], addresses)
    if output is not None:
        try:
            _write(output, contents, force)
            for folder in _OWN:
                (output / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{error.filename or output} cannot be written: {error.strerror}") from error
    if as_json:
        print(json.dumps([str(output / path if output else path) for path in contents], indent=2), file=out)
    elif output is not None:
        say(f"{len(contents)} files are in {output}", out)
    else:
        _list(list(contents), out)
    return 0


def _with_addresses(content: bytes, addresses: Mapping[str, str]) -> bytes:
    text = content.decode()
    for shipped, own in addresses.items():
        text = text.replace(shipped, own)
    return text.encode()


def _write(output: Path, contents: Mapping[str, bytes], force: bool) -> None:
    changed = {path: content for path, content in contents.items() if _read(output / path) != content}
    differing = [path for path in changed if (output / path).exists()]
    if differing and not force:
        raise ConfigError(
            f"{output} has other versions of {', '.join(differing)}; nothing was written. "
            "Choose another folder, or replace them with --force"
        )
    for path, content in changed.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(content)


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _list(paths: list[str], out: TextIO) -> None:
    for folder, purpose in PURPOSES.items():
        say(f"{folder}: {purpose}", out)
        for path in paths:
            if path.rpartition("/")[0] == folder:
                say(f"  {path}", out)
