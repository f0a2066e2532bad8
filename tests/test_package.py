"""What the package promises as a whole: light imports, declared names and dependencies, examples that run."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

import ddiff_jax
from ddiff_jax import operators
from ddiff_jax.readers import PACKAGES

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
OURS = ("ddiff_jax", "convert_weights")
# What the API reference has a page for.
PUBLIC = re.findall(
    r"^   ((?:ddiff_jax|convert_weights)\S*)$", (ROOT / "docs/reference/index.md").read_text(), re.MULTILINE
)
# Declared for what it does rather than for an import: where that is said, and how.
TOOLS = {
    "beartype": ("pyproject.toml", "beartype.beartype"),
    "build": (".ci/run", "-m build"),
    "joblib": ("docs/conf.py", '"parallel"'),
    "myst-nb": ("docs/conf.py", '"myst_nb"'),
    "pyright": (".ci/run", "$bin/pyright"),
    "pytest-xdist": ("pyproject.toml", "-n auto"),
    "ruff": (".ci/run", "$bin/ruff"),
    "sphinx": (".ci/run", "$bin/sphinx-build"),
    "sphinx-book-theme": ("docs/conf.py", '"sphinx_book_theme"'),
    "sphinx-copybutton": ("docs/conf.py", '"sphinx_copybutton"'),
    "sphinx-mathjax-offline": ("docs/conf.py", '"sphinx-mathjax-offline"'),
    "sphinx-design": ("docs/conf.py", '"sphinx_design"'),
    "twine": (".ci/run", "$bin/twine"),
}


def test_import_is_light():
    program = "import sys, ddiff_jax; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for heavy in ("flax", "orbax", "torch", "optax", "matplotlib", "grain", "PIL", "tyro", "rich"):
        assert f"'{heavy}'" not in done.stdout


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name):
    """Every function and class says what it is, and what each of its arguments is."""
    module = importlib.import_module(name)
    lacking = []
    for thing_name in module.__all__:
        thing = getattr(module, thing_name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        # A class says of inherited arguments what is its own.
        told = "\n".join(
            inspect.getdoc(kind) or "" for kind in (inspect.getmro(thing) if inspect.isclass(thing) else [thing])
        )
        arguments = own_arguments(thing)
        missing = [argument for argument in arguments if not re.search(rf"\b{argument}\b", told)]
        if not inspect.getdoc(thing) or (len(arguments) > 1 and missing):
            lacking.append((thing_name, missing))
        for method_name, method in vars(thing).items() if inspect.isclass(thing) else ():
            is_field = method_name in getattr(thing, "__dataclass_fields__", ())
            if inspect.isfunction(method) and not (is_field or method_name.startswith("_") or inspect.getdoc(method)):
                lacking.append((f"{thing_name}.{method_name}", []))
    assert not lacking, "; ".join(f"{name}: {missing}" for name, missing in lacking)


def own_arguments(thing: Any) -> list[str]:
    if inspect.isclass(thing) and not dataclasses.is_dataclass(thing):
        return []
    return [
        name for name in inspect.signature(thing).parameters if name not in ("self", "args", "kwargs", "parent", "name")
    ]


def test_the_random_argument_is_called_key():
    for factory in operators.OPERATORS.values():
        names = list(inspect.signature(factory).parameters)
        assert "rng" not in names and "seed" not in names
        assert names[0] == "shape"


def test_examples_in_docstrings_run():
    attempted = 0
    for folder in OURS:
        for path in (ROOT / folder).rglob("*.py"):
            if ">>> " in path.read_text(encoding="utf-8"):
                module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
                # `import a.b` may give a function that has the name of its module.
                done = doctest.testmod(sys.modules[module.__name__], verbose=False)
                assert done.failed == 0, path
                assert done.attempted > 0, f"{path}: nothing runs its examples"
                attempted += done.attempted
    assert attempted > 0


def test_sources_are_public():
    # Papers and released codes, not the sections of a document that the reader does not have.
    cited = re.compile(r"\b[A-Z]{5,}(?:\.md)?,? sections? \d|\bOPERATORS [\d\"]")
    for folder in (*OURS, "tests", "configs", "benchmarks", "docs"):
        for path in (p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".yaml", ".md")):
            assert not cited.findall(path.read_text(encoding="utf-8")), path


def imported(*folders: str) -> set[str]:
    """Find the distributions that files import, at the top or inside of functions, and which are not Python's own."""
    names: set[str] = set()
    own = {path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).glob("*.py")} | {*OURS}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    distributions = metadata.packages_distributions()
    return {plain(distributions.get(name, [name])[0]) for name in names - own if name not in sys.stdlib_module_names}


def plain(name: str) -> str:
    """Spell a distribution as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str | dict[str, str]]) -> set[str]:
    return {plain(m[0]) for r in requirements if isinstance(r, str) and (m := re.match(r"[\w.-]+", r))}


def test_what_is_imported_is_declared_and_what_is_declared_is_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = declared(project["project"]["dependencies"])
    optional = project["project"]["optional-dependencies"]
    ours = ("report", "grain", "hf", "tensorboard", *PACKAGES)
    extra = declared(r for name in ours for r in optional[name])
    development = declared(r for group in project["dependency-groups"].values() for r in group)
    assert imported(*OURS) - extra == needed
    assert extra <= imported(*OURS)
    assert imported("tests") <= needed | development
    assert development - imported("tests", "benchmarks", "docs") - extra == TOOLS.keys()
    for tool, (path, use) in TOOLS.items():
        assert use in (ROOT / path).read_text(encoding="utf-8"), tool


def test_hooks_have_the_versions_of_the_gate():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (pinned,) = (r for r in project["dependency-groups"]["dev"] if str(r).startswith("ruff"))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["additional_dependencies"] for hook in hooks if "additional_dependencies" in hook] == [[pinned]] * 2


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == ddiff_jax.__version__
    assert f"\n## {ddiff_jax.__version__} - {citation['date-released']}\n" in changes
