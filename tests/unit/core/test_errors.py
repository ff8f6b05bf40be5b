"""The tree of errors is what its docstring draws, and every error of the package belongs to it."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from exporter.core import errors
from exporter.core.errors import ExporterError

PACKAGE = Path(errors.__file__).parents[1]
DEFINED = {name: each for name, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__}


def drawn() -> dict[str, str | None]:
    """Class → parent, as the docstring draws them by indentation."""
    tree: dict[str, str | None] = {}
    ancestors: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(  |$)", line)
        if not found:
            continue
        depth, name = len(found[1]), found[2]
        while ancestors and ancestors[-1][0] >= depth:
            ancestors.pop()
        tree[name] = ancestors[-1][1] if ancestors else None
        ancestors.append((depth, name))
    return tree


def test_the_docstring_draws_the_tree_of_the_classes() -> None:
    parents = {name: each.__bases__[0].__name__ for name, each in DEFINED.items()}
    assert drawn() == parents | {"ExporterError": None}


def test_the_docstring_lists_the_classes_in_the_order_of_the_module() -> None:
    assert list(drawn()) == sorted(DEFINED, key=lambda name: inspect.getsourcelines(DEFINED[name])[1])


@pytest.mark.parametrize("name", DEFINED)
def test_every_error_has_one_parent_and_a_docstring(name: str) -> None:
    assert len(DEFINED[name].__bases__) == 1
    assert issubclass(DEFINED[name], ExporterError)
    assert DEFINED[name].__doc__


def test_every_exception_of_the_package_is_an_exporter_error_and_is_named_so() -> None:
    """By their base classes in the source, so that no module has to be imported."""
    bases: dict[str, list[str]] = {}
    where: dict[str, str] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                where[node.name] = f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}"

    def ancestors(name: str) -> set[str]:
        return {name}.union(*(ancestors(base) for base in bases.get(name, ()) if base != name))

    def is_exception(name: str) -> bool:
        return any(re.search(r"(Error|Exception)$", each) for each in ancestors(name))

    exceptions = [name for name in bases if is_exception(name)]
    assert len(exceptions) > len(DEFINED)
    assert [where[name] for name in exceptions if "ExporterError" not in ancestors(name)] == []
    assert [where[name] for name in exceptions if not name.endswith("Error")] == []
