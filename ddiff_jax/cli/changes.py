"""What `--set NAME:FLAG=VALUE` says, as values: other hyper-parameters and arguments for one task or solver."""

import shlex
from collections.abc import Sequence
from typing import Any

from ddiff_jax.cli.flags import Flag, parse, section
from ddiff_jax.cli.settings import flags_of
from ddiff_jax.config import find_task, presets, task_preset
from ddiff_jax.names import UnknownName, check_name, guess
from ddiff_jax.operators import OPERATORS
from ddiff_jax.own_code import is_path
from ddiff_jax.restoration.spelling import GENERAL, spelled
from ddiff_jax.solvers import SOLVERS


def read_changes(texts: Sequence[str], dataset: str) -> dict[str, dict[str, Any]]:
    """Read the texts into arguments of `Plan`.

    Args:
        texts: NAME:FLAG=VALUE, where NAME is a task, a solver or an operator, also one's own as MODULE:NAME.
        dataset: whose tasks there are.

    Raises:
        UnknownName: no such task, solver or flag.
        ValueError: another form, or a value that is none.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        head, equals, value = text.partition("=")
        name, colon, flag = head.rpartition(":")
        flag = flag.lstrip("-").replace("-", "_")
        if not (name and colon and flag and equals):
            raise ValueError(f"--set takes NAME:FLAG=VALUE, for example ddiff:gamma=12; got {text!r}")
        if not is_path(name) and name not in OPERATORS:
            check_name("task or solver that is changed", name, (*presets()[dataset], *SOLVERS))
        known = {entry.name: (field, entry) for field, entry in _flags(name, dataset).items()}
        if flag in GENERAL:
            raise ValueError(f"--set {text}: {spelled(flag)} is a flag of all cells; give it beside --set")
        if flag not in known:
            near = guess(spelled(flag), map(spelled, known))
            raise UnknownName(f"unknown flag {spelled(flag)}; {near}--set knows for {name}: {', '.join(known)}")
        field, entry = known[flag]
        found.setdefault(name, {})[field] = _value(entry, value)
    return found


def _flags(name: str, dataset: str) -> dict[str, Flag]:
    """List what can be said of a solver, or of a task: its operator's arguments, and what the solvers can be told."""
    any_task = task_preset(dataset, presets()[dataset][0])
    if name in SOLVERS:
        return flags_of(any_task, name).solver
    task = find_task(dataset, *((name,) if name in presets()[dataset] else (None, name)))
    of_solvers = {field: flag for solver in SOLVERS for field, flag in flags_of(task, solver).solver.items()}
    return {**of_solvers, **flags_of(task, next(iter(SOLVERS))).operator}


def _value(flag: Flag, text: str) -> Any:
    command = section("Change", [flag], required=True)
    return getattr(parse(command, [spelled(flag.name), *shlex.split(text)], prog="ddiff evaluate"), flag.name)
