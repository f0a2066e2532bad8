"""The settings of `ddiff restore`: presets, then flags, resolved into values."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from ddiff_jax.checkpoint import Card, available_priors, read_card
from ddiff_jax.cli.flags import Flag, argument_help, parse, peek, scalar_type, section, spelled
from ddiff_jax.config import (
    Task,
    build_solver,
    change,
    presets,
    solver_parameters,
    task_preset,
    unsaid,
)
from ddiff_jax.likelihood import Gaussian, Likelihood, Poisson
from ddiff_jax.names import check_name
from ddiff_jax.operators import GIVEN_FORMS, OPERATOR_TYPES, OPERATORS
from ddiff_jax.problem import check_sigma
from ddiff_jax.solvers import SOLVERS, Fixed, Solver, ToTheNoise
from ddiff_jax.stencils import check_threshold

PROG = "ddiff restore"
DESCRIPTION = """Restore images. Without INPUT: a packaged photograph, degraded and restored again.

examples:
  ddiff restore
  ddiff restore photos/ --task gaussian_blur --output out
  ddiff restore damaged.png --measured --task random_inpainting --mask mask.png --output out

INPUT is clean and gets degraded first, unless --measured says that it already is the measurement.
Which flags follow the general ones depends on --task and --solver; give both before --help.
"""

# Which published presets an unnamed prior borrows, by its image size.
DATASET_OF_SIZE = {64: "faces64", 256: "ffhq"}
REQUIRED = inspect.Parameter.empty
WIDEST = 2.0  # from black to white; noise beyond it leaves nothing of a picture
RENAMED = {"num_steps": "steps"}  # fields of solvers to flags


@dataclasses.dataclass(frozen=True)
class Options:
    """What to restore and how to run.

    Args:
        inputs: Image files, folders or quoted globs; .npy and .npz arrays in units of [-1, 1] too.
        output: Folder for the results; made if missing, nothing in it is ever deleted.
        task: What happened to the image; the presets name the tasks.
        solver: The method.
        prior: Name of a packaged prior, or folder of a converted checkpoint.
        label: Class of the images, for a class-conditional prior.
        preset: Dataset whose hyper-parameters are used; by default that of the prior.
        values: Which of them: this library's choice, or those of the papers with all their steps.
        measured: INPUT already is the measurement; there is no truth to compare with.
        recursive: Enter the folders inside of folders; the results lie in OUTPUT as the images lie in theirs.
        full_scale: Number that is white in files of 16 bits (4095 if they hold 12) and in arrays of integers.
        resize: Cut clean images to a centred square and resize them (Lanczos) to the prior's size.
        seed: Root of all random numbers; an image's share depends on its file name and not on other images.
        restarts: Runs per image from other noise; the one of the least misfit is kept.
        batch_size: Images restored together; by default all, at most 8 per device (16 on accelerators).
        dtype: Computation type of the network.
        existing: What to do with images whose result is in the output folder already.
        cache: Keep compiled programs in the user's cache folder for the next run.
        print_config: Print the resolved settings as yaml and stop.
        quiet: Print errors and warnings only.
        json: Print the metrics to standard output.
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[INPUT ...]")] = ()
    output: Path = Path("restored")
    task: str = "super_resolution"
    solver: str = "ddiff"
    prior: str = "faces64"
    label: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    preset: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    values: Literal["default", "published"] = "default"
    measured: bool = False
    recursive: tyro.conf.FlagCreatePairsOff[bool] = False
    full_scale: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    resize: bool = False
    seed: int = 0
    restarts: int = 1
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    existing: Literal["skip", "overwrite", "error"] = "skip"
    cache: bool = True
    print_config: tyro.conf.FlagCreatePairsOff[bool] = False
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    json: tyro.conf.FlagCreatePairsOff[bool] = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the results, resolved.

    Args:
        options: the general flags.
        card: what is known of the prior.
        dataset: where the preset comes from.
        operator: name in `OPERATORS`.
        arguments: numbers for its factory.
        files: files or folders for its factory's arrays.
        threshold: share of white from which on a pixel of a mask is observed; None takes masks of black and white only.
        invert_mask: whether white marks the holes of masks.
        sigma_y: noise standard deviation in units of the measurement.
        estimated: whether every measurement's own estimate takes the place of sigma_y.
        likelihood: the noise model.
        solver: the method with its hyper-parameters.
        notes: what was assumed, for the user.
    """

    options: Options
    card: Card
    dataset: str
    operator: str
    arguments: dict[str, Any]
    files: dict[str, Path]
    threshold: float | None
    invert_mask: bool
    sigma_y: float
    estimated: bool
    likelihood: Likelihood
    solver: Solver
    notes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the prior's images."""
        return self.card.image_shape

    def as_dict(self) -> dict[str, Any]:
        """Spell out what decides the results, in plain types."""
        files = {name: str(path) for name, path in self.files.items()}
        mask = {"threshold": self.threshold, "invert_mask": self.invert_mask or None}
        mask = {name: value for name, value in mask.items() if value is not None}
        hyper = _fields(self.solver)
        options = self.options
        photons = getattr(self.likelihood, "photons", None)
        noise = {"name": "gaussian"} if photons is None else {"name": "poisson", "photons": float(photons)}
        return {
            "task": options.task,
            "preset": self.dataset,
            "values": options.values,
            "operator": {"name": self.operator, **self.arguments, **files, **mask},
            "sigma_y": "auto" if self.estimated else self.sigma_y,
            "noise": noise,
            "solver": {"name": options.solver, **hyper},
            "prior": options.prior,
            "label": options.label,
            "dtype": options.dtype,
            "seed": options.seed,
            "restarts": options.restarts,
            "measured": options.measured,
            "resize": options.resize,
            "full_scale": options.full_scale,
        }


def _fields(obj: Any) -> dict[str, Any]:
    """Spell out a dataclass; a float32 becomes the float that prints with the same few digits."""

    def plain(value: Any) -> Any:
        if isinstance(value, Fixed | ToTheNoise):
            return {"name": "fixed" if isinstance(value, Fixed) else "to_the_noise", **_fields(value)}
        return float(str(value)) if isinstance(value, np.floating) else value

    return {field.name: plain(getattr(obj, field.name)) for field in dataclasses.fields(obj)}


def resolve(argv: Sequence[str], *, prog: str = PROG) -> Settings:
    """Parse the command line of `ddiff restore`; flags replace the values of the preset.

    Raises:
        ValueError: an unknown name (the nearest is in the message), or a value that does not fit.
        SystemExit: code 0 after the help text.
    """
    prior = peek(argv, "--prior", Options.prior)
    card = read_card(prior)
    dataset, notes = _dataset(peek(argv, "--preset", ""), prior, card.image_shape[0])
    task = task_preset(dataset, peek(argv, "--task", Options.task))
    check_name("operator", task.operator, OPERATORS)
    name = peek(argv, "--solver", Options.solver)
    check_name("solver", name, SOLVERS)

    taken = {f.name for f in dataclasses.fields(Options)}
    operator_flags = _operator_flags(task, taken)
    values = task.hyper_parameters(name, peek(argv, "--values", Options.values))
    solver_flags = _solver_flags(name, values, taken)
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("run", Options),
            ("operator", section("Operator", list(operator_flags.values()))),
            ("solver", section("Solver", list(solver_flags.values()))),
        ],
    )
    known = {"tasks": presets()[dataset], "presets": presets(), "solvers": SOLVERS, "priors": available_priors()}
    description = DESCRIPTION + "".join(f"\n  {what:<9}{', '.join(names)}" for what, names in known.items())
    parsed: Any = parse(command, argv, prog=prog, description=description, elsewhere=lambda: _elsewhere(dataset))
    operator_values = _values(parsed.operator, operator_flags)
    flags = {n: flag for n, flag in solver_flags.items() if getattr(parsed.solver, flag.name) != flag.default}
    solver_values = change(values, {n: getattr(parsed.solver, flag.name) for n, flag in flags.items()})

    check_label(parsed.run.label, card.architecture.get("num_classes"))
    asked, photons = operator_values.pop("sigma"), operator_values.pop("photons", None)
    threshold, invert_mask = operator_values.pop("threshold", None), operator_values.pop("invert_mask", False)
    operator, arguments, files = _operator(task, operator_values)
    check_threshold(threshold)
    if "mask" not in files and (threshold is not None or invert_mask):
        raise ValueError("--threshold and --invert-mask say how to read a mask: give --mask, or leave them out")
    missing = [solver_flags[n].name for n in unsaid(name, solver_values)]
    if missing:
        raise ValueError(
            f"solver {name} has no preset for {dataset}/{parsed.run.task} and no default for {', '.join(missing)}; "
            f"give {' '.join(map(spelled, missing))}"
        )
    solver = build_solver(name, solver_values)
    sigma_y, likelihood = _noise(task, asked, photons)
    estimated = asked == "auto"
    if parsed.run.values == "published" and name in task.default.keys() - task.published.keys():
        notes = (*notes, f"nothing is published for {name} on {parsed.run.task}; its default values are used")
    if estimated:
        _check_estimable(parsed.run.measured, operator, photons)
    elif photons is None and sigma_y > WIDEST and _measures_picture(operator):
        raise ValueError(
            f"--sigma {sigma_y:g} is larger than the range of pictures here, -1 to 1: it is in units of the "
            f"measurement; of levels 0 to 255 give --sigma {sigma_y / 127.5:.3g}"
        )
    return Settings(
        *(parsed.run, card, dataset, operator, arguments, files, threshold, invert_mask),
        *(sigma_y, estimated, likelihood, solver, notes),
    )


def _noise(task: Task, asked: float | str, photons: float | None) -> tuple[float, Likelihood]:
    """Read the noise level and the noise model; what counts photons scatters in mid-grey by sqrt(2 / photons)."""
    if photons is None:
        sigma_y = task.sigma_y if isinstance(asked, str) else asked
        check_sigma(sigma_y)
        return sigma_y, Gaussian()
    if asked != task.sigma_y:
        raise ValueError("give --sigma for Gaussian noise or --photons for Poisson noise, not both")
    likelihood = Poisson(photons)
    return task.sigma_y if photons == task.photons else math.sqrt(2 / photons), likelihood


def _check_estimable(measured: bool, operator: str, photons: float | None) -> None:
    """Refuse --sigma auto where there is nothing to estimate from."""
    if not measured:
        raise ValueError("--sigma auto estimates the noise of a measurement: give --measured, or a number")
    if photons is not None or not _measures_picture(operator):
        able = filter(_measures_picture, OPERATORS)
        raise ValueError(
            f"--sigma auto needs a measurement that is a picture with Gaussian noise, as {', '.join(able)} make; "
            "give --sigma a number"
        )


def _measures_picture(operator: str) -> bool:
    return getattr(OPERATOR_TYPES[operator], "measures_picture", False)


def check_label(label: int | None, num_classes: int | None) -> None:
    """Refuse a class for a prior without classes, and the other way round.

    Raises:
        ValueError: they do not fit.
    """
    if num_classes is None and label is not None:
        raise ValueError("this prior has no classes; leave --label out")
    if num_classes is not None and (label is None or not 0 <= label < num_classes):
        raise ValueError(f"this prior is class-conditional: give --label from 0 to {num_classes - 1}; got {label}")


def _dataset(asked: str, prior: str, size: int) -> tuple[str, tuple[str, ...]]:
    """Choose the presets: as asked, by the prior's name, or by its image size."""
    if asked:
        return asked, ()
    if prior in presets() and prior in available_priors():
        return prior, ()
    if size not in DATASET_OF_SIZE:
        raise ValueError(
            f"no preset is known for a prior of {size}x{size}; give --preset, one of {', '.join(presets())}"
        )
    dataset = DATASET_OF_SIZE[size]
    return dataset, (f"the {dataset} preset is used because the prior is {size}x{size}; --preset chooses another",)


def _flag_name(name: str, section: str, taken: set[str]) -> str:
    """Name a flag after a field; if a general flag has that name, put the section's name before it."""
    flag = RENAMED.get(name, name)
    flag = f"{section}_{flag}" if flag in taken else flag
    taken.add(flag)
    return flag


def _solver_flags(name: str, values: dict[str, Any], taken: set[str]) -> dict[str, Flag]:
    """Make a flag of every hyper-parameter; its default is the value in force."""
    documented = [*reversed(SOLVERS[name].__mro__), Fixed]
    texts = {field: text for cls in documented for field, text in argument_help(cls).items()}
    flags = {}
    for field, (hint, default) in solver_parameters(SOLVERS[name]).items():
        kind = scalar_type(hint)
        if kind is not None:
            default = values.get(field, None if default is dataclasses.MISSING else default)
            default = (
                float(str(default)) if float in (kind, *typing.get_args(kind)) and default is not None else default
            )
            text = texts.get(field, "")
            if field == "gamma" and type(None) in typing.get_args(hint):
                text += "; None: every step finds its own length"
            flags[field] = Flag(_flag_name(field, "solver", taken), kind, default, text)
    return flags


def operator_parameters(operator: str) -> dict[str, tuple[Any, Any]]:
    """List the type (None for an array) and the default (or `REQUIRED`) of a factory's arguments.

    Left out are the shape, and a key that must be a JAX key. One that may be an integer fixes a published draw for
    all images; None draws one for each.
    """
    hints = typing.get_type_hints(OPERATORS[operator])
    parameters = inspect.signature(OPERATORS[operator]).parameters.values()
    found = {p.name: (scalar_type(hints[p.name]), p.default) for p in parameters if p.name != "shape"}
    kind, _ = found.pop("key", (None, None))
    return found if kind is None else {**found, "key": (kind | None, None)}


def is_random(operator: str, arguments: Mapping[str, Any]) -> bool:
    """Tell whether an operator is drawn for each image anew."""
    return "key" in inspect.signature(OPERATORS[operator]).parameters and "key" not in arguments


def fixing_flags(operator: str) -> list[str]:
    """Spell the flags that say what a random operator did."""
    given = GIVEN_FORMS.get(operator)
    files = [name for name, (kind, _) in operator_parameters(given).items() if kind is None] if given else []
    return [spelled(name) for name in files + [name for name in ("key",) if name in operator_parameters(operator)]]


def _operator_flags(task: Task, taken: set[str]) -> dict[str, Flag]:
    """Make a flag of every argument: numbers as they are, arrays as files."""
    level = "noise standard deviation of the measurement, range [-1, 1]; auto estimates it from a measured picture"
    count = "photons expected at white: Poisson noise instead of Gaussian"
    flags = {
        "sigma": Flag("sigma", float | Literal["auto"], task.sigma_y, level),
        "photons": Flag("photons", float, task.photons, count),
    }
    taken |= flags.keys()
    given = GIVEN_FORMS.get(task.operator)
    for operator in (task.operator, given) if given else (task.operator,):
        texts = argument_help(OPERATORS[operator])
        for name, (kind, default) in operator_parameters(operator).items():
            text = texts.get(name, "")
            if kind is None:
                kind, text = Path, f"picture or array, or a folder with one per image under the same stem: {text}"
            default = task.arguments.get(name, None if default is REQUIRED else default)
            default = tuple(default) if isinstance(default, list) else default
            flags[name] = Flag(_flag_name(name, "operator", taken), kind, default, text)
    if "mask" in flags:
        share = "share of white from which on a pixel of a soft mask is observed, such as 0.5"
        for name, kind, default, text in (
            ("threshold", float, None, share),
            ("invert_mask", bool, False, "white marks the holes of the mask, not what was observed"),
        ):
            flags[name] = Flag(_flag_name(name, "operator", taken), kind, default, text)
    return flags


def _values(parsed: Any, flags: dict[str, Flag]) -> dict[str, Any]:
    """Read the values off a section, by the names of fields and arguments; drop those that nobody gave."""
    values = {name: getattr(parsed, flag.name) for name, flag in flags.items()}
    return {name: value for name, value in values.items() if value is not None}


def _operator(task: Task, values: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Path]]:
    """Choose the operator: the task's own, or the one that a given file calls for."""
    files = {name: value for name, value in values.items() if isinstance(value, Path)}
    given = GIVEN_FORMS.get(task.operator)
    operator = given if given is not None and files.keys() & operator_parameters(given).keys() else task.operator
    wanted = operator_parameters(operator)
    missing = [spelled(name) for name, (_, default) in wanted.items() if default is REQUIRED and name not in values]
    if missing:
        raise ValueError(f"the operator {operator} needs {' and '.join(missing)}")
    files = {name: path for name, path in files.items() if name in wanted}
    arguments = {name: v for name, v in values.items() if name in wanted and name not in files}
    return operator, arguments, files


def _elsewhere(dataset: str) -> dict[str, str]:
    """Map flags of other tasks and solvers to what makes them exist."""
    places = {}
    for task in presets()[dataset]:
        for name in _operator_flags(task_preset(dataset, task), set()):
            places.setdefault(spelled(name), f"--task {task}")
    for solver in SOLVERS:
        for name in _solver_flags(solver, {}, set()):
            places.setdefault(spelled(RENAMED.get(name, name)), f"--solver {solver}")
    return places
