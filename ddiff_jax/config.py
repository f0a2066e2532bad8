"""Presets: the values of every task and dataset, read strictly from yaml files that hold nothing else."""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ddiff_jax.names import check_keys, check_name
from ddiff_jax.operators import OPERATORS
from ddiff_jax.operators.named import maker
from ddiff_jax.solvers import SOLVERS, Fixed, Solver, ToTheNoise

# The two choices of values that every task has.
VALUES = {
    "default": "this library's choice, by measurement: DDiff finds its step length itself, in 100 evaluations",
    "published": "those of the papers and of their released code, with all steps",
}
TASK = "super_resolution"  # where nothing is asked for
DEFAULTS = "defaults"  # of every dataset: the file that says what its tasks share
STEP_LENGTH = tuple(f.name for f in dataclasses.fields(Fixed))  # pyright: ignore[reportArgumentType] - a dataclass


@dataclasses.dataclass(frozen=True)
class Task:
    """One task on one dataset.

    Args:
        operator: name in `OPERATORS`, or MODULE:NAME for one of your own.
        arguments: keyword arguments of its factory.
        sigma_y: noise standard deviation in units of the measurement.
        photons: expected count at white for Poisson noise, None for Gaussian noise.
        default: name in `SOLVERS` to the hyper-parameters of our choice that differ from the solver's own defaults.
        published: the same for the values of the papers.
    """

    operator: str
    arguments: dict[str, Any]
    sigma_y: float
    photons: float | None = None
    default: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    published: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def hyper_parameters(self, solver: str, values: str = "default") -> dict[str, Any]:
        """Look up the hyper-parameters of a solver; where one choice of values has none, those of the other serve.

        Empty where the solver's own defaults serve.

        Raises:
            ValueError: values is neither "default" nor "published".
        """
        check_name("values", values, VALUES)
        first, second = (self.default, self.published) if values == "default" else (self.published, self.default)
        return dict(first.get(solver, second.get(solver, {})))


def config_folder() -> Path:
    """Find the presets."""
    return Path(str(resources.files("ddiff_jax"))) / "configs"


@functools.cache
def presets() -> dict[str, tuple[str, ...]]:
    """List the datasets that have presets, with their tasks."""
    folders = sorted(p for p in config_folder().iterdir() if p.is_dir())
    return {
        folder.name: tuple(sorted(p.stem for p in folder.glob("*.yaml") if p.stem != DEFAULTS)) for folder in folders
    }


class _StrictLoader(yaml.SafeLoader):
    """Safe yaml in which no key may stand twice: the later one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"key {key!r} stands twice, again in line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """Read plain values from yaml.

    Args:
        text: the document.
        where: its file, for messages.

    Raises:
        ValueError: a key stands twice.
    """
    try:
        return yaml.load(text, _StrictLoader)  # derived from the safe loader
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _read(text: str, where: str) -> dict[str, Any]:
    """Read the fields of a task, or of what tasks share, and check every name in them."""
    fields = [f.name for f in dataclasses.fields(Task)]
    values = read_yaml(text, where)
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold the keys {', '.join(fields)}; got {type(values).__name__}")
    check_keys(where, values, fields)
    if "operator" in values:
        check_name(f"operator in {where}:", values["operator"], OPERATORS)
    for choice in VALUES:
        for solver, given in (values.get(choice) or {}).items():
            check_name(f"key in {where}, {choice}:", solver, SOLVERS)
            check_keys(f"{where}, {choice}, {solver}", given, solver_parameters(SOLVERS[solver]))
    return values


def parse_task(text: str, where: str, shared: str = "{}") -> Task:
    """Read one task from yaml.

    Args:
        text: the task's own values.
        where: its file, for messages.
        shared: what the tasks of the dataset share. A task's own entry takes the place of the shared one, solver by
            solver; `published:` with nothing after it means that nothing is published for this task.

    Raises:
        ValueError: not a mapping, an unknown, missing or repeated key, or an unknown solver or hyper-parameter.
    """
    own, common = _read(text, where), _read(shared, f"{DEFAULTS} of {where}")
    values = {**common, **own}
    for choice in VALUES.keys() & values.keys():
        nothing = choice in own and own[choice] is None
        values[choice] = {} if nothing else {**(common.get(choice) or {}), **(own.get(choice) or {})}
    required = {f.name for f in dataclasses.fields(Task) if _default(f) is dataclasses.MISSING}
    missing = required - set(values)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    return Task(**values)


def task_preset(dataset: str, task: str) -> Task:
    """Load what is known of a task on a dataset.

    Raises:
        ValueError: unknown dataset or task (the message names the nearest), or a malformed file.
    """
    check_name("dataset", dataset, presets())
    check_name(f"task for {dataset}", task, presets()[dataset])
    path = config_folder() / dataset / f"{task}.yaml"
    return parse_task(path.read_text(), str(path), path.with_stem(DEFAULTS).read_text())


def find_task(dataset: str, task: str | None = None, operator: str | None = None) -> Task:
    """Find the preset for a task, or for an operator that is named instead of the task's own.

    An operator that is a task's too has that preset; any other one has what the tasks of the dataset share, or the
    hyper-parameters and the noise of the task that is named with it.

    Args:
        dataset: whose presets.
        task: name of the preset; None is "super_resolution" where no operator is named.
        operator: in `OPERATORS`, or MODULE:NAME.

    Raises:
        UnknownName: there is no such dataset, task or operator.
    """
    if operator is None:
        found = task_preset(dataset, task or TASK)
        maker(found.operator)
        return found
    name = maker(operator).name
    if task is None and name in presets().get(dataset, ()):
        task = name
    if task is None:
        check_name("dataset", dataset, presets())
        path = config_folder() / dataset / f"{DEFAULTS}.yaml"
        return Task(**{**_read(path.read_text(), str(path)), "operator": name, "arguments": {}})
    found = task_preset(dataset, task)
    return found if found.operator == name else dataclasses.replace(found, operator=name, arguments={})


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def solver_parameters(solver: type) -> dict[str, tuple[Any, Any]]:
    """List the type and the default (or `dataclasses.MISSING`) of everything that a solver can be told, by name.

    A step length is spelled by the fields of `Fixed` beside the others; a gamma of None says `ToTheNoise()`.
    """
    hints = typing.get_type_hints(solver)
    found = {}
    for field in dataclasses.fields(solver):  # pyright: ignore[reportArgumentType] - solvers are dataclasses
        if field.name != "step_length":
            found[field.name] = (hints[field.name], _default(field))
            continue
        length, fixed = _default(field), typing.get_type_hints(Fixed)
        for part in dataclasses.fields(Fixed):  # pyright: ignore[reportArgumentType] - a dataclass
            default = getattr(length, part.name, part.default)
            if part.name == "gamma" and _may_go_to_the_noise(solver):
                fixed["gamma"] = fixed["gamma"] | None
                default = None if isinstance(length, ToTheNoise) else default
            found[part.name] = (fixed[part.name], default)
    return found


def _may_go_to_the_noise(solver: type) -> bool:
    return ToTheNoise in typing.get_args(typing.get_type_hints(solver)["step_length"])


def change(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace hyper-parameters; a whole step length, or a gamma of None, replaces all that was said of it before."""
    anew = "step_length" in changes or changes.get("gamma", 0) is None
    return {**{k: v for k, v in values.items() if not (anew and k in STEP_LENGTH)}, **changes}


def unsaid(name: str, values: Mapping[str, Any]) -> list[str]:
    """List the hyper-parameters of a solver that have no default and that `values` do not say."""
    said = {*values, *(STEP_LENGTH if "step_length" in values else ())}
    known = solver_parameters(SOLVERS[name])
    return [k for k, (_, default) in known.items() if default is dataclasses.MISSING and k not in said]


def build_solver(name: str, values: Mapping[str, Any]) -> Solver:
    """Build a solver from its name and its hyper-parameters.

    Args:
        name: in `SOLVERS`.
        values: as `solver_parameters` names them, or a `step_length` instead of its parts. What is not given is the
            solver's default.

    Raises:
        ValueError: unknown solver or hyper-parameter (the message names the nearest), one without default is missing,
            or a value is out of range.
    """
    check_name("solver", name, SOLVERS)
    solver, known = SOLVERS[name], solver_parameters(SOLVERS[name])
    whole = ["step_length"] if "gamma" in known else []
    check_keys(f"solver {name}", values, [*known, *whole])
    parts = {k: v for k, v in values.items() if whole and k in STEP_LENGTH}
    own = {k: v for k, v in values.items() if k not in parts}
    if parts and "step_length" in own:
        raise ValueError(f"give solver {name} a step_length or its {', '.join(parts)}, not both")
    missing = unsaid(name, values)
    if missing:
        raise ValueError(f"solver {name} has no default for {', '.join(missing)}; give a value")
    if parts:
        own["step_length"] = _step_length(name, parts, known)
    return solver(**own)


def _step_length(name: str, parts: Mapping[str, Any], known: Mapping[str, tuple[Any, Any]]) -> ToTheNoise | Fixed:
    values = {**{k: default for k, (_, default) in known.items() if k in STEP_LENGTH}, **parts}
    if values["gamma"] is not None:
        return Fixed(**values)
    if not _may_go_to_the_noise(SOLVERS[name]):
        raise ValueError(f"the steps of solver {name} have a fixed length; give gamma a number")
    others = [part for part in parts if part != "gamma"]
    if others:
        raise ValueError(
            f"without gamma every step of solver {name} finds its own length, and {', '.join(others)} would play no "
            "part; give gamma a number as well"
        )
    return ToTheNoise()


def preset(dataset: str, task: str, solver: str = "ddiff", values: str = "default", **changes: Any) -> Solver:
    """Build a solver with the hyper-parameters of a task on a dataset.

    Args:
        dataset: for example "ffhq", "imagenet" or "faces64".
        task: for example "super_resolution".
        solver: for example "ddiff".
        values: "default", which is this library's choice, or "published", the papers' with all their steps.
        changes: hyper-parameters that replace the preset's, and change no others; `gamma=12.0` fixes the length of
            DDiff's steps, and `gamma=None` lets each find its own.

    Raises:
        ValueError: unknown dataset, task, solver, choice of values or hyper-parameter, or one that must be given.
    """
    check_name("solver", solver, SOLVERS)
    found = change(task_preset(dataset, task).hyper_parameters(solver, values), changes)
    missing = unsaid(solver, found)
    if missing:
        raise ValueError(
            f"solver {solver} has no preset for {dataset}/{task} and no default for {', '.join(missing)}; give a value"
        )
    return build_solver(solver, found)
