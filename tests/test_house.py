"""Structural rules of the package: import order, sizes, branches, and where private APIs may be used."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT

PACKAGE = ROOT / "fer_lightning"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. A module may import from its own floor and the floors below.
FLOORS = (
    "emotions errors files text environment exit hardware arguments",
    "data",
    "models",
    "inference",
    "drawing",
    "evaluation",
    "audit",
    "runs",
    "training",
    "config",
    "callbacks",
    "experiment",
    "benchmark",
    "commands",
    "__main__",
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}

MOST_ROOT_FILES, MOST_LINES, MOST_BRANCHES = 10, 450, 15

# Modules that may use private names of other packages. Optuna has no public way to reopen a trial by its number.
PRIVATE = ("training/compat.py", "config/compat.py", "runs/search.py")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a module imports, including imports in functions and for typing."""
    modules = {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fer_lightning"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def room(name: str) -> str:
    return name.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_the_floors(path):
    name = name_of(path)
    if name == "fer_lightning":  # re-exports the public names
        return
    assert room(name) in FLOOR, f"{name} is on no floor"
    above = [other for other in imports(path) if room(other) and FLOOR[room(other)] > FLOOR[room(name)]]
    assert not above, f"{name} imports from a higher floor"


def test_there_are_no_import_cycles():
    imported = {name_of(path): set(imports(path)) - {name_of(path)} for path in MODULES}
    del imported["fer_lightning"]
    while free := [name for name, targets in imported.items() if not targets & imported.keys()]:
        for name in free:
            del imported[name]
    assert not imported, "these modules are part of an import cycle or lead into one"


def test_the_package_root_stays_small():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_ROOT_FILES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def branches(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of branches in a function, without those of nested functions and classes."""
    count, nodes = 0, list(ast.iter_child_nodes(function))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        count += isinstance(
            node,
            ast.If
            | ast.For
            | ast.While
            | ast.Try
            | ast.ExceptHandler
            | ast.With
            | ast.IfExp
            | ast.comprehension
            | ast.match_case,
        )
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        nodes += ast.iter_child_nodes(node)
    return count


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_have_few_branches(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    counts = {function.name: branches(function) for function in functions}
    assert {name: n for name, n in counts.items() if n > MOST_BRANCHES} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_names_of_other_packages_are_used_only_in_compat_modules(path):
    if path.relative_to(PACKAGE).as_posix() in PRIVATE:
        return
    uses = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            of = node.value
            ours = isinstance(of, ast.Name) and of.id in ("self", "cls")
            inherited = isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "super"
            if not ours and not inherited and node.attr != "_target_":
                uses.append(f"{ast.unparse(node)}, line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module:
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            if private or any(part.startswith("_") and part != "__future__" for part in node.module.split(".")):
                uses.append(f"{ast.unparse(node)}, line {node.lineno}")
    assert uses == []
