"""`ddiff check`: tell whether a measurement operator is sound."""

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from ddiff_jax.check import check_operator
from ddiff_jax.cli.flags import parse
from ddiff_jax.operators import Operator

DESCRIPTION = """Check a measurement operator of your own.

examples:
  ddiff check camera:blur                 blur(x) in ./camera.py, on images of 64x64x3
  ddiff check camera:make --shape 256 256 3

MODULE:NAME is a function of one image, an object with a method forward, or a function whose first argument is called
shape and that returns one of these. The exit code is 0 if all is well and 1 if something is not."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to check.

    Args:
        operator: MODULE:NAME, looked up from the current folder first.
        shape: Height, width and channels of the images; length and channels of signals; four numbers for volumes.
        seed: Draws the test images.
        json: Print the report as JSON.
    """

    operator: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:NAME")]
    shape: tuple[int, ...] = (64, 64, 3)
    seed: int = 0
    json: tyro.conf.FlagCreatePairsOff[bool] = False


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(Options, argv, prog="ddiff check", description=DESCRIPTION)
    report = check_operator(find(options.operator, options.shape), options.shape, seed=options.seed)
    print(json.dumps(report.as_dict(), indent=1) if options.json else report)
    return 0 if report.ok else 1


def find(name: str, shape: tuple[int, ...]) -> Any:
    """Import an operator by name; a maker (its first argument is called shape) is called.

    Raises:
        ValueError: there is no such module or name, or the module cannot be imported.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"an operator is named MODULE:NAME, such as camera:blur for blur in camera.py; got {name!r}")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name.removesuffix(".py"))
    except Exception as error:  # whatever the stranger's module raises
        raise ValueError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not hasattr(module, attribute):
        known = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise ValueError(f"{module_name} has no {attribute}; it holds {known}")
    found = getattr(module, attribute)
    if inspect.isfunction(found) and next(iter(inspect.signature(found).parameters), None) == "shape":
        found = found(shape)
    if not (isinstance(found, Operator) and not inspect.isclass(found)) and not inspect.isroutine(found):
        kind = "a class; name an object of it" if inspect.isclass(found) else f"a {type(found).__name__}"
        raise ValueError(f"{name} must be a function of one image or an object with a method forward; it is {kind}")
    return found
