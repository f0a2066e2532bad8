"""How the rooms hang together: the imports that the files write down, read without running them."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import convert_weights
import ddiff_jax

ROOT = Path(__file__).parents[1]
# The command line is the last room: nothing but the entry points may reach into it.
ENTRIES = {"ddiff_jax.__main__", "convert_weights.__main__"}


def named(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {named(path): path for folder in ("ddiff_jax", "convert_weights") for path in (ROOT / folder).rglob("*.py")}


def statements(tree: ast.AST, *, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Find imports; without `lazy` those alone that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        if lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, lazy=lazy)


def imports(module: str, *, lazy: bool) -> set[str]:
    """Name the modules of ours that a module imports; `from a import b` is a.b where that is a module."""
    found = set()
    for node in statements(ast.parse(FILES[module].read_text(encoding="utf-8")), lazy=lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0 and node.module, f"{module} imports by dots"
            found |= {f if (f := f"{node.module}.{alias.name}") in FILES else node.module for alias in node.names}
    return found & FILES.keys()


def test_imports_go_in_no_circle():
    graph = {module: imports(module, lazy=False) for module in FILES}
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in leaves}
    assert not graph, {module: needs & graph.keys() for module, needs in graph.items()}


def test_nothing_reaches_into_the_command_line():
    into = {
        module
        for module in FILES
        if not module.startswith("ddiff_jax.cli")
        and any(n.startswith("ddiff_jax.cli") for n in imports(module, lazy=True))
    }
    assert into == ENTRIES


def test_solvers_know_what_an_operator_is_and_not_which_there_are():
    for module in (m for m in FILES if m.startswith("ddiff_jax.solvers")):
        assert "ddiff_jax.operators" not in imports(module, lazy=False), module


def test_no_name_hides_a_module():
    packages: list[ModuleType] = [ddiff_jax, convert_weights]
    seen = 0
    while packages:
        package = packages.pop()
        for info in pkgutil.iter_modules(package.__path__):
            if info.name == "__main__":
                continue
            name = f"{package.__name__}.{info.name}"
            module = importlib.import_module(name)
            assert getattr(package, info.name) is module, f"{package.__name__} has another thing called {info.name}"
            packages += [module] if info.ispkg else []
            seen += 1
    assert seen > len(FILES) / 2
