"""Every command and every settings file of the pages for people is one that the program and the Makefile take."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from exporter import cli
from exporter.core.settings import Settings
from exporter.core.settings_loader import load

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("prometheus/*.md"),
        ROOT / "prometheus/local/README.md",
    )
    if page.name not in ("CHANGELOG.md", "benchmarks.md")
]
FENCED = re.compile(r"^ *```console\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
MAKEFILE = (ROOT / "Makefile").read_text()
ENDS = {"&&", "|", ";", ">", "<", "2>"}


def typed(page: Path) -> Iterator[tuple[bool, str]]:
    """Yield what a reader is told to type: lines of fenced code after a prompt (True), and inline code (False)."""
    text = page.read_text()
    for block in FENCED.findall(text):
        yield from ((True, line) for line in re.findall(r"^ *\$ (.*)$", block.replace("\\\n", " "), re.MULTILINE))
    for code in INLINE.findall(re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)):
        yield False, code


def arguments(command: str, program: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of a program in a command line; elsewhere its name is that of a service or folder."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words = list(lexer)
    for position, word in enumerate(words):
        called = position == 0 or words[position - 1] in (*ENDS, "exporter")  # docker compose exec exporter …
        if called and (word == program or word.endswith(f"/{program}")):
            rest = words[position + 1 :]
            yield rest[: next((number for number, each in enumerate(rest) if each in ENDS), len(rest))]


def calls(program: str, *, fenced: bool) -> list[tuple[str, list[str]]]:
    """Return (page, arguments) of each call of a program on the pages that has arguments and is written out."""
    return [
        (page.name, call)
        for page in PAGES
        for whole, command in typed(page)
        if whole == fenced and re.search(rf"(?:^|[ /]){program} ", command)
        for call in arguments(command, program)
        if call and "…" not in "".join(call)
    ]


WHOLE, NAMED = calls("cml-worker-exporter", fenced=True), calls("cml-worker-exporter", fenced=False)
MAKE = [*calls("make", fenced=True), *(each for each in calls("make", fenced=False) if re.match("[a-z]", each[1][0]))]


def test_there_are_many() -> None:
    assert min(len(WHOLE), len(NAMED), len(MAKE)) > 15


@pytest.mark.parametrize(("page", "call"), WHOLE, ids=[f"{page}: {' '.join(call)}" for page, call in WHOLE])
def test_the_program_takes_a_documented_command(page: str, call: list[str]) -> None:
    cli._parse(cli._join_times(call))


@pytest.mark.parametrize(("page", "call"), NAMED, ids=[f"{page}: {' '.join(call)}" for page, call in NAMED])
def test_a_command_named_in_a_sentence_and_its_flags_exist(page: str, call: list[str]) -> None:
    """A sentence may leave out what a command needs besides."""
    if call == ["--version"]:
        return
    name, *rest = call
    parser = cli.parser_of(name)[1][name]
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize(("page", "call"), MAKE, ids=[f"{page}: {' '.join(call)}" for page, call in MAKE])
def test_the_makefile_has_a_documented_target(page: str, call: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"\$[({](\w+)", MAKEFILE))
    for word in call:
        name, given, _ = word.partition("=")
        assert name in (variables if given else targets), word


def examples() -> list[tuple[str, str]]:
    """Return (page, text) of the examples of settings files: YAML whose keys are all sections of the settings."""
    blocks = [
        (page.name, textwrap.dedent(block))
        for page in PAGES
        for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    return [
        (name, block)
        for name, block in blocks
        if isinstance(content := yaml.safe_load(re.sub(r"!reset", "", block)), dict)
        and content.keys() <= Settings.model_fields.keys()
    ]


EXAMPLES = examples()


@pytest.mark.parametrize(("page", "text"), EXAMPLES, ids=[f"{page}-{number}" for number, (page, _) in enumerate(EXAMPLES)])
def test_an_example_of_settings_is_accepted(page: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text(text)
    given = yaml.safe_load(text).get("mongodb") or {}
    environ = {} if given.keys() & {"uri", "uri_file"} else {"CML_EXPORTER_MONGODB__URI": "mongodb://127.0.0.1/db"}
    load(file, environ, {})
