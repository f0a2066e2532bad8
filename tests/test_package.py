"""What the package promises as a whole: light imports, declared names, one order of arguments."""

import inspect
import subprocess
import sys

import ddiff_jax
from ddiff_jax import operators


def test_import_is_light():
    program = "import sys, ddiff_jax; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for heavy in ("flax", "orbax", "torch", "optax", "matplotlib", "PIL", "tyro", "rich"):
        assert f"'{heavy}'" not in done.stdout


def test_every_declared_name_exists_and_is_documented():
    for module in (ddiff_jax, operators, ddiff_jax.solvers):
        for name in module.__all__:
            thing = getattr(module, name)
            if callable(thing):
                assert inspect.getdoc(thing), name


def test_the_random_argument_is_called_key():
    for factory in operators.OPERATORS.values():
        names = list(inspect.signature(factory).parameters)
        assert "rng" not in names and "seed" not in names
        assert names[0] == "shape"
