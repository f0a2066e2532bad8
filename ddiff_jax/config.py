"""Presets: the values of every task and dataset, read strictly from yaml files that hold nothing else."""

import dataclasses
import difflib
import functools
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ddiff_jax.operators import OPERATORS
from ddiff_jax.solvers import SOLVERS, Solver


@dataclasses.dataclass(frozen=True)
class Task:
    """One task on one dataset.

    Args:
        operator: name in `OPERATORS`.
        arguments: keyword arguments of its factory.
        sigma_y: noise standard deviation in units of the measurement.
        photons: expected count at white for Poisson noise, None for Gaussian noise.
        solvers: name in `SOLVERS` to the hyper-parameters that differ from the solver's defaults.
        few_steps: name in `SOLVERS` to the hyper-parameters that replace those where steps are few: a mapping from
            the largest number of steps that they serve.
    """

    operator: str
    arguments: dict[str, Any]
    sigma_y: float
    solvers: dict[str, dict[str, Any]]
    photons: float | None = None
    few_steps: dict[str, dict[int, dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def hyper_parameters(self, solver: str, num_steps: int | None = None) -> dict[str, Any]:
        """Look up the hyper-parameters of a solver for so many steps; None is the published number of them.

        Empty for a solver that has no preset here.
        """
        few = self.few_steps.get(solver, {})
        served = [count for count in few if num_steps is not None and num_steps <= count]
        return {**self.solvers.get(solver, {}), **(few[min(served)] if served else {})}


def nearest(name: str, known: Iterable[str]) -> str:
    """Phrase the end of an error about an unknown name: the nearest known one, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(known) or 'none'}"


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        ValueError: it is not; the message names the nearest.
    """
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; {nearest(name, known)}")


def check_keys(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keys that are not known.

    Raises:
        ValueError: there is one; the message names the nearest.
    """
    known = list(known)
    for key in given:
        check_name(f"key in {where}:", key, known)


def config_folder() -> Path:
    """Find the presets: inside the installed package, or at the top of the checkout it is imported from."""
    package = Path(str(resources.files("ddiff_jax")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@functools.cache
def presets() -> dict[str, tuple[str, ...]]:
    """List the datasets that have presets, with their tasks."""
    folders = sorted(p for p in config_folder().iterdir() if p.is_dir())
    return {folder.name: tuple(sorted(p.stem for p in folder.glob("*.yaml"))) for folder in folders}


def parse_task(text: str, where: str) -> Task:
    """Read one task from yaml.

    Raises:
        ValueError: not a mapping, an unknown or missing key, or an unknown solver.
    """
    values = yaml.safe_load(text)
    fields = [f.name for f in dataclasses.fields(Task)]
    absent = dataclasses.MISSING
    required = {f.name for f in dataclasses.fields(Task) if f.default is absent and f.default_factory is absent}
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold the keys {', '.join(fields)}; got {type(values).__name__}")
    check_keys(where, values, fields)
    missing = required - set(values)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    check_name(f"operator in {where}:", values["operator"], OPERATORS)
    check_keys(f"{where}, solvers", values["solvers"], SOLVERS)
    check_keys(f"{where}, few_steps", values.get("few_steps", {}), values["solvers"])
    return Task(**values)


def task_preset(dataset: str, task: str) -> Task:
    """Load what is known of a task on a dataset.

    Raises:
        ValueError: unknown dataset or task (the message names the nearest), or a malformed file.
    """
    check_name("dataset", dataset, presets())
    check_name(f"task for {dataset}", task, presets()[dataset])
    path = config_folder() / dataset / f"{task}.yaml"
    return parse_task(path.read_text(), str(path))


def build_solver(name: str, values: dict[str, Any]) -> Solver:
    """Build a solver from its name and its hyper-parameters.

    Raises:
        ValueError: unknown solver or hyper-parameter (the message names the nearest), or a value out of range.
        TypeError: a hyper-parameter without default is missing.
    """
    check_name("solver", name, SOLVERS)
    solver = SOLVERS[name]
    check_keys(f"solver {name}", values, (f.name for f in dataclasses.fields(solver)))  # pyright: ignore[reportArgumentType] - solvers are dataclasses
    return solver(**values)


def preset(dataset: str, task: str, solver: str = "ddiff", **changes: Any) -> Solver:
    """Build a solver with the hyper-parameters of a task on a dataset.

    Args:
        dataset: for example "ffhq", "imagenet" or "faces64".
        task: for example "super_resolution".
        solver: for example "ddiff".
        changes: hyper-parameters that replace the preset's. A small `num_steps` also changes others, where the
            preset holds values for few steps.

    Raises:
        ValueError: unknown dataset, task, solver or hyper-parameter, or no preset for this solver.
    """
    check_name("solver", solver, SOLVERS)
    task_values = task_preset(dataset, task)
    check_name(f"preset of {dataset}/{task} for solver", solver, task_values.solvers)
    return build_solver(solver, {**task_values.hyper_parameters(solver, changes.get("num_steps")), **changes})
