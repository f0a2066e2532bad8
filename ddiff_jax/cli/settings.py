"""The flags of `ddiff restore`: what people type becomes the values of `ddiff_jax.restoration.resolve`."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ddiff_jax.checkpoint import available_priors
from ddiff_jax.cli.flags import Flag, argument_help, parse, peek, section
from ddiff_jax.config import TASK, Task, find_task, presets, solver_parameters, task_preset
from ddiff_jax.names import check_name
from ddiff_jax.operators.named import maker
from ddiff_jax.restoration.machine import check_batch_size
from ddiff_jax.restoration.parameters import REQUIRED, operator_parameters, scalar_type, takes_files
from ddiff_jax.restoration.saving import Kind
from ddiff_jax.restoration.settings import Settings, choose_prior, resolve
from ddiff_jax.restoration.sizes import Fit
from ddiff_jax.restoration.spelling import GENERAL, NOISE, flag_name, spelled
from ddiff_jax.solvers import SOLVERS, Fixed

PROG = "ddiff restore"

DESCRIPTION = """Restore images. Without INPUT: a packaged photograph, degraded and restored again.

examples:
  ddiff restore
  ddiff restore photos/ --task gaussian_blur --output out
  ddiff restore damaged.png --measured --task random_inpainting --mask mask.png --output out
  ddiff restore scan.npy --measured --operator camera:blur --sigma 3 --data-range 0 4095 --save npy png

INPUT is clean and gets degraded first, unless --measured says that it already is the measurement.
INPUT is a picture, .npy, .npz, TIFF of floats, HDF5, FITS, DICOM or NIfTI; of a file that holds several arrays or
images, scan.h5:kspace[3] is one of them, scan.h5[3:9] are some, and scan.h5 are all.
Which flags follow the general ones depends on --task, --operator and --solver; give them before --help.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to restore and how to run.

    Args:
        inputs: Image files, folders or quoted globs; arrays too, in units of [-1, 1] or --data-range.
        output: Folder for the results; made if missing, nothing in it is ever deleted.
        task: What happened to the image; the presets name the tasks. By default super_resolution, unless --operator
            says it.
        operator: What happened to the image instead, by name or as MODULE:NAME for your own (see ddiff check); the
            further arguments of its maker become flags.
        solver: The method.
        prior: Name of a packaged prior, folder of a converted checkpoint, or hf:OWNER/MODEL; by default
            phantoms64, of one channel, for tomography and Fourier sampling, and faces64 for all others.
        label: Class of the images, for a class-conditional prior.
        preset: Dataset whose hyper-parameters are used; by default that of the prior.
        values: Which of them: this library's choice, or those of the papers with all their steps.
        measured: INPUT already is the measurement; there is no truth to compare with.
        recursive: Enter the folders inside of folders; the results lie in OUTPUT as the images lie in theirs.
        full_scale: Number that is white in files of 16 bits (4095 if they hold 12) and in arrays of integers.
        data_range: The numbers of arrays that are black and white, where they are not -1 and 1; images, measurements,
            --sigma and results are in these units then.
        save: As what the restored images are written: pictures, arrays, TIFF of floats.
        resize: Cut clean images to a centred square and resize them (Lanczos) to the prior's size.
        fit: What is done with images of other sizes than the prior's: overlapping windows of its size (smaller images
            become the middle of one), the whole image at once, or refuse them.
        overlap: Overlap of the windows in pixels; by default a quarter of their side.
        shift_windows: Move the windows at every step, so that nothing repeats at their borders.
        image_size: Width x height of the images, such as 512x384, where a measurement does not tell it.
        seed: Root of all random numbers; an image's share depends on its file name and not on other images.
        restarts: Runs per image from other noise; the one of the least misfit is kept.
        samples: Answers per image from other noise: their mean, standard deviation and maps of 5 and 95% are written.
        keep_samples: Write all samples too, as one array per image.
        batch_size: Images restored together, each with all its restarts or samples; by default all, at most 8 of
            64x64 pixels, fewer of larger ones, per device (16 of any size on accelerators, where as many are computed
            at a time as fit into memory).
        dtype: Computation type of the network.
        shard: Take one of several equal shares of the images, I/N: the second of four processes takes 2/4. All write
            into one folder and need not know of each other; run the command once more without it to see the whole.
        distributed: Let `jax.distributed` say which share is ours, in Slurm, Open MPI, TPU pods and Kubernetes.
        save_every: Seconds of computing after which the state of a running batch is saved, to be taken up again.
        existing: What to do with images whose result is in the output folder already.
        cache: Keep compiled programs in the user's cache folder for the next run.
        print_config: Print the resolved settings as yaml and stop.
        quiet: Print errors and warnings only.
        json: Print the metrics to standard output.
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[INPUT ...]")] = ()
    output: Path = Path("restored")
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    operator: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    solver: str = "ddiff"
    prior: Annotated[str | None, tyro.conf.arg(metavar="PRIOR")] = None
    label: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    preset: Annotated[str | None, tyro.conf.arg(metavar="DATASET")] = None
    values: Literal["default", "published"] = "default"
    measured: bool = False
    recursive: tyro.conf.FlagCreatePairsOff[bool] = False
    full_scale: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    data_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    save: Annotated[tuple[Kind, ...], tyro.conf.arg(metavar="{png,npy,tiff} ...")] = ("png",)
    resize: bool = False
    fit: Fit = "windows"
    overlap: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    shift_windows: bool = True
    image_size: Annotated[str | None, tyro.conf.arg(metavar="WIDTHxHEIGHT")] = None
    seed: int = 0
    restarts: int = 1
    samples: int = 1
    keep_samples: tyro.conf.FlagCreatePairsOff[bool] = False
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False
    save_every: float = 300.0
    existing: Literal["skip", "overwrite", "error"] = "skip"
    cache: bool = True
    print_config: tyro.conf.FlagCreatePairsOff[bool] = False
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    json: tyro.conf.FlagCreatePairsOff[bool] = False


@dataclasses.dataclass(frozen=True)
class Request:
    """What was typed.

    Args:
        options: what to restore and how to run.
        settings: everything that decides the results.
    """

    options: Options
    settings: Settings


def read(argv: Sequence[str], *, prog: str = PROG) -> Request:
    """Parse the command line of `ddiff restore`; flags replace the values of the preset.

    Raises:
        UnknownName: no such flag, task or solver; the nearest is in the message.
        ValueError: a value that does not fit.
        SystemExit: code 0 after the help text.
    """
    # Which flags there are depends on these, and so does the parser.
    named = peek(argv, {name: getattr(Options, name) for name in KNOWN_FIRST})
    _, _, dataset, _ = choose_prior(named["prior"], named["preset"], named["task"] or named["operator"] or TASK)
    task = find_task(dataset, named["task"], named["operator"])
    check_name("solver", named["solver"], SOLVERS)
    flags = flags_of(task, named["solver"], named["values"])
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("run", Options),
            ("operator", section("Operator", list(flags.operator.values()))),
            ("solver", section("Solver", list(flags.solver.values()))),
        ],
    )
    known = {"tasks": presets()[dataset], "presets": presets(), "solvers": SOLVERS, "priors": available_priors()}
    description = DESCRIPTION + "".join(f"\n  {what:<9}{', '.join(names)}" for what, names in known.items())
    parsed: Any = parse(command, argv, prog=prog, description=description, elsewhere=lambda: _elsewhere(dataset))
    options = parsed.run
    check_batch_size(options.batch_size)
    if not options.save_every >= 0:  # NaN is not
        raise ValueError(f"--save-every must be at least 0 seconds; got {options.save_every}")
    operator, changes = given(parsed.operator, flags.operator), given(parsed.solver, flags.solver)
    if peek(argv, {"sigma": None})["sigma"] is not None:  # in the data's units the preset's number is another level
        operator["sigma"] = parsed.operator.sigma
    settings = resolve(
        **{name: getattr(options, name) for name in DECIDING},
        **{name: operator.pop(name, None) for name in NOISE},
        operator_name=options.operator,
        operator=operator,
        changes=changes,
    )
    return Request(options, settings)


# Options that decide which flags there are.
KNOWN_FIRST = ("prior", "preset", "task", "operator", "solver", "values")
# Options that decide the results, by the same names in `resolve`.
DECIDING = (
    *("task", "solver", "prior", "preset", "values", "label", "dtype", "seed", "restarts"),
    *("samples", "keep_samples"),
    *("measured", "resize", "full_scale", "data_range", "save"),
    *("fit", "overlap", "shift_windows", "image_size"),
)


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags that a task and a solver have, by the names of arguments and hyper-parameters."""

    operator: dict[str, Flag]
    solver: dict[str, Flag]


def flags_of(task: Task, solver: str, values: str = "default") -> Flags:
    """List the flags that a task and a solver have; their defaults are the values in force."""
    operator = operator_flags(task)
    taken = [*GENERAL, *(flag.name for flag in operator.values())]
    return Flags(operator, _solver_flags(solver, task.hyper_parameters(solver, values), taken))


def given(parsed: Any, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Read the values off a section, by the names of fields and arguments, where they are not the default."""
    values = {name: getattr(parsed, flag.name) for name, flag in flags.items()}
    return {name: value for name, value in values.items() if value != flags[name].default}


def _solver_flags(name: str, values: dict[str, Any], taken: Sequence[str]) -> dict[str, Flag]:
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
            flags[field] = Flag(flag_name(field, "solver", taken), kind, default, text)
    return flags


def operator_flags(task: Task, taken: Sequence[str] = GENERAL + NOISE) -> dict[str, Flag]:
    """Make a flag of every argument: numbers as they are, arrays as files.

    Args:
        task: names the operator, and the arguments and the noise that have a default.
        taken: flags of the same command that have their names already.
    """
    level = "noise standard deviation of the measurement, range [-1, 1]; auto estimates it from a measured picture"
    level += "; an array (file, or folder with one per image) is one per entry"
    count = "photons expected at white: Poisson noise instead of Gaussian"
    camera = {
        "gain": "with --photons: the measurement holds a camera's own numbers, so many per photon",
        "offset": "with --photons: number that the camera reads of no light",
        "read": "with --photons: standard deviation of its read noise, in its numbers",
    }
    flags = {
        "sigma": Flag("sigma", float | Literal["auto"] | Path, task.sigma_y, level),
        "photons": Flag("photons", float, task.photons, count),
        **{name: Flag(name, float, None, text) for name, text in camera.items()},
    }
    other = maker(task.operator).given
    for operator in (task.operator, other) if other else (task.operator,):
        texts = argument_help(maker(operator).factory)
        for name, (kind, default) in operator_parameters(operator).items():
            text = texts.get(name, "")
            if takes_files(kind):
                kind = Path if kind is None else kind
                text = f"picture or array, or a folder with one per image under the same stem: {text}"
            default = task.arguments.get(name, None if default is REQUIRED else default)
            default = tuple(default) if isinstance(default, list) else default
            flags[name] = Flag(flag_name(name, "operator", taken), kind, default, text)
    if "mask" in flags:
        share = "share of white from which on a pixel of a soft mask is observed, such as 0.5"
        for name, kind, default, text in (
            ("threshold", float, None, share),
            ("invert_mask", bool, False, "white marks the holes of the mask, not what was observed"),
        ):
            flags[name] = Flag(flag_name(name, "operator", taken), kind, default, text)
    return flags


def _elsewhere(dataset: str) -> dict[str, str]:
    """Map flags of other tasks and solvers to what makes them exist."""
    places = {}
    for task in presets()[dataset]:
        for flag in operator_flags(task_preset(dataset, task)).values():
            places.setdefault(spelled(flag.name), f"--task {task}")
    for solver in SOLVERS:
        for flag in _solver_flags(solver, {}, GENERAL).values():
            places.setdefault(spelled(flag.name), f"--solver {solver}")
    return places
