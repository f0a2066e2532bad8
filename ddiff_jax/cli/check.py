"""`ddiff check`: tell whether a measurement operator is sound."""

import atexit
import dataclasses
import json
import math
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddiff_jax import stencils
from ddiff_jax.check import THREAD, check_operator
from ddiff_jax.checkpoint import read_card
from ddiff_jax.cli.console import Console
from ddiff_jax.cli.flags import parse, section
from ddiff_jax.cli.settings import given, operator_flags
from ddiff_jax.config import Task
from ddiff_jax.noise import root_key
from ddiff_jax.operators import OPERATORS, Operator, known_image_shape
from ddiff_jax.operators.named import Maker, maker
from ddiff_jax.own_code import is_path
from ddiff_jax.restoration.parameters import REQUIRED, is_random, operator_parameters
from ddiff_jax.restoration.spelling import spelled
from ddiff_jax.types import ImageShape

SHAPE = (64, 64, 3)

DESCRIPTION = """Check a measurement operator of your own.

examples:
  ddiff check camera:blur                 blur(x) in ./camera.py, on images of 64x64x3
  ddiff check camera:make --shape 256 256 3 --radius 2
  ddiff check camera:blur --prior faces64

MODULE:NAME is a function of one image, an object with a method forward, or a function whose first argument is called
shape and that returns one of these; its other arguments become flags. What passes is used by restore, evaluate and
warmup as --operator MODULE:NAME. The exit code is 0 if all is well, and 1 if something is not or the
time was too short.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to check.

    Args:
        operator: MODULE:NAME, looked up from the current folder first, or the name of one of this package.
        shape: Height, width and channels of the images; length and channels of signals; four numbers for volumes. By
            default those of the operator or the prior, else 64 64 3.
        prior: Whether the channels fit this prior: a packaged one, the folder of a checkpoint, or hf:OWNER/MODEL.
        seconds: After so many the verdict is on what was looked at by then.
        seed: Draws the test images.
        quiet: Do not say what is being looked at.
        json: Print the report as JSON.
    """

    operator: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:NAME")]
    shape: tuple[int, ...] = ()
    prior: Annotated[str | None, tyro.conf.arg(metavar="PRIOR")] = None
    seconds: float = 60.0
    seed: int = 0
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    json: tyro.conf.FlagCreatePairsOff[bool] = False


TAKEN = tuple(field.name for field in dataclasses.fields(Options))


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    argv = _positional(argv)
    name = next((a for a in argv if is_path(a) or a in OPERATORS), None)
    flags = {}
    if name is not None:
        known = operator_flags(Task(maker(name).name, {}, 0.0), TAKEN)
        flags = {field: known[field] for field in operator_parameters(name)}
    command = dataclasses.make_dataclass(
        "Command", [("run", Options), ("arguments", section("Arguments", list(flags.values())))]
    )
    parsed: Any = parse(command, argv, prog="ddiff check", description=DESCRIPTION)
    options = parsed.run
    if not options.seconds > 0 or math.isinf(options.seconds):
        raise ValueError(f"--seconds must be a number above 0; got {options.seconds}")
    found = maker(options.operator)
    prior_shape = None if options.prior is None else read_card(options.prior).image_shape
    shape = options.shape or prior_shape or SHAPE
    operator = _build(found, shape, given(parsed.arguments, flags), options.seed)
    if not options.shape:
        shape = known_image_shape(operator) or shape
    console = Console(quiet=options.quiet)
    report = check_operator(
        *(operator, shape),
        seed=options.seed,
        prior_shape=prior_shape,
        seconds=options.seconds,
        tell=lambda doing: console.say(f"checking {doing} ..."),
    )
    print(json.dumps(report.as_dict(), indent=1) if options.json else report)
    code = 0 if report.ok and report.complete else 1
    if not report.complete:
        atexit.register(_leave, code)
    return code


def _leave(code: int) -> None:
    """End the process while XLA still compiles or computes in the thread of the check, which it would not survive."""
    if any(thread.name == THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)


def _positional(argv: Sequence[str]) -> list[str]:
    """Take --operator NAME, as the other commands have it, for NAME."""
    words = list(argv)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--operator" and (equals or i + 1 < len(words)):
            return [value or words[i + 1], *words[:i], *words[i + (1 if equals else 2) :]]
    return words


def _build(found: Maker, shape: ImageShape, arguments: dict[str, Any], seed: int) -> Operator:
    """Make the operator, with arrays from files."""
    parameters = operator_parameters(found.name)
    missing = [spelled(n) for n, (_, default) in parameters.items() if default is REQUIRED and n not in arguments]
    if missing:
        raise ValueError(f"the operator {found.name} needs {' and '.join(missing)}")
    values = {n: stencils.read_argument(n, v)[0] if isinstance(v, Path) else v for n, v in arguments.items()}
    key = root_key(seed) if is_random(found.name, arguments) else None
    return found.build(shape, key, **values)
