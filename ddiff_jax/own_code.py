"""Code of one's own, named MODULE:NAME: imported from the current folder first, and known by its files' hash."""

import contextlib
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ddiff_jax.files import file_hash

INSTALLED = ("site-packages", "dist-packages")  # folders whose modules are no part of anybody's own code
OURS = "ddiff_jax"


def is_path(name: str) -> bool:
    """Tell whether a name says where something of one's own is: MODULE:NAME."""
    return ":" in name


def imported(name: str, what: str, example: str) -> tuple[str, Any, str]:
    """Import something of one's own.

    Args:
        name: MODULE:NAME; MODULE may be written as a file, too.
        what: it should be, for messages: "an operator".
        example: of such a name.

    Returns:
        The name in its plain spelling, what it names, and the hash of the source files.

    Raises:
        ValueError: there is no such module or NAME in it, or importing it raises something.
    """
    module_name, _, attribute = name.partition(":")
    module_name = module_name.removesuffix(".py").replace("/", ".")
    if not (module_name and attribute):
        raise ValueError(f"{what} is named MODULE:NAME, such as {example}; got {name!r}")
    try:
        with current_folder():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the stranger's module raises
        raise ValueError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        known = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise ValueError(f"{module_name} has no {attribute}; it holds {known}")
    return f"{module_name}:{attribute}", getattr(module, attribute), _hash_of_sources(module)


@contextlib.contextmanager
def current_folder() -> Iterator[None]:
    """Look for modules in the current folder first."""
    sys.path.insert(0, here := os.getcwd())
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the stranger's code may have taken it out
            sys.path.remove(here)


def _hash_of_sources(module: ModuleType) -> str:
    """Hash the file of a module, and those that it imports from the same folder or package."""
    files = _sources(module)
    # Where they lie does not count, what they are called does.
    top = os.path.commonpath([path.parent for path in files]) if files else ""
    named = [f"{path.relative_to(top).as_posix()} {file_hash(path)}" for path in files]
    return hashlib.sha256("\n".join(named or [module.__name__]).encode()).hexdigest()


def _sources(module: ModuleType) -> list[Path]:
    file = getattr(module, "__file__", None)
    if file is None or not os.path.isfile(file):
        return []
    own = Path(file).resolve()
    top = own.parents[module.__name__.count(".")] if "." in module.__name__ else own.parent
    found: set[Path] = set()
    todo = [module]
    while todo:
        each = todo.pop()
        path = Path(getattr(each, "__file__", None) or os.devnull).resolve()
        is_ours = each.__name__.partition(".")[0] == OURS
        is_near = path.is_relative_to(top) and not set(INSTALLED) & set(path.parts) and not is_ours
        if path in found or not (path == own or is_near) or not path.is_file():
            continue
        found.add(path)
        todo += [other for value in list(vars(each).values()) if (other := _module_of(value)) is not None]
    return sorted(found)


def _module_of(value: Any) -> ModuleType | None:
    """Find where a value of a module comes from."""
    if isinstance(value, ModuleType):
        return value
    name = getattr(value, "__module__", None) if inspect.isroutine(value) or inspect.isclass(value) else None
    name = type(value).__module__ if name is None else name
    return sys.modules.get(name) if isinstance(name, str) else None
