"""The pictures of README.md and docs: there, small enough, and each of them shown."""

import re
from pathlib import Path

from tests.tools import screenshots

ROOT = Path(__file__).parents[2]
WORKERS = [f"w{number}" for number in range(6)]


def test_every_picture_is_there_small_enough_and_shown() -> None:
    shown = "".join((ROOT / page).read_text() for page in ("README.md", "docs/charts.md"))
    wanted = {f"{shot.name}.webp" for shot in screenshots.shots(WORKERS)}
    assert {each.name for each in (ROOT / "docs/images").glob("*.webp")} == wanted
    assert set(re.findall(r"images/([\w-]+\.webp)", shown)) == wanted
    for name in wanted:
        picture = (ROOT / "docs/images" / name).read_bytes()
        assert len(picture) <= screenshots.MAX_BYTES, name
        assert picture[:4] == b"RIFF", name


def test_a_comparison_shows_workers_by_their_ids() -> None:
    compare = next(shot for shot in screenshots.shots(WORKERS) if shot.name == "compare")
    assert compare.path.endswith("&worker=w0&worker=w1&worker=w2&worker=w3")
