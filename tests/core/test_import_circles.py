"""No module of core needs itself, by imports inside functions neither."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

CORE = Path(__file__).resolve().parents[2] / "core"


def modules() -> dict[str, Path]:
    """The files of core by module name."""
    parts = {path: path.relative_to(CORE.parent).with_suffix("").parts for path in CORE.rglob("*.py")}
    return {".".join(name[:-1] if name[-1] == "__init__" else name): path for path, name in parts.items()}


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules among ``known`` that a file imports anywhere, except for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in node.body
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below | ({node.module} if below - known else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def test_no_module_of_core_needs_itself() -> None:
    known = modules()
    assert len(known) > 100
    graph = {name: imported(path, set(known)) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" needs ".join(reversed(error.args[1]))) from None
