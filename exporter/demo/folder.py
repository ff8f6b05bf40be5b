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

WORLD, LOCK, ENDPOINTS, CONFIG = "cml-demo.json", "cml-demo.lock", "endpoints.json", "exporter.yml"
MONGODB, OUTBOX, PROMETHEUS = "mongodb", "exporter", "prometheus"
_DATA = (ENDPOINTS, CONFIG, MONGODB, OUTBOX, PROMETHEUS)
"""What --fresh removes; the world, which marks the folder as a demo's, goes last."""


@contextmanager
def hold_folder(directory: Path) -> Iterator[None]:
    """Make the folder and keep a second demo out of it."""
    try:
        fresh = not directory.exists() or not any(directory.iterdir())
        if not fresh and not (directory / WORLD).exists() and not (directory / LOCK).exists():
            raise ConfigError(f"{directory} is not empty and no demo's; name another folder with --dir")
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK).open("a")
    except OSError as error:
        raise ConfigError(f"--dir: {directory} cannot be used: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another demo runs in {directory}; stop it or name another folder with --dir") from error
        (directory / ENDPOINTS).unlink(missing_ok=True)  # of a demo that was killed
        yield


def open_world(directory: Path, *, fresh: bool) -> World:
    """Return the folder's world, a new one if there is none; with `fresh`, remove the demo's data and make a new one.

    Raises:
        ConfigError: the world cannot be read.
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
    """Return the world that the folder keeps, None before the first start; raises ConfigError when it is damaged."""
    path = directory / WORLD
    try:
        content = json.loads(path.read_text())
        return World(seed=int(content["seed"]), start=int(content["start"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; start over with --fresh") from error


def write_private_file(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner may read it, for connection strings hold passwords."""
    draft = path.with_name(path.name + ".tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
