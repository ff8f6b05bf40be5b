"""The folder in which the demo keeps its data between runs."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.core.errors import ConfigError
from exporter.demo.fleet import World
from exporter.demo.past import SEED
from exporter.demo.ports import PORTS

WORLD, LOCK, ENDPOINTS, CONFIG = "cml-demo.json", "cml-demo.lock", "endpoints.json", "exporter.yml"
MONGODB, OUTBOX, PROMETHEUS = "mongodb", "exporter", "prometheus"
EXPORTER_LOG, PROMETHEUS_LOG = "exporter.log", "prometheus.log"
_DATA = (ENDPOINTS, CONFIG, MONGODB, OUTBOX, PROMETHEUS, EXPORTER_LOG, PROMETHEUS_LOG, PORTS)
"""What --fresh removes; the world file, which marks the folder as a demo's, is removed last."""


@contextmanager
def hold_folder(directory: Path) -> Iterator[None]:
    """Create the folder and hold its lock, so that no second demo runs in it.

    Raises:
        ConfigError: the folder holds other files, cannot be used, or is locked by another demo.
    """
    try:
        fresh = not directory.exists() or not any(directory.iterdir())
        if not fresh and not (directory / WORLD).exists() and not (directory / LOCK).exists():
            raise ConfigError(f"{directory} is not empty and not the folder of a demo; name another folder with --dir")
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK).open("a")
    except OSError as error:
        raise ConfigError(f"--dir: {directory} cannot be used: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another demo runs in {directory}; stop it or name another folder with --dir") from error
        (directory / ENDPOINTS).unlink(missing_ok=True)  # left by a demo that was killed
        yield


def open_world(directory: Path, *, fresh: bool) -> World:
    """Return the world of the folder, or create one; with `fresh`, remove the demo's data first.

    Raises:
        ConfigError: the world file is damaged.
    """
    world = None if fresh else read_world(directory)
    if world is None:
        for name in (*_DATA, WORLD) if fresh else ():
            path = directory / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        world = World(seed=SEED, start=int(time.time()))
        write_private_file(directory / WORLD, json.dumps({"seed": world.seed, "start": world.start}) + "\n")
    return world


def read_world(directory: Path) -> World | None:
    """Return the world of the folder, None if it has none.

    Raises:
        ConfigError: the world file is damaged.
    """
    path = directory / WORLD
    try:
        content = json.loads(path.read_text())
        return World(seed=int(content["seed"]), start=int(content["start"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; start over with --fresh") from error


def write_private_file(path: Path, text: str) -> None:
    """Replace a file atomically; only its owner may read it, because connection strings hold passwords."""
    draft = path.with_name(path.name + ".tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
