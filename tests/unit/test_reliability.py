"""docs/reliability.md has every fault of the catalog, with the figures that were recorded, and names tests that exist."""

import ast
from pathlib import Path

import pytest

from tests.helpers import reliability
from tests.helpers.reliability import FAULTS, PAGE, ROOT, Fault, page, record, recorded


def test_the_page_is_the_catalog_with_the_recorded_figures() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.tools.reliability --render"


def test_every_fault_is_listed_once_and_every_file_of_figures_is_of_a_fault() -> None:
    keys = [fault.key for fault in FAULTS]
    assert len(keys) == len(set(keys))
    assert set(recorded()) <= set(keys)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.key)
def test_the_test_of_a_fault_exists_and_records_it(fault: Fault) -> None:
    file, _, name = fault.test.partition("::")
    text = (ROOT / file).read_text()
    functions = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in functions
    assert f'"{fault.key}"' in text, "a test calls record with the key of its fault"


def test_figures_are_written_only_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "FIGURES", tmp_path)
    record("disk-full", lost=0)
    assert recorded() == {}
    monkeypatch.setenv(reliability.RECORD, "1")
    record("disk-full", lost=1, silence=0.25)
    assert recorded()["disk-full"] == reliability.Figures(lost=1, silence=0.2)
    with pytest.raises(AssertionError, match="not in the catalog"):
        record("sunspots")
