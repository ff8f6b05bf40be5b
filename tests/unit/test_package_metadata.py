"""The package's README has no link that leads nowhere on an index, with and without the repository's address."""

import re
from pathlib import Path

import pytest

from hatch_build import readable, urls

README = (Path(__file__).parents[2] / "README.md").read_text()
ADDRESS = "https://example.org/owner/repository"


@pytest.mark.parametrize("address", ["", ADDRESS])
def test_every_link_and_picture_of_the_readme_is_absolute(address: str) -> None:
    text = readable(README, address, "v1.2.3")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert [target for target in targets if not re.match(r"https?:|#", target)] == []
    assert ("<picture>" in text) == ("<picture>" in README and bool(address))
    kept = re.sub(r"<picture>.*?</picture>|\]\([^)\s]+\)|[\[\]\n]", "", README, flags=re.DOTALL)
    assert re.sub(r"<picture>.*?</picture>|\]\([^)\s]+\)|[\[\]\n]", "", text, flags=re.DOTALL) == kept, "other text changed"


def test_files_and_pictures_get_the_address_of_the_tag() -> None:
    text = readable('[a](docs/a.md#b) [c](https://c) [d](#d) <img src="e.webp">', ADDRESS, "v1")
    assert text == f'[a]({ADDRESS}/blob/v1/docs/a.md#b) [c](https://c) [d](#d) <img src="{ADDRESS}/raw/v1/e.webp">'


def test_urls_need_an_address() -> None:
    assert urls("") == {}
    assert all(each.startswith(ADDRESS) for each in urls(ADDRESS).values())
