"""What the package promises as a whole: light imports, declared names and dependencies, examples that run."""

import ast
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

import ddiff_jax
from ddiff_jax import extend, operators
from ddiff_jax.readers import PACKAGES

ROOT = Path(__file__).parents[1]
OURS = ("ddiff_jax", "convert_weights")
# Declared for what it does rather than for an import: where that is said.
TOOLS = {
    "equinox": "README.md",
    "beartype": "pyproject.toml",
    "pytest-xdist": "pyproject.toml",
    "pyright": ".ci/run",
    "ruff": ".ci/run",
}
USES = {
    "equinox": "import equinox",
    "beartype": "beartype.beartype",
    "pytest-xdist": "-n auto",
    "pyright": "$bin/pyright",
    "ruff": "$bin/ruff",
}


def test_import_is_light():
    program = "import sys, ddiff_jax; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for heavy in ("flax", "orbax", "torch", "optax", "matplotlib", "grain", "PIL", "tyro", "rich"):
        assert f"'{heavy}'" not in done.stdout


def test_every_declared_name_exists_and_is_documented():
    for module in (ddiff_jax, operators, ddiff_jax.solvers, extend):
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                assert inspect.getdoc(thing), name


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
    for tool, path in TOOLS.items():
        assert USES[tool] in (ROOT / path).read_text(encoding="utf-8"), tool
